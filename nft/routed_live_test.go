package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// talks fails the test unless all connections work, or none.
func (n *network) talks(want bool, conns ...net.Conn) {
	n.Helper()
	for _, c := range conns {
		say := echo
		if !want {
			say = echoSoon
		}
		if err := say(c); (err == nil) != want {
			n.Errorf("%v to %v: %v", c.LocalAddr(), c.RemoteAddr(), err)
		}
	}
}

// both protocols.
func (n *network) dialsBoth(from speaker, addrs ...string) []net.Conn {
	n.Helper()
	return append(n.dials(from, "tcp", addrs...), n.dials(from, "udp", addrs...)...)
}

// New connections follow a mapping, those that live stay where they are; they end when
// somebody ends them, and never meet who comes after.
func TestRoutedLiveConnections(t *testing.T) {
	for _, path := range []string{"forwarded", "local"} {
		t.Run(path, func(t *testing.T) {
			n := routedNetwork(t)
			n.guard(routedRules(t))
			defer n.dump()
			s := n.senders()[path]
			n.mapTo("one", 1, 1)
			n.mapTo("one", 2, 1)
			n.openMapped(1, s.holder)
			n.openMapped(2, s.holder)
			first, beside := n.dialsBoth(s, toMapped(1, 443)...), n.dialsBoth(s, toMapped(2, 443)...)

			n.mapTo("two", 1, 2)
			n.seen(s, 1, 2, egressTwo4, egressTwo6)
			second := n.dialsBoth(s, toMapped(1, 443)...)
			n.talks(true, append(first, second...)...)

			visited := n.connections(nil)
			m4, m6 := mappedAddrs(1)
			b4, b6 := mappedAddrs(2)
			for number, mapped := range [][]netip.Addr{1: {m4, m6}, 2: {m4, m6}} {
				r4, r6 := addrs(number)
				for i, real := range []netip.Addr{r4, r6} {
					if mapped != nil && visited[[2]netip.Addr{mapped[i], real}] < 2 {
						t.Errorf("of %v to %v: %d", mapped[i], real, visited[[2]netip.Addr{mapped[i], real}])
					}
				}
			}
			if r4, _ := addrs(1); visited[[2]netip.Addr{b4, r4}] != 2 {
				t.Errorf("of %v: %v", b4, visited)
			}

			// Only those to what has gone.
			r4, r6 := addrs(1)
			n.connections(func(mapped, real netip.Addr) bool {
				return (mapped == m4 || mapped == m6) && (real == r4 || real == r6)
			})
			n.talks(true, second...)
			n.talks(true, beside...)
			for i, c := range first {
				if i < 2 { // TCP: what the next one behind it knows nothing of
					n.talks(false, c)
				}
			}

			n.unmap(1)
			n.refused(s, toMapped(1, whoPort)...)
			n.talks(true, second...)
			n.connections(func(mapped, _ netip.Addr) bool { return mapped == m4 || mapped == m6 })
			n.talks(false, second...)
			n.talks(true, beside...)
			for pair := range n.connections(nil) {
				if pair[0] != b4 && pair[0] != b6 {
					t.Errorf("still there: %v", pair)
				}
			}

			// Another name has the address now.
			n.mapTo("two", 1, 3)
			n.talks(false, first[:2]...)
			n.talks(false, second[:2]...)
			n.seen(s, 1, 3, egressTwo4, egressTwo6)
		})
	}
}

// connections counts those that are visited, and ends those for which it is said.
func (n *network) connections(end func(mapped, real netip.Addr) bool) map[[2]netip.Addr]int {
	n.Helper()
	visited := map[[2]netip.Addr]int{}
	if err := n.Connections(n.Context(), func(mapped, real netip.Addr) bool {
		visited[[2]netip.Addr{mapped, real}]++
		return end != nil && end(mapped, real)
	}); err != nil {
		n.Fatal(err)
	}
	return visited
}

// A visit ends with its context.
func TestConnectionsGiveUp(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	n.mapTo("one", 1, 1)
	s := n.senders()["local"]
	n.openMapped(1, s.holder)
	n.dialsBoth(s, toMapped(1, 443)...)
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	visited := 0
	if err := n.Connections(ctx, func(netip.Addr, netip.Addr) bool { visited++; cancel(enough); return false }); err != enough || visited != 1 {
		t.Errorf("%v, after %d", err, visited)
	}
}

// Whatever is reloaded, no new connection is refused that the old and the new rules let
// through, and no live one ends.
func TestRoutedReloadUnderLoad(t *testing.T) {
	n := routedNetwork(t)
	r := routedRules(t)
	n.guard(r)
	defer n.dump()
	n.mapTo("one", 1, 1)
	n.mapTo("one", 2, 2)
	var live []net.Conn
	for _, s := range n.senders() {
		n.openMapped(1, s.holder)
		n.openMapped(2, s.holder)
		live = append(live, n.dialsBoth(s, toMapped(1, 443)...)...)
	}
	var wait sync.WaitGroup
	done := make(chan struct{})
	var tries, step atomic.Int64
	for _, s := range n.senders() {
		for _, addr := range append(toMapped(1, whoPort), toMapped(2, whoPort)...) {
			for _, network := range []string{"tcp", "udp"} {
				wait.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						tries.Add(1)
						if got, err := asked(t.Context(), s, network, addr); err != nil || got == "" {
							t.Errorf("at step %d: %s to %s over %s: %q, %v", step.Load(), s.Name(), addr, network, got, err)
							return
						}
					}
				})
			}
		}
	}
	wait.Go(func() { // and mappings come and go
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			n.mapTo("one", 10+i%100, 1)
			n.mapTo("one", 2, 2+i%2)
		}
	})
	otherPool := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("fd99::/64")}
	for i, change := range []func(*backend.Rules){
		func(r *backend.Rules) { r.Routes = r.Routes[:1] },
		func(r *backend.Rules) {},
		func(r *backend.Rules) {
			r.Routes = append(r.Routes, backend.Route{Name: "more", Pools: otherPool, Out: "tun0", Mark: 7})
		},
		func(r *backend.Rules) { r.Routes[0], r.Routes[2] = r.Routes[2], r.Routes[0] },
		func(r *backend.Rules) { r.Allowed = prefixes(t, "203.0.113.0/24") },
		func(r *backend.Rules) { r.Linger = time.Minute },
		func(r *backend.Rules) { r.Capture = 53 },
		func(r *backend.Rules) { r.Interfaces = []string{"lan0", "lan1"} },
		func(r *backend.Rules) { r.MaxMappings *= 2 },
		func(r *backend.Rules) {
			r.Classes = map[backend.Class]backend.Predicates{1: {Ports: ports(t, "tcp/443")}}
		},
		func(r *backend.Rules) {},
	} {
		r := routedRules(t)
		change(&r)
		step.Store(int64(i))
		if err := n.Open(r); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	close(done)
	wait.Wait()
	n.talks(true, live...)
	t.Logf("%d connections", tries.Load())
}

// The next process finds the mappings in force, puts others in their place, and takes
// away those it knows nothing of.
func TestRoutedRestart(t *testing.T) {
	for name, make := range map[string]func(*testing.T, backend.Observer) *Backend{"with an owner": observed, "without an owner": ownerless} {
		t.Run(name, func(t *testing.T) {
			n := routedNetwork(t)
			r := routedRules(t)
			n.guarded = open(t, make, r)
			s := n.senders()["forwarded"]
			for number := 1; number <= 4; number++ {
				n.mapTo("one", number, 1)
				n.openMapped(number, s.holder)
			}
			live := n.dialsBoth(s, toMapped(1, 443)...)
			if err := n.Close(backend.Keep); err != nil {
				t.Fatal(err)
			}
			n.seen(s, 1, 1, egressOne4, egressOne6) // nobody runs

			n.guarded = open(t, make, r)
			defer n.dump()
			n.talks(true, live...)
			n.seen(s, 1, 1, egressOne4, egressOne6)
			n.mapTo("one", 1, 1) // as it was
			n.mapTo("one", 2, 2)
			n.mapTo("two", 3, 1)
			n.unmap(4)
			n.seen(s, 1, 1, egressOne4, egressOne6)
			n.seen(s, 2, 2, egressOne4, egressOne6)
			n.seen(s, 3, 1, egressTwo4, egressTwo6)
			n.refused(s, toMapped(4, whoPort)...)
			n.talks(true, live...)
			if have := n.inKernelMapped(t); len(have) != 6 {
				t.Errorf("%d mappings: %v", len(have), have)
			}
		})
	}
}

// Mappings come back after others have thrown them away, and it is told.
func TestForeignChangesOfMappings(t *testing.T) {
	for name, tt := range map[string]struct {
		repaired string
		change   func(*nftables.Conn, *nftables.Table)
	}{
		"the ruleset is flushed": {"rules", func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() }},
		"the map is flushed":     {"mappings", func(c *nftables.Conn, table *nftables.Table) { c.FlushSet(named(mappedName(true, "b1"), table)) }},
		"a route is flushed": {"mappings", func(c *nftables.Conn, table *nftables.Table) {
			c.FlushSet(named(routeName("r-one", false, "b1"), table))
		}},
	} {
		for _, count := range []int{100, 3*mostCarried + 1} {
			t.Run(fmt.Sprint(name, " of ", count), func(t *testing.T) {
				r := backendtest.RoutedRules()
				g := open(t, ownerless, r)
				all := backendtest.Mappings("r-one", 0, count, 0)
				if err := g.Map(t.Context(), all, time.Minute); err != nil {
					t.Fatal(err)
				}
				epoch := g.Epoch()
				foreign(t, tt.change)
				backendtest.Eventually(t, "it is repaired", func() bool { return g.count("repaired: "+tt.repaired) > 0 })
				backendtest.Eventually(t, "the mappings are back", func() bool { return len(g.inKernelMappedQuietly()) == count && g.enforcing() })
				if g.Epoch() == epoch || g.count("enforcing: false") == 0 {
					t.Errorf("epoch %d, %v", g.Epoch(), g.lines)
				}
				have := g.inKernelMapped(t)
				for _, m := range all {
					if have[m.Mapped] != m {
						t.Fatalf("%+v, want %+v", have[m.Mapped], m)
					}
				}
			})
		}
	}
}
