package nft

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/fake"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

var client = backend.ClientScope(netip.MustParseAddr("172.16.0.2"))

// limited are the contract's rules with these limits.
func limited(set, client, name int) backend.Rules {
	r := backendtest.ScopedRules()
	r.MaxGrants, r.MaxGrantsClient, r.MaxGrantsName = set, client, name
	return r
}

// clientKeys are so many keys of the client.
func clientKeys(first, n int) (keys []backend.Key) {
	for i := range n {
		keys = append(keys, client.Key(backendtest.Addrs(2*(first+i), 1)[0]))
	}
	return keys
}

// ask asks for a client's grants in one call.
func (g *guarded) ask(name uint64, keys ...backend.Key) error {
	var grants []backend.Grant
	for _, k := range keys {
		grant := k.Grant(time.Now().Add(time.Hour))
		grant.Name = name
		grants = append(grants, grant)
	}
	return g.Grant(g.Context(), grants, time.Minute)
}

func (g *guarded) give(name uint64, keys ...backend.Key) {
	g.Helper()
	if err := g.ask(name, keys...); err != nil {
		g.Error(err)
	}
}

// stand fails the test unless these are all the grants that stand in the table and in
// the kernel.
func (g *guarded) stand(keys ...backend.Key) {
	g.Helper()
	list, err := g.List()
	if err != nil {
		g.Fatal(err)
	}
	var listed, known []backend.Key
	for _, grant := range list {
		listed = append(listed, grant.Key())
	}
	for k := range g.inForce.All() {
		known = append(known, k)
	}
	byAddr := func(k, l backend.Key) int {
		return cmp.Or(k.Addr().Compare(l.Addr()), cmp.Compare(k.Holder, l.Holder), cmp.Compare(k.Class, l.Class), bytes.Compare(k.ID[:], l.ID[:]))
	}
	for _, all := range []*[]backend.Key{&listed, &known, &keys} {
		*all = slices.SortedFunc(slices.Values(*all), byAddr)
	}
	if !slices.Equal(listed, keys) || !slices.Equal(known, keys) {
		g.Errorf("in the kernel %v, in the table %v, want %v", addrsOf(listed), addrsOf(known), addrsOf(keys))
	}
	g.counted()
}

func addrsOf(keys []backend.Key) (all []netip.Addr) {
	for _, k := range keys {
		all = append(all, k.Addr())
	}
	return all
}

// counted fails the test unless the writer counts what is in the table.
func (g *guarded) counted() {
	g.Helper()
	_ = g.do(func(w *writer) error {
		var want live
		holders := map[uint32]int{}
		for k := range w.inForce.All() {
			want.count(&k, 1)
			holders[w.accounts(&k, 0)[expiry.Holder]]++
		}
		if w.live != want {
			g.Errorf("%d IPv4 and %d IPv6 grants are counted, want %d and %d, or sets are wrong", w.live.v4, w.live.v6, want.v4, want.v6)
		}
		for account, n := range holders {
			if got := w.inForce.Count(expiry.Holder, account); got != n {
				g.Errorf("%d grants of one holder are counted, want %d", got, n)
			}
		}
		return nil
	})
}

// counts is a diary that counts what has ended.
type counts struct {
	diary
	expired, evicted int
}

func (c *counts) Expired(n int) { c.mu.Lock(); defer c.mu.Unlock(); c.expired += n }
func (c *counts) Evicted(n int) { c.mu.Lock(); defer c.mu.Unlock(); c.evicted += n }

func (c *counts) are(expired, evicted int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.expired == expired && c.evicted == evicted
}

// openCounted opens a backend whose ends are counted.
func openCounted(t *testing.T, make func(*testing.T, backend.Observer) *Backend, rules backend.Rules) (*guarded, *counts) {
	t.Helper()
	c := &counts{}
	g := &guarded{t, make(t, c), &c.diary}
	if err := g.Open(rules); err != nil {
		t.Fatal(err)
	}
	return g, c
}

func TestEvictedAreCounted(t *testing.T) {
	g, c := openCounted(t, observed, limited(100, 10, 4))
	g.give(0, clientKeys(0, 10)...)
	g.give(1, clientKeys(10, 3)...)
	g.give(1, clientKeys(13, 2)...)
	if !c.are(0, 5) {
		t.Errorf("%d have expired, %d were evicted, want 0 and 5", c.expired, c.evicted)
	}
	g.stand(append(clientKeys(4, 6), clientKeys(11, 4)...)...)
	short := clientKeys(20, 1)[0].Grant(time.Now().Add(time.Second))
	if err := g.Grant(t.Context(), []backend.Grant{short}, time.Minute); err != nil {
		t.Fatal(err)
	}
	backendtest.Eventually(t, "the last one expires", func() bool { return c.are(1, 6) })
	g.stand(append(clientKeys(5, 5), clientKeys(11, 4)...)...)
	if c.count("failed") > 0 {
		t.Error(c.lines)
	}
}

// What fits each by itself and not together is done one after the other; what does not
// fit at all fails alone, and ends nothing.
func TestTooManyTogether(t *testing.T) {
	g, c := openCounted(t, observed, limited(100, 6, 0))
	other := backend.ClientScope(netip.MustParseAddr("172.16.0.3"))
	others := []backend.Key{other.Key(backendtest.Addrs(0, 1)[0])}
	g.give(0, others...)
	g.turn.Lock()
	var waiting sync.WaitGroup
	ask := func(want error, keys ...backend.Key) {
		waiting.Go(func() {
			if err := g.ask(0, keys...); !errors.Is(err, want) {
				t.Errorf("%d at once: %v, want %v", len(keys), err, want)
			}
		})
	}
	ask(backend.ErrFull, clientKeys(100, 7)...)
	for i := range 10 {
		ask(nil, clientKeys(3*i, 3)...)
	}
	ask(nil, others...)
	backendtest.Eventually(t, "all wait", func() bool {
		g.Backend.mu.Lock()
		defer g.Backend.mu.Unlock()
		return len(g.pending) == 12
	})
	g.endTurn()
	waiting.Wait()
	list, err := g.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 7 {
		t.Errorf("%d grants, want 6 of the one and 1 of the other", len(list))
	}
	g.counted()
	if !c.are(0, 24) || c.count("failed") > 0 {
		t.Errorf("%d have expired, %d were evicted, %v", c.expired, c.evicted, c.lines)
	}
}

// A transaction that fails after something has had to make room leaves nothing in the
// kernel of which the table does not know.
func TestEvictedAndThenRefused(t *testing.T) {
	g, c := openCounted(t, ownerless, limited(4, 3, 0))
	g.give(0, clientKeys(0, 3)...)
	foreignGrant(t, clientKeys(9, 1)[0]) // the set is full, and nobody knows
	everyones := backend.Scope{}.Key(backendtest.Addrs(0, 1)[0])
	g.give(0, everyones)
	g.give(0, clientKeys(3, 1)...)                              // one for one
	g.give(0, append(clientKeys(2, 2), clientKeys(4, 1)...)...) // and with two that stay
	_ = g.do(func(w *writer) error { w.rules.MaxGrantsClient = 4; return nil })
	if err := g.ask(0, clientKeys(20, 1)...); !errors.Is(err, backend.ErrFull) || !c.are(0, 2) {
		t.Errorf("%v, %d were evicted, want the kernel's no, and 2", err, c.evicted)
	}
	if err := g.ask(0, clientKeys(30, 4)...); !errors.Is(err, backend.ErrFull) || !c.are(0, 5) { // three for four
		t.Errorf("%v, %d were evicted, want the kernel's no, and 5", err, c.evicted)
	}
	backendtest.Eventually(t, "what has had to make room has left", func() bool { return len(list(g)) == 2 })
	for _, k := range clientKeys(2, 3) {
		if until, _ := g.inForce.Lookup(k); !until.IsZero() {
			t.Errorf("%v is in the table until %v", k.Addr(), until)
		}
	}
	g.counted()
	g.give(0, clientKeys(40, 3)...)
}

// foreignGrant adds a grant as somebody else would.
func foreignGrant(t *testing.T, k backend.Key) {
	t.Helper()
	set := newGrantSets(limited(100, 3, 0))[setOf(&k)]
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		if err := c.SetAddElements(named(set.name, table), []nftables.SetElement{{Key: set.appendKey(nil, &k), Timeout: time.Hour}}); err != nil {
			t.Fatal(err)
		}
	})
}

// What makes room and has gone already, by somebody else's hand, is no obstacle.
func TestEvictedIsGoneAlready(t *testing.T) {
	g := open(t, ownerless, limited(100, 3, 0))
	g.give(0, clientKeys(0, 3)...)
	k := clientKeys(0, 1)[0]
	set := newGrantSets(limited(100, 3, 0))[setOf(&k)]
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		if err := c.SetDeleteElements(named(set.name, table), []nftables.SetElement{{Key: set.appendKey(nil, &k)}}); err != nil {
			t.Fatal(err)
		}
	})
	g.give(0, clientKeys(3, 1)...)
	g.stand(clientKeys(1, 3)...)
}

// What is put back after a flush counts for its name as before.
func TestRestoredGrantsCount(t *testing.T) {
	g := open(t, ownerless, limited(100, 20, 4))
	for name := range uint64(3) {
		g.give(name, clientKeys(int(name)*10, 4)...)
	}
	g.give(2, clientKeys(10, 1)...) // of name 1, and now of none
	all := slices.Concat(clientKeys(0, 4), clientKeys(10, 4), clientKeys(20, 4))
	foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	backendtest.Eventually(t, "it is noticed", func() bool { return g.count("repaired") > 0 })
	backendtest.Eventually(t, "all is back", g.enforcing)
	g.stand(all...)
	g.give(2, clientKeys(24, 4)...)
	g.stand(slices.Concat(clientKeys(0, 4), clientKeys(10, 4), clientKeys(24, 4))...)
	g.give(1, clientKeys(14, 4)...)
	g.stand(slices.Concat(clientKeys(0, 4), clientKeys(10, 1), clientKeys(14, 4), clientKeys(24, 4))...)

	// Of the client, too, the first to go is the one that was before.
	g.give(0, clientKeys(40, 7)...)
	g.give(0, clientKeys(0, 1)...)
	foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	backendtest.Eventually(t, "it is noticed", func() bool { return !g.enforcing() || g.count("repaired") > 1 })
	backendtest.Eventually(t, "all is back", g.enforcing)
	g.give(0, clientKeys(50, 4)...)
	g.stand(slices.Concat(clientKeys(0, 1), clientKeys(14, 4), clientKeys(24, 4), clientKeys(40, 7), clientKeys(50, 4))...)
}

// What does not fit any more when it is put back ends, and the rest is in force.
func TestRestoredGrantsFit(t *testing.T) {
	g, c := openCounted(t, observed, limited(1000, 0, 0))
	g.give(0, clientKeys(0, 500)...)
	if err := g.Open(limited(10, 0, 0)); err != nil { // a set of another size is another set
		t.Fatal(err)
	}
	backendtest.Eventually(t, "all is in force", func() bool { return g.enforcing() && len(list(g)) == 10 })
	if !c.are(0, 490) {
		t.Errorf("%d have expired, %d were evicted, want 0 and 490", c.expired, c.evicted)
	}
	g.counted()
	g.give(0, clientKeys(1000, 10)...)
	g.stand(clientKeys(1000, 10)...)
}

func list(g *guarded) []backend.Grant {
	g.Helper()
	list, err := g.List()
	if err != nil {
		g.Fatal(err)
	}
	return list
}

// What an earlier process has granted counts for its holder.
func TestAdoptedGrantsCount(t *testing.T) {
	rules := limited(100, 5, 3)
	g := open(t, observed, rules)
	g.give(1, clientKeys(0, 3)...)
	g.give(2, clientKeys(10, 2)...)
	if err := g.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	g = open(t, observed, rules)
	backendtest.Eventually(t, "the grants of before are known", func() bool {
		n := 0
		for range g.inForce.All() {
			n++
		}
		return n == 5
	})
	g.counted()
	g.give(1, clientKeys(10, 2)...) // which are for no name now
	g.give(1, clientKeys(20, 3)...)
	g.stand(append(clientKeys(10, 2), clientKeys(20, 3)...)...)
	g.give(1, clientKeys(23, 3)...)
	g.stand(append(clientKeys(10, 2), clientKeys(23, 3)...)...)
}

// What was read back, and has had to make room since, is not taken for what stands.
func TestAdoptionOfWhatHasMadeRoom(t *testing.T) {
	g := open(t, observed, limited(100, 3, 0))
	g.give(0, clientKeys(0, 2)...)
	g.give(0, clientKeys(2, 3)...)
	var part []element
	for _, k := range append(clientKeys(0, 5), clientKeys(50, 1)...) {
		part = append(part, element{k, time.Hour})
	}
	_ = g.do(func(w *writer) error { w.adoptPart(part, time.Now(), true); return nil })
	g.stand(clientKeys(2, 3)...)
}

// When holders are not known any more, nothing is counted for them.
func TestForgottenGrantsDoNotCount(t *testing.T) {
	rules := limited(100, 5, 3)
	g := open(t, observed, rules)
	for range 3 {
		g.give(1, clientKeys(0, 2)...)
		g.give(2, clientKeys(10, 3)...)
		g.give(2, backend.Scope{}.Key(backendtest.Addrs(0, 1)[0]))
		g.counted()
		everyones := rules
		everyones.GatewayHolders = []backend.Holder{backend.Everyone}
		if err := g.Open(everyones); err != nil {
			t.Fatal(err)
		}
		g.stand(backend.Scope{}.Key(backendtest.Addrs(0, 1)[0]))
		if err := g.Open(rules); err != nil {
			t.Fatal(err)
		}
	}
	g.give(1, clientKeys(20, 3)...)
	g.give(2, clientKeys(30, 2)...)
	g.stand(slices.Concat(clientKeys(20, 3), clientKeys(30, 2), []backend.Key{backend.Scope{}.Key(backendtest.Addrs(0, 1)[0])})...)
}

// Whatever is asked for, the kernel has what the fake has, which looks at all grants to
// find out which has to go.
func TestLimitsAreAsInTheFake(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			rules := func() backend.Rules {
				set := 6 + random.IntN(10)
				return limited(set, 3+random.IntN(8), 1+random.IntN(4))
			}
			r := rules()
			g := open(t, observed, r)
			same := fake.New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{}, time.Now)
			if err := same.Open(r); err != nil {
				t.Fatal(err)
			}
			var refused, granted int
			for step := range 800 {
				if random.IntN(200) == 0 { // the size of the sets stays, or they would lose some that nobody can foretell
					set := r.MaxGrants
					r = rules()
					r.MaxGrants = set
					if err := errors.Join(g.Open(r), same.Open(r)); err != nil {
						t.Fatal(err)
					}
				}
				scopes := backendtest.Scopes()
				scope := scopes[random.IntN(len(scopes))]
				var grants []backend.Grant
				until := time.Now().Add(time.Hour)
				for range 1 + random.IntN(4)*random.IntN(2) {
					grant := backend.Grant{Scope: scope, Until: until, Name: uint64(random.IntN(4))}
					for grant.Addr = backendtest.Addrs(random.IntN(30), 1)[0]; !grant.CanReach(grant.Addr); {
						grant.Addr = backendtest.Addrs(random.IntN(30), 1)[0]
					}
					grants = append(grants, grant)
				}
				got, want := g.Grant(t.Context(), grants, time.Minute), same.Grant(t.Context(), grants, time.Minute)
				if !errors.Is(got, want) {
					t.Fatalf("step %d: %v: %v, want %v", step, grants, got, want)
				}
				if want != nil {
					refused++
				} else {
					granted++
				}
				if step%10 == 0 {
					list, err := same.List()
					if err != nil {
						t.Fatal(err)
					}
					var keys []backend.Key
					for _, grant := range list {
						keys = append(keys, grant.Key())
					}
					if g.stand(keys...); t.Failed() {
						t.Fatalf("after step %d: %v", step, grants)
					}
				}
			}
			t.Logf("%d granted, %d refused", granted, refused)
		})
	}
}
