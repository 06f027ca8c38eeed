package backendtest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// These are for backends that are a [backend.Revoker].
var revokeClauses = []clause{
	{"revoked grants end at once, and no others", (*contract).revokes},
	{"what is revoked can be granted again", (*contract).revokesOnce},
	{"revoke sees each grant as it is", (*contract).revokeSees},
	{"grants of many can be revoked at once", (*contract).revokesMany},
	{"revoke before open, and after close", (*contract).revokesNothing},
}

func (c *contract) revoke(which func(backend.Grant) bool) int {
	c.Helper()
	r, ok := c.Backend.(backend.Revoker)
	if !ok {
		c.Skip("it revokes nothing")
	}
	n, err := r.Revoke(c.Context(), which)
	if err != nil {
		c.Fatalf("revoke: %v", err)
	}
	return n
}

func all(backend.Grant) bool  { return true }
func none(backend.Grant) bool { return false }

func (c *contract) revokes() {
	c.open(Rules())
	until := in(time.Hour)
	c.grant(until, Addrs(0, 20)...)
	away := Addrs(5, 10)
	if n := c.revoke(func(g backend.Grant) bool { return slices.Contains(away, g.Addr) }); n != 10 {
		c.Errorf("%d grants were revoked, want 10", n)
	}
	listed := c.listed()
	for _, a := range away {
		if _, there := listed[a]; there || c.inForce.Covers(backend.KeyOf(a), time.Now()) {
			c.Errorf("%v is in force", a)
		}
	}
	c.lasts(until, Addrs(0, 5)...)
	c.lasts(until, Addrs(15, 5)...)
	if n := c.revoke(none); n != 0 || len(c.listed()) != 10 {
		c.Errorf("%d more are gone, %d left", n, len(c.listed()))
	}
}

func (c *contract) revokesOnce() {
	c.open(Rules())
	for range 3 {
		until := in(time.Hour)
		c.grant(until, Addrs(0, 4)...)
		c.lasts(until, Addrs(0, 4)...)
		if n := c.revoke(all); n != 4 || len(c.listed()) != 0 {
			c.Fatalf("%d grants were revoked, want 4; %d left", n, len(c.listed()))
		}
	}
	if n := c.revoke(all); n != 0 {
		c.Errorf("%d grants were revoked, and there were none", n)
	}
}

func (c *contract) revokeSees() {
	r := Rules()
	r.LocalHolders = []backend.Holder{backend.Machine, backend.User}
	c.open(r)
	until := in(time.Hour)
	addr := Addrs(0, 1)[0]
	scopes := []backend.Scope{{Holder: backend.Machine}, backend.UserScope(1), backend.UserScope(2)}
	for _, s := range scopes {
		if err := c.Grant(c.Context(), []backend.Grant{{Scope: s, Addr: addr, Until: until}}, time.Minute); err != nil {
			c.Fatal(err)
		}
	}
	n := c.revoke(func(g backend.Grant) bool {
		if g.Addr != addr || g.Until.Before(until.Add(-kernelClock)) || g.Until.After(until.Add(time.Minute)) {
			c.Errorf("seen: %v to %v until %v", g.Addr, g.Scope, g.Until)
		}
		return g.Scope == scopes[1]
	})
	if n != 1 {
		c.Errorf("%d grants were revoked, want 1", n)
	}
	for i, s := range scopes {
		if there := c.inForce.Covers(s.Key(addr), time.Now()); there != (i != 1) {
			c.Errorf("%v has one: %v", s, there)
		}
	}
}

func (c *contract) revokesMany() {
	c.open(Rules())
	c.grant(in(time.Hour), Addrs(0, 5000)...)
	if n := c.revoke(all); n != 5000 || len(c.listed()) != 0 {
		c.Errorf("%d grants were revoked, want 5000; %d left", n, len(c.listed()))
	}
	until := in(time.Hour)
	c.grant(until, Addrs(0, 2)...)
	c.lasts(until, Addrs(0, 2)...)
}

func (c *contract) revokesNothing() {
	if n := c.revoke(all); n != 0 {
		c.Errorf("%d grants were revoked before there were any", n)
	}
	c.open(Rules())
	if err := c.Close(backend.Remove); err != nil {
		c.Error(err)
	}
	if _, err := c.Backend.(backend.Revoker).Revoke(context.Background(), all); !errors.Is(err, backend.ErrClosed) {
		c.Errorf("revoke after Close: %v, want ErrClosed", err)
	}
}
