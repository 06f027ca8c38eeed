package backendtest

import (
	"errors"
	"net/netip"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Scopes returns one scope of each kind in each class, and a second one where there
// can be.
func Scopes() (all []backend.Scope) {
	for _, class := range []backend.Class{0, anyones, locals} {
		scopes := []backend.Scope{
			{},
			{Holder: backend.Machine},
			backend.UserScope(0),
			backend.UserScope(1000),
			backend.UnitScope(1 << 40),
			backend.UnitScope(1<<40 + 1),
		}
		if class != locals {
			scopes = append(scopes,
				backend.ClientScope(netip.MustParseAddr("192.168.0.2")),
				backend.ClientScope(netip.MustParseAddr("192.168.0.3")),
				backend.ClientScope(netip.MustParseAddr("fd00::2")),
				backend.LinkScope(7, [6]byte{2, 0, 0, 0, 0, 2}),
				backend.LinkScope(7, [6]byte{2, 0, 0, 0, 0, 3}),
				backend.LinkScope(8, [6]byte{2, 0, 0, 0, 0, 2}), // another wire, another client
			)
		}
		for _, s := range scopes {
			s.Class = class
			all = append(all, s)
		}
	}
	return all
}

// The classes of the contract's rules.
const (
	anyones backend.Class = 1 // clients can have grants in it
	locals  backend.Class = 3
)

// Classes are those of the contract's rules.
func Classes() map[backend.Class]backend.Predicates {
	return map[backend.Class]backend.Predicates{
		anyones: {Ports: []backend.Ports{{Protocol: 6, First: 443, Last: 443}, {Protocol: 17, First: 8000, Last: 8010}}},
		locals: {
			Ports: []backend.Ports{{Protocol: 6, First: 443, Last: 443}},
			Users: []uint32{1000, 0},
			Units: []backend.Cgroup{
				{Path: "/system.slice/a.service", ID: 1<<40 + 2, Level: 2},
				{Path: "/system.slice/b.service", Level: 2}, // not there now
				{Path: "/user.slice", ID: 1<<40 + 4, Level: 1},
			},
		},
	}
}

// ScopedRules are the contract's rules for all kinds of holders.
func ScopedRules() backend.Rules {
	r := Rules()
	r.LocalHolders = []backend.Holder{backend.Everyone, backend.Machine, backend.User, backend.Unit}
	r.GatewayHolders = []backend.Holder{backend.Everyone, backend.Client, backend.Link}
	r.OnLink = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	r.Classes = Classes()
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
		if known := g.Scope == (backend.Scope{}); known != (err == nil) || !known && !errors.Is(err, backend.ErrScope) {
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
		{Scope: backend.Scope{Class: locals + 1}, Addr: v4, Until: in(time.Hour)},
		{Scope: backend.Scope{Class: 255}, Addr: v4, Until: in(time.Hour)},
		{Scope: backend.Scope{Holder: backend.Client, Class: locals, ID: v4.As16()}, Addr: v4, Until: in(time.Hour)},
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
			if until, _ := c.inForce.Lookup(g.Key()); until.IsZero() == (g.Scope == backend.Scope{}) {
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

// keptClasses: a class stays what it is, whatever comes and goes beside it and
// wherever its units are.
func (c *contract) keptClasses() {
	r := ScopedRules()
	c.open(r)
	if err := c.Grant(c.Context(), ScopedGrants(in(time.Hour), Addrs(0, 2)...), time.Minute); err != nil {
		c.Fatal(err)
	}
	for range 2 {
		r.Classes = Classes()
		r.Classes[locals].Units[0].ID, r.Classes[locals].Units[1].ID = 0, 1<<40+9
		r.Classes[200] = backend.Predicates{Ports: []backend.Ports{{Protocol: 6, First: 22, Last: 22}}}
		c.open(r)
		r.Classes = Classes()
		delete(r.Classes, anyones)
		c.open(r)
		listed := c.listedKeys()
		for _, g := range ScopedGrants(in(time.Hour), Addrs(0, 2)...) {
			if kept := g.Class != anyones; listed[g.Key()] != kept || c.inForce.Covers(g.Key(), in(time.Minute)) != kept {
				c.Errorf("%v in class %d to %v: listed: %v", g.Scope, g.Class, g.Addr, listed[g.Key()])
			}
		}
	}
}
