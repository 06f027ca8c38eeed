package backendtest

import (
	"errors"
	"net/netip"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Scopes returns one scope of each kind, and a second one where there can be.
func Scopes() []backend.Scope {
	return []backend.Scope{
		{},
		{Holder: backend.Machine},
		backend.ClientScope(netip.MustParseAddr("192.168.0.2")),
		backend.ClientScope(netip.MustParseAddr("192.168.0.3")),
		backend.ClientScope(netip.MustParseAddr("fd00::2")),
		backend.LinkScope(0, [6]byte{2, 0, 0, 0, 0, 2}),
		backend.LinkScope(0, [6]byte{2, 0, 0, 0, 0, 3}),
	}
}

// ScopedRules are the contract's rules for all kinds of holders.
func ScopedRules() backend.Rules {
	r := Rules()
	r.LocalHolders = []backend.Holder{backend.Everyone, backend.Machine}
	r.GatewayHolders = []backend.Holder{backend.Everyone, backend.Client, backend.Link}
	r.OnLink = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	return r
}

// ScopedGrants returns a grant for each address that each of the scopes can have.
func ScopedGrants(until time.Time, addrs ...netip.Addr) (grants []backend.Grant) {
	for _, s := range Scopes() {
		for _, a := range addrs {
			if s.CanReach(a) {
				grants = append(grants, backend.Grant{Scope: s, Addr: a, Until: until})
			}
		}
	}
	return grants
}

// listedKeys returns the names of what the enforcer has.
func (c *contract) listedKeys() map[backend.Key]bool {
	c.Helper()
	list, err := c.List()
	if err != nil {
		c.Fatalf("list: %v", err)
	}
	keys := make(map[backend.Key]bool, len(list))
	for _, g := range list {
		keys[g.Key()] = true
	}
	return keys
}

func (c *contract) holders() {
	c.open(ScopedRules())
	grants := ScopedGrants(in(time.Hour), Addrs(0, 2)...)
	for i, g := range grants { // one by one: none opens the others
		if listed := c.listedKeys(); listed[g.Key()] || len(listed) != i {
			c.Errorf("%d are listed, want %d; %v: %v", len(listed), i, g.Scope, listed[g.Key()])
		}
		if c.inForce.Covers(g.Key(), in(time.Minute)) {
			c.Errorf("%v has %v already", g.Scope, g.Addr)
		}
		if err := c.Grant(c.Context(), []backend.Grant{g}, time.Minute); err != nil {
			c.Fatalf("%v: %v", g.Scope, err)
		}
		if !c.inForce.Covers(g.Key(), in(time.Minute)) {
			c.Errorf("%v does not have %v", g.Scope, g.Addr)
		}
	}
	more := ScopedGrants(in(2*time.Hour), Addrs(0, 4)...) // renewed, and new, in one call
	if err := c.Grant(c.Context(), more, time.Minute); err != nil {
		c.Fatal(err)
	}
	if listed := c.listedKeys(); len(listed) != len(more) {
		c.Errorf("%d are listed, want %d", len(listed), len(more))
	}
}

func (c *contract) unknownHolders() {
	c.open(Rules())
	for _, g := range ScopedGrants(in(time.Hour), Addrs(0, 2)...) {
		err := c.Grant(c.Context(), []backend.Grant{g}, time.Minute)
		if known := g.Holder == backend.Everyone; known != (err == nil) || !known && !errors.Is(err, backend.ErrScope) {
			c.Errorf("%v to %v: %v", g.Scope, g.Addr, err)
		}
	}
	r := ScopedRules()
	c.open(r)
	v4, v6 := Addrs(0, 2)[0], Addrs(0, 2)[1]
	for _, g := range []backend.Grant{
		{Scope: backend.ClientScope(v6), Addr: v4, Until: in(time.Hour)},
		{Scope: backend.ClientScope(v4), Addr: v6, Until: in(time.Hour)},
		{Scope: backend.Scope{Holder: backend.Holders}, Addr: v4, Until: in(time.Hour)},
	} {
		if err := c.Grant(c.Context(), []backend.Grant{g}, time.Minute); !errors.Is(err, backend.ErrScope) {
			c.Errorf("%v to %v: %v", g.Scope, g.Addr, err)
		}
	}
}

func (c *contract) forgottenHolders() {
	c.open(ScopedRules())
	if err := c.Grant(c.Context(), ScopedGrants(in(time.Hour), Addrs(0, 2)...), time.Minute); err != nil {
		c.Fatal(err)
	}
	c.open(Rules())
	c.lasts(in(time.Hour-time.Second), Addrs(0, 2)...)
	for range 2 { // nor do they come back
		for _, g := range ScopedGrants(in(time.Hour), Addrs(0, 2)...) {
			if until, _ := c.inForce.Lookup(g.Key()); until.IsZero() == (g.Holder == backend.Everyone) {
				c.Errorf("%v to %v: until %v", g.Scope, g.Addr, until)
			}
		}
		if n := len(c.listedKeys()); n != 2 {
			c.Errorf("%d are listed", n)
		}
		c.open(ScopedRules())
	}
	c.grant(in(2*time.Hour), Addrs(0, 4)...)
}
