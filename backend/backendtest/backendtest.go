// Package backendtest is the contract that every backend passes.
package backendtest

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// Quiet is an observer that nobody listens to.
type Quiet struct{}

var _ backend.Observer = Quiet{}

// Committed implements [backend.Observer].
func (Quiet) Committed(made, renewed, removed int, took time.Duration) {}

// Expired implements [backend.Observer].
func (Quiet) Expired(n int) {}

// Evicted implements [backend.Observer].
func (Quiet) Evicted(n int) {}

// Failed implements [backend.Observer].
func (Quiet) Failed(op string, err error) {}

// Live implements [backend.Observer].
func (Quiet) Live(ipv4, ipv6 int) {}

// Repaired implements [backend.Observer].
func (Quiet) Repaired(what string) {}

// Withstood implements [backend.Observer].
func (Quiet) Withstood() {}

// Enforcing implements [backend.Observer].
func (Quiet) Enforcing(on bool) {}

// Eventually fails the test unless holds becomes true. What is waited for takes a
// second or two; only a test that fails waits for long.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

// A clause is one thing that a backend promises.
type clause struct {
	name string
	test func(*contract)
}

var clauses = []clause{
	{"check changes nothing", (*contract).checkChangesNothing},
	{"a grant before open waits and gives up with the context, or when it is late", (*contract).grantBeforeOpenGivesUp},
	{"a grant before open is in force after open", (*contract).grantBeforeOpenIsServed},
	{"grants are in force and listed", (*contract).grantsAreInForce},
	{"no grants are in force at once", (*contract).noGrants},
	{"a grant never gets shorter", (*contract).neverShorter},
	{"a grant gets longer", (*contract).longer},
	{"an address twice in one call lasts as long as the longer", (*contract).duplicates},
	{"many at once", (*contract).concurrent},
	{"many in one call", (*contract).manyInOneCall},
	{"a grant in the past opens nothing", (*contract).past},
	{"a tiny life ends", (*contract).tinyLife},
	{"what has run out leaves", (*contract).expires},
	{"an address comes back after it has run out", (*contract).comesBack},
	{"open again keeps the grants", (*contract).openAgain},
	{"open with another table is refused", (*contract).openOtherTable},
	{"holders are kept apart", (*contract).holders},
	{"nobody has a grant whom the rules do not know", (*contract).unknownHolders},
	{"grants end with the rules for their holders", (*contract).forgottenHolders},
	{"classes are kept", (*contract).keptClasses},
	{"close and keep", (*contract).closeKeep},
	{"close and remove", (*contract).closeRemove},
	{"close before open", (*contract).closeBeforeOpen},
	{"close with calls in flight", (*contract).closeInFlight},
}

// Run tests what a backend promises. Each call of newBackend makes one that is
// not open yet, on top of nothing that an earlier one has left.
func Run(t *testing.T, newBackend func(t *testing.T) (backend.Backend, *backend.InForce)) {
	for _, clause := range slices.Concat(clauses, limitClauses) {
		t.Run(clause.name, func(t *testing.T) {
			goroutines := runtime.NumGoroutine()
			b, inForce := newBackend(t)
			clause.test(&contract{T: t, Backend: b, inForce: inForce})
			if err := b.Close(backend.Remove); err != nil {
				t.Errorf("close: %v", err)
			}
			Eventually(t, "as few goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
		})
	}
}

var everyone = []backend.Holder{backend.Everyone}

// Rules are what the contract opens a backend with.
func Rules() backend.Rules {
	return backend.Rules{
		Table: "backendtest", Local: true, Gateway: true,
		LocalHolders: everyone, GatewayHolders: everyone, Interfaces: []string{"lan0"}, MaxGrants: 1 << 16,
		Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	}
}

// Addrs returns so many addresses, IPv4 and IPv6 by turns, the same ones for the
// same first.
func Addrs(first, n int) []netip.Addr {
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		k := first + i
		a, b, c := byte(k>>16), byte(k>>8), byte(k)
		if k%2 == 0 {
			addrs[i] = netip.AddrFrom4([4]byte{10, a, b, c})
		} else {
			addrs[i] = netip.AddrFrom16([16]byte{0: 0xfd, 13: a, 14: b, 15: c})
		}
	}
	return addrs
}

// Grants makes a grant for each address.
func Grants(until time.Time, addrs ...netip.Addr) []backend.Grant {
	grants := make([]backend.Grant, len(addrs))
	for i, a := range addrs {
		grants[i] = backend.Grant{Addr: a, Until: until}
	}
	return grants
}

// contract is one clause at work.
type contract struct {
	*testing.T
	backend.Backend
	inForce *backend.InForce

	backend.Router // nil, unless it is about routers
	mapped         func() map[netip.Addr]backend.Mapping
}

func (c *contract) open(r backend.Rules) {
	c.Helper()
	if err := c.Open(r); err != nil {
		c.Fatalf("open: %v", err)
	}
}

func (c *contract) grant(until time.Time, addrs ...netip.Addr) {
	c.Helper()
	if err := c.Grant(c.Context(), Grants(until, addrs...), time.Minute); err != nil {
		c.Errorf("grant: %v", err)
	}
}

// listed returns what the enforcer has, by address.
func (c *contract) listed() map[netip.Addr]time.Time {
	c.Helper()
	list, err := c.List()
	if err != nil {
		c.Fatalf("list: %v", err)
	}
	listed := make(map[netip.Addr]time.Time, len(list))
	for _, g := range list {
		listed[g.Addr] = g.Until
	}
	return listed
}

// kernelClock is how coarsely kernels count the life of a grant.
const kernelClock = 20 * time.Millisecond

// lasts fails the test unless each address is in force and listed until then, and
// listed not for much longer.
func (c *contract) lasts(until time.Time, addrs ...netip.Addr) {
	c.Helper()
	c.covered(until, addrs...)
	listed := c.listed()
	for _, a := range addrs {
		got, ok := listed[a]
		if !ok || got.Before(until.Add(-kernelClock)) || got.After(until.Add(time.Minute)) {
			c.Errorf("%v is listed until %v (%v), want %v", a, got, ok, until)
		}
	}
}

func (c *contract) covered(until time.Time, addrs ...netip.Addr) {
	c.Helper()
	for _, a := range addrs {
		if !c.inForce.Covers(backend.KeyOf(a), until.Add(-expiry.Removal)) {
			c.Errorf("%v is not in force until %v", a, until)
		}
	}
}

func (c *contract) gone(addrs ...netip.Addr) {
	c.Helper()
	Eventually(c.T, "the grants have left", func() bool {
		listed := c.listed()
		return !slices.ContainsFunc(addrs, func(a netip.Addr) bool {
			until, _ := c.inForce.Lookup(backend.KeyOf(a))
			_, there := listed[a]
			return there || !until.IsZero()
		})
	})
}

func in(d time.Duration) time.Time { return time.Now().Add(d) }

var errEnough = errors.New("waited long enough")

func enough(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, 50*time.Millisecond, errEnough)
}

func (c *contract) checkChangesNothing() {
	if err := c.Check(Rules()); err != nil {
		c.Fatalf("check: %v", err)
	}
	ctx, cancel := enough(c.Context())
	defer cancel()
	if err := c.Grant(ctx, Grants(in(time.Hour), Addrs(0, 1)...), time.Minute); err != errEnough {
		c.Errorf("a grant after check: %v", err)
	}
	c.open(Rules())
	until := in(time.Hour)
	c.grant(until, Addrs(10, 2)...)
	other := Rules()
	other.Gateway, other.MaxGrants = false, 1
	if err := c.Check(other); err != nil {
		c.Fatalf("check: %v", err)
	}
	c.lasts(until, Addrs(10, 2)...)
	c.grant(until, Addrs(20, 10)...) // as many as the rules in force allow
}

func (c *contract) grantBeforeOpenGivesUp() {
	ctx, cancel := enough(c.Context())
	defer cancel()
	if err := c.Grant(ctx, Grants(in(time.Hour), Addrs(0, 1)...), time.Minute); err != errEnough {
		c.Errorf("got %v, want the context's cause", err)
	}
	if err := c.Grant(c.Context(), Grants(in(time.Hour), Addrs(0, 1)...), 50*time.Millisecond); err != backend.ErrLate {
		c.Errorf("got %v, want ErrLate", err)
	}
	if until, _ := c.inForce.Lookup(backend.KeyOf(Addrs(0, 1)[0])); !until.IsZero() {
		c.Error("it is in force")
	}
}

func (c *contract) grantBeforeOpenIsServed() {
	until := in(time.Hour)
	var waiting sync.WaitGroup
	waiting.Go(func() { c.grant(until, Addrs(0, 4)...) })
	c.open(Rules())
	waiting.Wait()
	c.lasts(until, Addrs(0, 4)...)
}

func (c *contract) grantsAreInForce() {
	c.open(Rules())
	until := in(time.Hour)
	c.grant(until, Addrs(0, 10)...)
	c.lasts(until, Addrs(0, 10)...)
	if n := len(c.listed()); n != 10 {
		c.Errorf("%d grants are listed, want 10", n)
	}
}

func (c *contract) noGrants() {
	c.open(Rules())
	c.grant(in(time.Hour))
	if listed := c.listed(); len(listed) > 0 {
		c.Errorf("listed: %v", listed)
	}
}

func (c *contract) neverShorter() {
	c.open(Rules())
	addrs := Addrs(0, 2)
	until := in(time.Hour)
	c.grant(until, addrs...)
	c.grant(in(time.Minute), addrs...)
	c.grant(in(-time.Minute), addrs...)
	c.lasts(until, addrs...)
}

func (c *contract) longer() {
	c.open(Rules())
	addrs := Addrs(0, 2)
	for _, life := range []time.Duration{time.Minute, time.Minute + time.Second, 24 * time.Hour} {
		until := in(life)
		c.grant(until, addrs...)
		c.lasts(until, addrs...)
	}
}

func (c *contract) duplicates() {
	c.open(Rules())
	until := in(time.Hour)
	var grants []backend.Grant
	for _, a := range Addrs(0, 20) {
		for _, u := range []time.Time{in(time.Minute), until, in(time.Second)} {
			grants = append(grants, backend.Grant{Addr: a, Until: u})
		}
	}
	if err := c.Grant(c.Context(), grants, time.Minute); err != nil {
		c.Fatal(err)
	}
	c.lasts(until, Addrs(0, 20)...)
}

func (c *contract) concurrent() {
	c.open(Rules())
	const callers, calls = 32, 50
	until := in(time.Hour)
	var wait sync.WaitGroup
	for caller := range callers {
		wait.Go(func() {
			for call := range calls {
				everybodys := Addrs(call, 2)
				own := Addrs(1000+caller*calls+call, 1)
				c.grant(until, append(everybodys, own...)...)
				c.covered(until, append(everybodys, own...)...)
			}
		})
	}
	wait.Wait()
	c.lasts(until, Addrs(0, calls)...)
	c.lasts(until, Addrs(1000, callers*calls)...)
}

func (c *contract) manyInOneCall() {
	c.open(Rules())
	until := in(time.Hour)
	c.grant(until, Addrs(0, 20000)...)
	c.lasts(until, Addrs(0, 20000)...)
}

func (c *contract) past() {
	c.open(Rules())
	c.grant(in(-time.Hour), Addrs(0, 2)...)
	for _, a := range Addrs(0, 2) {
		if c.inForce.Covers(backend.KeyOf(a), time.Now()) {
			c.Errorf("%v is in force", a)
		}
	}
	if listed := c.listed(); len(listed) > 0 {
		c.Errorf("listed: %v", listed)
	}
}

func (c *contract) tinyLife() {
	c.open(Rules())
	for i, life := range []time.Duration{1, time.Microsecond, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond} {
		c.grant(in(life), Addrs(2*i, 2)...)
	}
	c.gone(Addrs(0, 10)...)
}

func (c *contract) expires() {
	c.open(Rules())
	c.grant(in(time.Hour), Addrs(100, 2)...)
	until := in(700 * time.Millisecond)
	c.grant(until, Addrs(0, 50)...)
	c.gone(Addrs(0, 50)...)
	if now := time.Now(); now.Before(until.Add(-expiry.Removal)) {
		c.Errorf("they left %v early", until.Sub(now))
	}
	if n := len(c.listed()); n != 2 {
		c.Errorf("%d grants are listed, want the 2 that live", n)
	}
}

func (c *contract) comesBack() {
	c.open(Rules())
	addrs := Addrs(0, 2)
	for range 3 {
		c.grant(in(300*time.Millisecond), addrs...)
		c.gone(addrs...)
	}
	until := in(time.Hour)
	c.grant(until, addrs...)
	c.lasts(until, addrs...)
}

func (c *contract) openAgain() {
	c.open(Rules())
	until := in(time.Hour)
	c.grant(until, Addrs(0, 10)...)
	for _, change := range []func(*backend.Rules){
		func(*backend.Rules) {},
		func(r *backend.Rules) { r.Allowed = nil },
		func(r *backend.Rules) { r.Interfaces = nil },
		func(r *backend.Rules) { r.Gateway, r.Interfaces = false, nil },
		func(r *backend.Rules) { r.Local = false },
	} {
		r := Rules()
		change(&r)
		c.open(r)
		c.lasts(until, Addrs(0, 10)...)
	}
	c.grant(until, Addrs(10, 10)...)
	c.lasts(until, Addrs(0, 20)...)
}

func (c *contract) openOtherTable() {
	c.open(Rules())
	until := in(time.Hour)
	c.grant(until, Addrs(0, 2)...)
	other := Rules()
	other.Table = "other"
	if err := c.Open(other); err == nil {
		c.Error("opened")
	}
	c.lasts(until, Addrs(0, 2)...)
}

// closed fails the test unless every method says that the backend is closed.
func (c *contract) closed() {
	c.Helper()
	_, list := c.List()
	for method, err := range map[string]error{
		"Check": c.Check(Rules()), "Open": c.Open(Rules()), "List": list,
		"Grant":         c.Grant(c.Context(), Grants(in(time.Hour), Addrs(0, 1)...), time.Minute),
		"Grant of none": c.Grant(c.Context(), nil, time.Minute),
	} {
		if !errors.Is(err, backend.ErrClosed) {
			c.Errorf("%s after Close: %v, want ErrClosed", method, err)
		}
	}
	if err := errors.Join(c.Close(backend.Keep), c.Close(backend.Remove)); err != nil {
		c.Errorf("closed again: %v", err)
	}
}

func (c *contract) closeKeep() {
	c.open(Rules())
	c.grant(in(2*time.Second), Addrs(0, 2)...)
	if err := c.Close(backend.Keep); err != nil {
		c.Error(err)
	}
	c.closed()
}

func (c *contract) closeRemove() {
	c.open(Rules())
	c.grant(in(time.Hour), Addrs(0, 2)...)
	if err := c.Close(backend.Remove); err != nil {
		c.Error(err)
	}
	c.closed()
}

func (c *contract) closeBeforeOpen() {
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	waiting := make(chan error)
	go func() { waiting <- c.Grant(ctx, Grants(in(time.Hour), Addrs(0, 1)...), time.Minute) }()
	if err := c.Close(backend.Remove); err != nil {
		c.Error(err)
	}
	if err := <-waiting; !errors.Is(err, backend.ErrClosed) {
		c.Errorf("a grant that waited: %v, want ErrClosed", err)
	}
	c.closed()
}

func (c *contract) closeInFlight() {
	c.open(Rules())
	var calling, ended sync.WaitGroup
	for caller := range 16 {
		calling.Add(1)
		ended.Go(func() {
			for call := 0; ; call++ {
				err := c.Grant(c.Context(), Grants(in(time.Hour), Addrs(caller*1000+call%1000, 1)...), time.Minute)
				if call == 0 {
					calling.Done()
				}
				if err == nil {
					continue
				}
				if !errors.Is(err, backend.ErrClosed) {
					c.Errorf("a grant in flight: %v", err)
				}
				return
			}
		})
	}
	calling.Wait()
	for range 4 {
		ended.Go(func() {
			if err := c.Close(backend.Remove); err != nil {
				c.Errorf("close: %v", err)
			}
		})
	}
	ended.Wait()
	c.closed()
}
