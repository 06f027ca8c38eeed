package e2e

import (
	"errors"
	"strings"
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

// refusals is how many packets the guard has refused, by its own counters.
func (w *world) refusals() (packets uint64) {
	w.Helper()
	counters := 0
	w.nftables(func(c *nftables.Conn) error {
		objects, err := c.GetNamedObjects(&nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet})
		if err != nil {
			return err
		}
		for _, o := range objects {
			if o, ok := o.(*nftables.NamedObj); ok && strings.HasPrefix(o.Name, "denied-") {
				packets += o.Obj.(*expr.Counter).Packets
				counters++
			}
		}
		return nil
	})
	if counters == 0 {
		w.Fatal("nothing of the guard counts refusals")
	}
	return packets
}

// enforced reports whether the table stands with both of its guarded chains, each of
// which ends with sending the rest to where it is refused.
func (w *world) enforced() bool {
	w.Helper()
	refusing := map[string]bool{}
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
				switch end := r.Exprs[len(r.Exprs)-1].(type) {
				case *expr.Reject:
					refusing[chain.Name] = len(r.Exprs) == 1
				case *expr.Verdict:
					if len(r.Exprs) == 1 && end.Kind == expr.VerdictGoto && end.Chain == "denied-"+chain.Name {
						refusing[chain.Name] = true
					}
				}
			}
		}
		return nil
	})
	return refusing["output"] && refusing["forward"] && refusing["denied-output"] && refusing["denied-forward"]
}
