package e2e

import (
	"errors"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The tables of the guard's host, as somebody else on the machine sees and
// changes them: not with the code under test.

const guardTable = "ipdestinationguard"

// nftables runs f on a connection to the kernel of a host.
func (w *world) nftables(f func(*nftables.Conn) error) {
	w.Helper()
	w.must(w.asSomebody(f))
}

// asSomebody is nftables for what the kernel may refuse.
func (w *world) asSomebody(f func(*nftables.Conn) error) error {
	return w.guard.Do(func() error {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
			return s.SetDeadline(time.Now().Add(20 * time.Second))
		}))
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.CloseLasting())
	})
}

// tables returns the names of all tables on the guard's host.
func (w *world) tables() (names []string) {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		tables, err := c.ListTables()
		for _, t := range tables {
			names = append(names, t.Name)
		}
		return err
	})
	return names
}

var ours = &nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}

// noOwner makes a table of our name that never had an owner, with a set of
// grants, as an older version leaves it: the guard goes on with it as on a kernel
// before 6.9.
func (w *world) noOwner() { w.Helper(); w.nftables(withoutOwner) }

func withoutOwner(c *nftables.Conn) error {
	set := &nftables.Set{Name: "granted-local4", Table: c.AddTable(ours), HasTimeout: true, KeyType: nftables.TypeIPAddr, Size: 1 << 18, ID: 1} // or the library counts, and tests race
	return errors.Join(c.AddSet(set, nil), c.Flush())
}

// deleteTable does what `nft delete table` does.
func deleteTable(c *nftables.Conn) error {
	c.DelTable(ours)
	return c.Flush()
}

// flushRuleset does what `nft flush ruleset` does.
func flushRuleset(c *nftables.Conn) error {
	c.FlushRuleset()
	return c.Flush()
}

// anew does so, and makes a table that never had an owner in the same step: else
// the guard would give its next one an owner.
func anew(empty func(*nftables.Conn)) func(*nftables.Conn) error {
	return func(c *nftables.Conn) error {
		empty(c)
		return withoutOwner(c)
	}
}

// refusals is how many packets the guard has refused, by the counters of its own
// rules.
func (w *world) refusals() (packets uint64) {
	w.Helper()
	counters := w.counters()
	if len(counters) == 0 {
		w.Fatal("no rule of the guard counts refusals")
	}
	for _, c := range counters {
		packets += c.Packets
	}
	return packets
}

// enforced reports whether the table stands with a refusing rule in each of its
// chains.
func (w *world) enforced() bool { w.Helper(); return len(w.counters()) == 2 }

// counters are those of the table's rules: each chain ends with one that refuses.
func (w *world) counters() (all []*expr.Counter) {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		for _, chain := range chains {
			rules, err := c.GetRules(chain.Table, chain)
			if errors.Is(err, unix.ENOENT) {
				continue // it has gone meanwhile
			}
			if err != nil {
				return err
			}
			for _, r := range rules {
				for _, e := range r.Exprs {
					if counter, ok := e.(*expr.Counter); ok {
						all = append(all, counter)
					}
				}
			}
		}
		return nil
	})
	return all
}
