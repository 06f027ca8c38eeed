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
	w.must(w.guard.Do(func() error {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
			return s.SetDeadline(time.Now().Add(20 * time.Second))
		}))
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.CloseLasting())
	}))
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

// deleteTable does what `nft delete table` does.
func (w *world) deleteTable() {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		c.DelTable(&nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet})
		return c.Flush()
	})
}

// flushRuleset does what `nft flush ruleset` does.
func (w *world) flushRuleset() {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		c.FlushRuleset()
		return c.Flush()
	})
}

// flushSet does what `nft flush set` does.
func (w *world) flushSet(name string) {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		c.FlushSet(&nftables.Set{Name: name, Table: &nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}})
		return c.Flush()
	})
}

// flushChain does what `nft flush chain` does.
func (w *world) flushChain(name string) {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		table := &nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}
		c.FlushChain(&nftables.Chain{Name: name, Table: table})
		return c.Flush()
	})
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
