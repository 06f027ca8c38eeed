package nft

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// armingPeriod is how long TCP connections may go on of which connection
// tracking saw nothing before the guard first switched it on.
const armingPeriod = 30 * time.Second

// compile returns the messages of one transaction that turns what is present
// into the ruleset, in a table with these flags. Live grants survive it where
// what is present is kept. Where it is the first arming, connections may go on
// that are older than connection tracking.
func (rs ruleset) compile(p present, keep bool, flags uint32, first bool) (msgs []netlink.Message, err error) {
	table := &nftables.Table{Name: rs.table, Family: nftables.TableFamilyINet}
	first = first && p.sets[setArming] == nil // also where a boot-time ruleset stands
	if p.exists && !keep {
		if msgs, err = deleteTable(rs.table); err != nil {
			return nil, err
		}
		p = present{}
	}
	unsettled := rs.unsettled(p)
	msgs = append(msgs, newTable(rs.table, flags))
	if p.exists {
		more, err := compose(func(c *nftables.Conn) error { rs.clear(c, table, p); return nil })
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, more...)
	}
	for _, s := range rs.sets {
		more, err := s.compile(table, !p.holds(s))
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", s.name, err)
		}
		msgs = append(msgs, more...)
	}
	more, err := compose(func(c *nftables.Conn) error {
		if first {
			if err := addVersions(c, table, setArming, armingPeriod); err != nil {
				return err
			}
		}
		if unsettled {
			for _, name := range []string{setSettling, forVersion(setBegun, true), forVersion(setBegun, false)} {
				c.FlushSet(&nftables.Set{Name: name, Table: table}) // time begins anew
			}
			if err := addVersions(c, table, setSettling, liveFor); err != nil {
				return err
			}
		}
		for _, ch := range rs.chains {
			if err := ch.compile(c, table); err != nil {
				return fmt.Errorf("chain %s: %w", ch.name, err)
			}
		}
		return nil
	})
	correct(more)
	return append(msgs, more...), err
}

// addVersions puts both versions of IP into a set, for a while.
func addVersions(c *nftables.Conn, table *nftables.Table, set string, last time.Duration) error {
	return c.SetAddElements(&nftables.Set{Name: set, Table: table, HasTimeout: true}, []nftables.SetElement{
		{Key: []byte{unix.NFPROTO_IPV4}, Timeout: last},
		{Key: []byte{unix.NFPROTO_IPV6}, Timeout: last},
	})
}

// clear removes all that is not wanted any more or is about to be made anew:
// everything but the sets whose elements last, and other sets that can stay. Those are
// emptied, unless they hold what they should: the kernel (6.18) shows new rules a
// moment before it shows the elements of a new set of ranges, and would refuse what is
// allowed before and after; the elements of a set that is there it exchanges in one step.
func (rs ruleset) clear(c *nftables.Conn, table *nftables.Table, p present) {
	for name := range p.chains {
		c.FlushChain(&nftables.Chain{Name: name, Table: table})
	}
	wanted := map[string]bool{}
	for _, ch := range rs.chains {
		wanted[ch.name] = true
	}
	for _, s := range rs.sets {
		have := p.sets[s.name]
		wanted[s.name] = s.lasts() || s.standsAs(have)
		if !s.lasts() && wanted[s.name] && !p.holds(s) {
			c.FlushSet(&nftables.Set{Name: s.name, Table: table})
		}
	}
	for name := range p.chains {
		if !wanted[name] {
			c.DelChain(&nftables.Chain{Name: name, Table: table})
		}
	}
	for name, s := range p.sets {
		if !wanted[name] && !s.Anonymous { // sets without a name go with their rule
			c.DelSet(&nftables.Set{Name: name, Table: table})
		}
	}
}

func (ch chain) compile(c *nftables.Conn, table *nftables.Table) error {
	nc := &nftables.Chain{Name: ch.name, Table: table}
	if b := ch.base; b != nil {
		nc.Type, nc.Hooknum, nc.Priority, nc.Policy = b.kind, b.hook, b.priority, &b.policy
	}
	c.AddChain(nc)
	for _, r := range ch.rules {
		var exprs, ip []expr.Any
		for _, m := range r.match {
			if m.ip != nil && ip == nil {
				ip = m.ip
				exprs = append(exprs, ip...)
			}
			exprs = append(exprs, m.exprs...)
			if m.set == nil {
				continue
			}
			anon := &nftables.Set{Table: table, Anonymous: true, Constant: true, KeyType: m.set.key}
			if err := c.AddSet(anon, m.set.elements); err != nil {
				return err
			}
			lookup := *exprs[len(exprs)-1].(*expr.Lookup)
			lookup.SetName, lookup.SetID = anon.Name, anon.ID
			exprs[len(exprs)-1] = &lookup
		}
		c.AddRule(&nftables.Rule{
			Table: table, Chain: nc, Exprs: append(exprs, r.verdict.exprs...),
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		})
	}
	return nil
}

// deleteTable returns the messages that remove the table.
func deleteTable(name string) ([]netlink.Message, error) {
	return compose(func(c *nftables.Conn) error {
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		return nil
	})
}

var errComposed = errors.New("composed")

// compose lets the library build messages and hands them over instead of
// sending them. So all of a ruleset is one transaction of ours, which can also
// be tried without being carried out; and the defects that v0.3.0 has in sending
// (ENOBUFS after success, errors that turn up in the next call) are not met.
func compose(build func(*nftables.Conn) error) (msgs []netlink.Message, err error) {
	c, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		msgs = req[1 : len(req)-1] // without the begin and end of a batch
		return nil, errComposed
	}))
	if err != nil {
		return nil, err
	}
	if err := build(c); err != nil {
		return nil, err
	}
	if err := c.Flush(); err != nil && !errors.Is(err, errComposed) {
		return nil, err
	}
	return msgs, nil
}
