package backendtest

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// limitClauses are what the contract says of limits.
var limitClauses = []clause{
	{"at the limit of a set the least recently renewed makes room", (*contract).setLimit},
	{"in a full set nobody makes room for others", (*contract).fullSet},
	{"a client has no more than it may, and others have what they had", (*contract).clientLimit},
	{"holders that are many have no limit of their own", (*contract).manyHolders},
	{"a client has no more because of a name than it may", (*contract).nameLimit},
	{"what a second name needs makes no room for the first", (*contract).secondName},
	{"what is wanted makes no room, and what is too much ends nothing", (*contract).wanted},
	{"what makes room for a name or a client does so for the others", (*contract).onlyAsNeeded},
	{"limits of zero are none", (*contract).noLimits},
	{"limits hold with many at once", (*contract).limitsAtOnce},
	{"lower limits are kept after a while", (*contract).lowerLimits},
	{"who floods takes nothing from others", (*contract).flood},
}

// limits are the contract's rules with these limits.
func limits(set, client, name int) backend.Rules {
	r := ScopedRules()
	r.MaxGrants, r.MaxGrantsClient, r.MaxGrantsName = set, client, name
	return r
}

var (
	clientA = backend.ClientScope(netip.MustParseAddr("172.16.0.2"))
	clientB = backend.ClientScope(netip.MustParseAddr("172.16.0.3"))
	link    = backend.LinkScope(0, [6]byte{2, 0, 0, 0, 0, 2})
)

// v4 returns so many IPv4 addresses, the same ones for the same first.
func v4(first, n int) (addrs []netip.Addr) {
	for i := range n {
		addrs = append(addrs, Addrs(2*(first+i), 1)...)
	}
	return addrs
}

// v6 returns IPv6 addresses.
func v6(first, n int) (addrs []netip.Addr) {
	for i := range n {
		addrs = append(addrs, Addrs(2*(first+i)+1, 1)...)
	}
	return addrs
}

// ask asks for grants in one call.
func (c *contract) ask(s backend.Scope, name uint64, addrs ...netip.Addr) error {
	grants := Grants(in(time.Hour), addrs...)
	for i := range grants {
		grants[i].Scope, grants[i].Name = s, name
	}
	return c.Grant(c.Context(), grants, time.Minute)
}

// give grants in one call.
func (c *contract) give(s backend.Scope, name uint64, addrs ...netip.Addr) {
	c.Helper()
	if err := c.ask(s, name, addrs...); err != nil {
		c.Errorf("%v: %v", s, err)
	}
}

// inTurn grants each address in a call of its own.
func (c *contract) inTurn(s backend.Scope, name uint64, addrs ...netip.Addr) {
	c.Helper()
	for _, a := range addrs {
		c.give(s, name, a)
	}
}

// full fails the test unless the call does not fit.
func (c *contract) full(s backend.Scope, name uint64, addrs ...netip.Addr) {
	c.Helper()
	if err := c.ask(s, name, addrs...); !errors.Is(err, backend.ErrFull) {
		c.Errorf("%v: %v, want ErrFull", s, err)
	}
}

// has fails the test unless the holder has grants for these addresses and no others,
// and the enforcer knows what the table does.
func (c *contract) has(s backend.Scope, addrs ...netip.Addr) {
	c.Helper()
	for k := range c.agreed() {
		if k.Scope == s && !slices.Contains(addrs, k.Addr()) {
			c.Errorf("%v has %v", s, k.Addr())
		}
	}
	for _, a := range addrs {
		if !c.inForce.Covers(s.Key(a), in(time.Minute)) {
			c.Errorf("%v does not have %v", s, a)
		}
	}
}

// agreed returns what the enforcer has, and fails the test if that is not what the
// table has.
func (c *contract) agreed() map[backend.Key]bool {
	c.Helper()
	listed, known := c.listedKeys(), map[backend.Key]bool{}
	for k := range c.inForce.All() {
		known[k] = true
	}
	if !maps.Equal(listed, known) {
		c.Errorf("%d grants are listed, and %d are in the table, or others", len(listed), len(known))
	}
	return listed
}

func (c *contract) setLimit() {
	rules := Rules()
	rules.MaxGrants = 4
	c.open(rules)
	everyone := backend.Scope{}
	c.inTurn(everyone, 0, v4(0, 4)...)
	c.inTurn(everyone, 0, v6(0, 3)...) // IPv6 has a set of its own
	c.has(everyone, append(v4(0, 4), v6(0, 3)...)...)
	c.give(everyone, 0, v4(0, 1)...) // renewed, so not the next to go
	c.inTurn(everyone, 0, v4(4, 2)...)
	c.has(everyone, append(append(v4(3, 3), v4(0, 1)...), v6(0, 3)...)...)
	c.give(everyone, 0, v6(3, 4)...) // all that there may be, in one call
	c.has(everyone, append(append(v4(3, 3), v4(0, 1)...), v6(3, 4)...)...)
	c.full(everyone, 0, v6(10, 5)...)
	c.has(everyone, append(append(v4(3, 3), v4(0, 1)...), v6(3, 4)...)...)
}

func (c *contract) fullSet() {
	c.open(limits(6, 0, 0))
	c.inTurn(clientA, 0, v4(0, 4)...)
	c.inTurn(clientB, 0, v4(0, 2)...)
	third := backend.ClientScope(netip.MustParseAddr("172.16.0.4"))
	c.full(third, 0, v4(0, 1)...) // it has none that could go
	c.full(clientB, 0, v4(2, 3)...)
	c.full(clientB, 0, append(v4(0, 1), v4(2, 2)...)...)
	c.has(clientA, v4(0, 4)...)
	c.has(clientB, v4(0, 2)...)
	c.inTurn(clientA, 0, v4(10, 6)...)
	c.give(clientB, 0, v4(5, 2)...)
	c.has(clientA, v4(12, 4)...)
	c.has(clientB, v4(5, 2)...)
	c.give(link, 0, v4(0, 6)...) // another kind of holder has a set of its own
	c.has(link, v4(0, 6)...)
	c.has(third)
}

func (c *contract) clientLimit() {
	c.open(limits(100, 5, 0))
	c.inTurn(clientB, 1, v4(0, 5)...)
	c.inTurn(clientA, 1, v4(0, 5)...)
	c.give(clientA, 2, v4(1, 1)...) // renewed
	c.inTurn(clientA, 3, v4(5, 2)...)
	c.has(clientA, append(v4(3, 4), v4(1, 1)...)...)
	c.has(clientB, v4(0, 5)...)
	c.give(link, 0, append(v4(0, 5), v6(0, 5)...)...) // each IP version counts by itself
	c.inTurn(link, 0, v6(5, 2)...)
	c.has(link, append(v4(0, 5), v6(2, 5)...)...)
	c.full(clientB, 9, v4(20, 6)...)
	c.has(clientB, v4(0, 5)...)
}

func (c *contract) manyHolders() {
	c.open(limits(100, 5, 3))
	for _, s := range []backend.Scope{{}, {Holder: backend.Machine}} {
		c.inTurn(s, 0, v4(0, 20)...)
		c.has(s, v4(0, 20)...)
		c.inTurn(s, 7, v4(30, 5)...) // names are limited all the same
		c.has(s, append(v4(0, 20), v4(32, 3)...)...)
	}
}

func (c *contract) nameLimit() {
	c.open(limits(100, 50, 3))
	c.inTurn(clientA, 1, v4(0, 3)...)
	c.inTurn(clientA, 2, v4(10, 3)...)
	c.inTurn(clientB, 1, v4(0, 3)...)
	c.inTurn(clientA, 0, v4(20, 10)...) // without a name
	c.give(clientA, 1, v4(0, 1)...)     // renewed
	c.give(clientA, 1, v4(3, 1)...)
	c.has(clientA, slices.Concat(v4(0, 1), v4(2, 2), v4(10, 3), v4(20, 10))...)
	c.has(clientB, v4(0, 3)...)
	c.give(clientA, 1, v4(4, 3)...)
	c.full(clientA, 1, v4(30, 4)...)
	c.has(clientA, slices.Concat(v4(4, 3), v4(10, 3), v4(20, 10))...)
	c.inTurn(link, 1, append(v4(0, 3), v6(0, 3)...)...)
	c.has(link, append(v4(0, 3), v6(0, 3)...)...)
}

func (c *contract) secondName() {
	c.open(limits(100, 8, 3))
	const good, hostile = 1, 2
	c.inTurn(clientA, hostile, v4(0, 3)...)
	c.give(clientA, good, v4(0, 2)...) // which the good name needs, too
	c.inTurn(clientA, hostile, v4(10, 10)...)
	c.has(clientA, append(v4(0, 2), v4(17, 3)...)...)
	c.give(clientA, hostile, v4(0, 1)...) // that it was first to want it makes no difference
	c.inTurn(clientA, hostile, v4(20, 3)...)
	c.has(clientA, append(v4(0, 2), v4(20, 3)...)...)
	// Two names in one call.
	until := in(time.Hour)
	both := backend.Grant{Scope: clientA, Addr: v4(30, 1)[0], Until: until, Name: good}
	again := both
	again.Name = hostile
	if err := c.Grant(c.Context(), []backend.Grant{both, again}, time.Minute); err != nil {
		c.Error(err)
	}
	c.inTurn(clientA, good, v4(40, 2)...)
	c.has(clientA, slices.Concat(v4(0, 2), v4(20, 3), v4(30, 1), v4(40, 2))...)
	c.give(clientA, good, v4(42, 1)...) // the client has as many as it may: its oldest goes
	c.has(clientA, slices.Concat(v4(0, 1), v4(20, 3), v4(30, 1), v4(40, 3))...)
}

func (c *contract) wanted() {
	c.open(limits(100, 4, 3))
	c.inTurn(clientA, 1, v4(0, 3)...)
	c.give(clientA, 1, append(v4(5, 1), v4(0, 2)...)...) // the two oldest, and a new one before them
	c.has(clientA, append(v4(0, 2), v4(5, 1)...)...)
	c.full(clientA, 1, append(v4(0, 2), v4(6, 2)...)...)
	c.has(clientA, append(v4(0, 2), v4(5, 1)...)...)
	c.give(clientA, 2, v4(8, 1)...)
	c.full(clientA, 3, append(v4(8, 1), v4(10, 4)...)...)
	c.has(clientA, slices.Concat(v4(0, 2), v4(5, 1), v4(8, 1))...)
	c.give(clientA, 1, v4(0, 1)[0], v4(0, 1)[0], v4(5, 1)[0], v4(6, 1)[0], v4(6, 1)[0]) // twice is once
	c.has(clientA, slices.Concat(v4(0, 1), v4(5, 2), v4(8, 1))...)
}

// A grant that goes for the sake of one limit counts for the wider ones.
func (c *contract) onlyAsNeeded() {
	c.open(limits(7, 7, 3))
	c.inTurn(clientA, 0, v4(0, 4)...)
	c.inTurn(clientA, 1, v4(10, 3)...)
	c.give(clientA, 1, v4(13, 3)...)
	c.has(clientA, append(v4(0, 4), v4(13, 3)...)...)
	c.give(clientA, 0, v4(20, 3)...)
	c.has(clientA, slices.Concat(v4(3, 1), v4(13, 3), v4(20, 3))...)
}

func (c *contract) noLimits() {
	c.open(limits(0, 0, 0))
	for _, s := range []backend.Scope{{}, clientA} {
		c.give(s, 1, v4(0, 500)...)
	}
	// While a set without a size grows, it may be listed in part.
	Eventually(c.T, "all are listed", func() bool { return len(c.listedKeys()) == 1000 })
	for _, s := range []backend.Scope{{}, clientA} {
		c.has(s, v4(0, 500)...)
	}
}

func (c *contract) limitsAtOnce() {
	const most, calls = 7, 60
	c.open(limits(3*most, most, 3))
	scopes := []backend.Scope{clientA, clientB, link, {}}
	var wait sync.WaitGroup
	for i, s := range scopes {
		for caller := range 6 {
			wait.Go(func() {
				for call := range calls {
					name := uint64(caller % 4)
					err := c.ask(s, name, v4((i+caller*31+call*7)%200, 1+call%3)...)
					if err != nil {
						c.Errorf("%v: %v", s, err)
					}
					if call%20 == 0 {
						c.full(s, 0, v4(1000, 3*most+1)...)
					}
				}
			})
		}
	}
	wait.Wait()
	have := map[backend.Scope]int{}
	for k := range c.agreed() {
		have[k.Scope]++
	}
	for i, s := range scopes {
		least, limit := 4, most
		if s.Holder.Many() {
			limit = 3 * most
		}
		if have[s] < least || have[s] > limit {
			c.Errorf("scope %d has %d, want %d to %d", i, have[s], least, limit)
		}
	}
}

func (c *contract) lowerLimits() {
	c.open(limits(200, 100, 50))
	for name := range uint64(3) {
		c.give(clientA, name, v4(int(name)*30, 30)...)
	}
	c.has(clientA, v4(0, 90)...)
	c.open(limits(200, 10, 5))
	c.has(clientA, v4(0, 90)...)
	for i := range 100 {
		c.give(clientA, uint64(i%3), v4(200+i, 1)...)
	}
	c.has(clientA, v4(290, 10)...)
	c.open(limits(4, 10, 5))
	Eventually(c.T, "as many are left as fit", func() bool { return len(c.listedKeys()) == 4 })
	c.inTurn(clientA, 0, v4(300, 4)...)
	c.has(clientA, v4(300, 4)...)
}

// One client asks for very many, by several calls at a time, and another works on.
// The set has room for what both may have and not for one more, so an enforcer that
// counts by itself would refuse what is removed too late.
func (c *contract) flood() {
	const most, quiet, pauses, keys, inCall = 1000, 100, 4, 20_000, 10
	c.open(limits(most+quiet, most, most/2))
	theirs := v4(0, quiet)
	c.give(clientB, 1, theirs...)
	var next atomic.Int64
	for pause := range pauses {
		var flooding sync.WaitGroup
		for range 4 {
			flooding.Go(func() {
				for {
					i := int(next.Add(inCall))
					if i > keys*(1+pause)/pauses {
						return
					}
					c.give(clientA, uint64(1+i%700), v4(i, inCall)...)
				}
			})
		}
		done := make(chan struct{})
		go func() { flooding.Wait(); close(done) }()
		for working := true; working; {
			select {
			case <-done:
				working = false
			default:
			}
			for _, a := range theirs {
				if !c.inForce.Covers(clientB.Key(a), in(time.Minute)) {
					c.Errorf("%v has lost %v", clientB, a)
				}
			}
			c.give(clientB, 1, theirs[:1]...)
		}
		c.has(clientB, theirs...)
		if n := len(c.agreed()); n != most+quiet {
			c.Errorf("%d grants, want %d", n, most+quiet)
		}
	}
}
