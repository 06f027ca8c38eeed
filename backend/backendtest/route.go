package backendtest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var routeClauses = []clause{
	{"a mapping before open waits and gives up with the context, or when it is late", (*contract).mapBeforeOpenGivesUp},
	{"mappings are in force", (*contract).mapsAreInForce},
	{"what cannot be mapped is refused", (*contract).unmappable},
	{"as many mappings as there may be", (*contract).mapsFull},
	{"an address changes what stands behind it, and its route", (*contract).remaps},
	{"mappings end", (*contract).unmaps},
	{"mappings and grants of many at once", (*contract).concurrentMaps},
	{"open again keeps the mappings", (*contract).openAgainKeepsMappings},
	{"mappings end with their route, and with their book", (*contract).forgottenMappings},
	{"whose mapped addresses they are", (*contract).origins},
	{"where mapped addresses lead, and who may connect", (*contract).granted},
	{"nothing is mapped after close", (*contract).mapAfterClose},
}

// RunRouter tests what a [backend.Router] promises beside what every backend does. Each
// call of newBackend makes one that is not open yet; mapped says what its enforcer has.
func RunRouter(t *testing.T, newBackend func(t *testing.T) (b backend.Backend, inForce *backend.InForce, mapped func() map[netip.Addr]backend.Mapping)) {
	for _, clause := range routeClauses {
		t.Run(clause.name, func(t *testing.T) {
			b, inForce, mapped := newBackend(t)
			c := &contract{t, b, inForce, b.(backend.Router), mapped}
			clause.test(c)
			if err := b.Close(backend.Remove); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// RoutedRules are the contract's rules for routers: with two routes that share pools.
func RoutedRules() backend.Rules {
	r := Rules()
	r.MaxMappings, r.Book = 1<<16, "b1"
	pools := []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:2021:1111:8000::/107")}
	r.Routes = []backend.Route{
		{Name: "r-one", Pools: pools},
		{Name: "r-two", Pools: pools, Transparent: true, Out: "lan9", Mark: 7},
	}
	return r
}

// Mappings returns so many mappings of a route, IPv4 and IPv6 by turns: the same ones for
// the same first, to real addresses that are made of real.
func Mappings(route string, first, n, real int) (all []backend.Mapping) {
	reals := Addrs(real, n+1)
	if (first^real)&1 != 0 { // of the same version of IP
		reals = reals[1:]
	}
	for i := range n {
		k := first + i
		a, b, c := byte(k>>16&0x0f), byte(k>>8), byte(k)
		m := netip.AddrFrom4([4]byte{100, 96 + a, b, c})
		if k%2 != 0 {
			m = netip.AddrFrom16([16]byte{0xfd, 0, 0x20, 0x21, 0x11, 0x11, 0x80, 0, 13: a, 14: b, 15: c})
		}
		all = append(all, backend.Mapping{Route: route, Mapped: m, Real: reals[i]})
	}
	return all
}

func mappedOf(mappings []backend.Mapping) (all []netip.Addr) {
	for _, m := range mappings {
		all = append(all, m.Mapped)
	}
	return all
}

func (c *contract) maps(mappings []backend.Mapping) {
	c.Helper()
	if err := c.Map(c.Context(), mappings, time.Minute); err != nil {
		c.Fatalf("map: %v", err)
	}
}

// haveMapped fails the test unless the enforcer has these mappings, and so many.
func (c *contract) haveMapped(n int, mappings []backend.Mapping) {
	c.Helper()
	have := c.mapped()
	if len(have) != n {
		c.Errorf("%d mappings, want %d", len(have), n)
	}
	for _, m := range mappings {
		if have[m.Mapped] != m {
			c.Errorf("%v: %v, want %v", m.Mapped, have[m.Mapped], m)
			return
		}
	}
}

func (c *contract) mapBeforeOpenGivesUp() {
	ctx, cancel := enough(c.Context())
	defer cancel()
	if err := c.Map(ctx, Mappings("r-one", 0, 1, 0), time.Minute); err != errEnough {
		c.Errorf("got %v, want the context's cause", err)
	}
	if err := c.Unmap(ctx, mappedOf(Mappings("r-one", 0, 1, 0))); err != errEnough {
		c.Errorf("got %v, want the context's cause", err)
	}
	if err := c.Map(c.Context(), Mappings("r-one", 0, 1, 0), 50*time.Millisecond); err != backend.ErrLate {
		c.Errorf("got %v, want ErrLate", err)
	}
	var waiting sync.WaitGroup
	want := Mappings("r-one", 10, 2, 0)
	waiting.Go(func() { c.maps(want) })
	c.open(RoutedRules())
	waiting.Wait()
	c.haveMapped(len(c.mapped()), want)
}

func (c *contract) mapsAreInForce() {
	c.open(RoutedRules())
	epoch := c.Epoch()
	one, two := Mappings("r-one", 0, 10, 0), Mappings("r-two", 10, 3000, 0)
	c.maps(one)
	c.maps(two)
	c.haveMapped(3010, append(one, two...))
	c.maps(nil)
	c.maps(one)
	c.haveMapped(3010, append(one, two...))
	if c.Epoch() != epoch {
		c.Errorf("epoch %d, want %d", c.Epoch(), epoch)
	}
	if n := len(c.listed()); n > 0 {
		c.Errorf("%d grants", n)
	}
}

func (c *contract) unmappable() {
	c.open(RoutedRules())
	good := Mappings("r-one", 0, 2, 0)
	for name, change := range map[string]func(m *backend.Mapping){
		"no such route":         func(m *backend.Mapping) { m.Route = "r-three" },
		"no route":              func(m *backend.Mapping) { m.Route = "" },
		"of no pool":            func(m *backend.Mapping) { m.Mapped = netip.MustParseAddr("100.95.255.255") },
		"to the other version":  func(m *backend.Mapping) { m.Real = netip.MustParseAddr("fd00::1") },
		"to none":               func(m *backend.Mapping) { m.Real = netip.Addr{} },
		"to an address of pool": func(m *backend.Mapping) { m.Real = good[0].Mapped.Next() },
		"from none":             func(m *backend.Mapping) { m.Mapped = netip.Addr{} },
	} {
		bad := Mappings("r-one", 4, 1, 0)[0]
		change(&bad)
		if err := c.Map(c.Context(), append([]backend.Mapping{bad}, good...), time.Minute); !errors.Is(err, backend.ErrRoute) {
			c.Errorf("%s: %v, want ErrRoute", name, err)
		}
	}
	c.haveMapped(0, nil)
	c.maps(good)
	c.haveMapped(2, good)
}

func (c *contract) mapsFull() {
	r := RoutedRules()
	r.MaxMappings = 10
	c.open(r)
	all := Mappings("r-one", 0, 20, 0)
	c.maps(all)
	if err := c.Map(c.Context(), Mappings("r-two", 20, 1, 0), time.Minute); err != backend.ErrMappings {
		c.Errorf("got %v, want ErrMappings", err)
	}
	if err := c.Map(c.Context(), Mappings("r-two", 21, 1, 0), time.Minute); err != backend.ErrMappings {
		c.Errorf("got %v, want ErrMappings", err)
	}
	again := Mappings("r-two", 0, 20, 1000) // as many, but otherwise
	c.maps(again)
	c.haveMapped(20, again)
	if err := c.Unmap(c.Context(), mappedOf(all[:1])); err != nil {
		c.Fatal(err)
	}
	c.maps(Mappings("r-two", 20, 1, 0))
	c.haveMapped(20, again[1:])
	r.MaxMappings = 0
	c.open(r)
	c.maps(Mappings("r-one", 30, 100, 0))
	c.haveMapped(120, again[1:])
}

func (c *contract) remaps() {
	c.open(RoutedRules())
	c.maps(Mappings("r-one", 0, 20, 0))
	for i, route := range []string{"r-one", "r-two", "r-two", "r-one"} {
		want := Mappings(route, 0, 10, 100*(i/2))
		c.maps(want)
		c.haveMapped(20, append(want, Mappings("r-one", 10, 10, 10)...))
	}
	last := Mappings("r-two", 0, 10, 500)
	c.maps(append(Mappings("r-one", 0, 10, 400), last...)) // the last one in a call counts
	c.haveMapped(20, last)
}

func (c *contract) unmaps() {
	c.open(RoutedRules())
	all := Mappings("r-two", 0, 2000, 0)
	c.maps(all)
	for range 2 { // also those that are not there
		if err := c.Unmap(c.Context(), mappedOf(all[:1990])); err != nil {
			c.Fatal(err)
		}
		c.haveMapped(10, all[1990:])
	}
	if err := c.Unmap(c.Context(), nil); err != nil {
		c.Error(err)
	}
	c.maps(all[:100])
	c.haveMapped(110, all[:100])
}

func (c *contract) concurrentMaps() {
	c.open(RoutedRules())
	const callers, calls = 16, 50
	until := in(time.Hour)
	var wait sync.WaitGroup
	for caller := range callers {
		wait.Go(func() {
			for call := range calls {
				own := Mappings("r-one", 1000+(caller*calls+call)*4, 4, call)
				if err := c.Map(c.Context(), append(Mappings("r-two", call, 2, call), own...), time.Minute); err != nil {
					c.Error(err)
				}
				c.grant(until, own[0].Mapped, own[1].Mapped)
				if err := c.Unmap(c.Context(), mappedOf(own[2:])); err != nil {
					c.Error(err)
				}
			}
		})
	}
	wait.Wait()
	c.haveMapped(callers*calls*2+calls+1, Mappings("r-two", 0, 1, 0))
	if n := len(c.listed()); n != callers*calls*2 {
		c.Errorf("%d grants", n)
	}
}

func (c *contract) openAgainKeepsMappings() {
	r := RoutedRules()
	c.open(r)
	one, two := Mappings("r-one", 0, 10, 0), Mappings("r-two", 10, 10, 0)
	c.maps(one)
	c.maps(two)
	epoch := c.Epoch()
	for _, change := range []func(*backend.Rules){
		func(*backend.Rules) {},
		func(r *backend.Rules) { r.Allowed = nil },
		func(r *backend.Rules) { r.Gateway, r.Interfaces = false, nil },
		func(r *backend.Rules) { r.Local = false },
		func(r *backend.Rules) {
			r.Routes = append(r.Routes, backend.Route{Name: "r-three", Pools: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}})
		},
	} {
		r := RoutedRules()
		change(&r)
		c.open(r)
		c.haveMapped(20, append(one, two...))
	}
	if c.Epoch() != epoch {
		c.Errorf("epoch %d, want %d", c.Epoch(), epoch)
	}
}

func (c *contract) forgottenMappings() {
	r := RoutedRules()
	c.open(r)
	one, two := Mappings("r-one", 0, 10, 0), Mappings("r-two", 10, 10, 0)
	c.maps(append(one, two...))
	epoch := c.Epoch()
	rises := func() {
		c.Helper()
		if c.Epoch() <= epoch {
			c.Errorf("epoch %d, and it was %d", c.Epoch(), epoch)
		}
		epoch = c.Epoch()
	}

	without := r
	without.Routes = r.Routes[:1]
	c.open(without)
	c.haveMapped(10, one)
	rises()
	if err := c.Map(c.Context(), two, time.Minute); !errors.Is(err, backend.ErrRoute) {
		c.Errorf("got %v, want ErrRoute", err)
	}
	rehomed := Mappings("r-one", 10, 10, 0)
	c.maps(rehomed)
	c.haveMapped(20, append(one, rehomed...))
	c.open(r)
	c.maps(two)
	c.haveMapped(20, append(one, two...))

	other := r
	other.Book = "b2"
	c.open(other)
	c.haveMapped(0, nil)
	rises()
	c.maps(one)
	c.haveMapped(10, one)

	none := r
	none.Routes = nil
	c.open(none)
	c.haveMapped(0, nil)
	rises()
	c.open(r)
	c.haveMapped(0, nil)
	c.maps(two)
	c.haveMapped(10, two)
}

func (c *contract) origins() {
	have := func(want ...backend.Origin) {
		c.Helper()
		got, err := c.Origins(Rules().Table)
		slices.SortFunc(got, func(a, b backend.Origin) int { return a.Pool.Compare(b.Pool) })
		if err != nil || !slices.Equal(got, want) {
			c.Errorf("the origins are %v, %v, want %v", got, err, want)
		}
	}
	have()
	r := RoutedRules()
	one, two, three := backend.Origin{Book: "b1", Pool: r.Routes[0].Pools[0]}, backend.Origin{Book: "b1", Pool: r.Routes[0].Pools[1]}, backend.Origin{Book: "b2", Pool: r.Routes[0].Pools[1]}
	gone := one
	gone.Gone = true
	for _, origins := range [][]backend.Origin{{one}, {one, two}, {gone, two}, {one, three}} {
		r.Origins = origins
		c.open(r)
		have(origins...)
	}
	r.Routes = nil
	c.open(r)
	have(one, three)
	r.Origins = nil
	c.open(r)
	have()
}

func (c *contract) granted() {
	c.open(RoutedRules())
	mappings := Mappings("r-one", 0, 20, 0)
	c.maps(mappings)
	behind := map[netip.Addr]netip.Addr{}
	for _, m := range mappings {
		behind[m.Mapped] = m.Real
	}
	if err := c.Mapped(c.Context(), func(mapped, real netip.Addr) {
		if behind[mapped] != real {
			c.Errorf("%v leads to %v, want %v", mapped, real, behind[mapped])
		}
		delete(behind, mapped)
	}); err != nil {
		c.Error(err)
	}
	if len(behind) > 0 {
		c.Errorf("mapped as well: %v", behind)
	}
	c.grant(in(time.Hour), append(mappedOf(mappings[:10]), Addrs(100, 5)...)...)
	left := map[netip.Addr]bool{}
	for _, a := range mappedOf(mappings[:10]) {
		left[a] = true
	}
	if err := c.Granted(c.Context(), func(mapped netip.Addr) {
		if !left[mapped] {
			c.Errorf("%v: not granted, not mapped, or twice", mapped)
		}
		delete(left, mapped)
	}); err != nil {
		c.Error(err)
	}
	if len(left) > 0 {
		c.Errorf("granted as well: %v", left)
	}
}

func (c *contract) mapAfterClose() {
	c.open(RoutedRules())
	c.maps(Mappings("r-one", 0, 10, 0))
	if err := c.Close(backend.Keep); err != nil {
		c.Error(err)
	}
	for method, err := range map[string]error{
		"Map": c.Map(c.Context(), Mappings("r-one", 0, 1, 0), time.Minute), "Unmap": c.Unmap(context.Background(), nil),
		"Connections": c.Connections(c.Context(), func(netip.Addr, netip.Addr) bool { return false }),
		"Granted":     c.Granted(c.Context(), func(netip.Addr) {}),
		"Mapped":      c.Mapped(c.Context(), func(netip.Addr, netip.Addr) {}),
	} {
		if !errors.Is(err, backend.ErrClosed) {
			c.Errorf("%s after Close: %v, want ErrClosed", method, err)
		}
	}
	c.Epoch()
}
