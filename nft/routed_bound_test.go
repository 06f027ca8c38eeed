package nft

import (
	"fmt"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// What leaves by a tunnel leaves by nothing else when the last of all routes goes, either.
func TestRoutedBoundWithoutRoutes(t *testing.T) {
	for _, path := range []string{"forwarded", "local"} {
		for _, linger := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprint(path, ", linger ", linger), func(t *testing.T) {
				n := routedNetwork(t)
				r := routedRules(t)
				r.Linger = linger
				r.Local, r.Gateway = path == "local", path != "local"
				r.Routes = []backend.Route{{Name: "out", Pools: poolsOfTests, Out: "tun0"}}
				n.guard(r)
				defer n.dump()
				n.byTun(true)
				s := n.senders()[path]
				n.mapTo("out", 9, 1)
				n.openMapped(9, s.holder)
				live := n.dialsBoth(s, toMapped(9, 443)...)
				sniffed := n.countsTo(append(both(addrs(1)), both(mappedAddrs(9))...))
				without := r
				without.Routes, without.Book = nil, ""
				n.reopen(without)
				n.byTun(false)
				n.talks(false, live...)
				n.reopen(without)
				n.talks(false, live...)
				if err := n.Close(backend.Keep); err != nil {
					t.Fatal(err)
				}
				n.guard(without)
				n.talks(false, live...)
				if leaked := sniffed(); leaked > 0 {
					t.Errorf("%d packets have left by the other interface", leaked)
				}
				n.byTun(true)
				n.reopen(r)
				n.mapTo("out", 9, 1)
				n.comesBack(live...)

				// What has another route meanwhile is not bound any more.
				n.reopen(without)
				r.Routes = append(r.Routes, backend.Route{Name: "masked", Pools: poolsOfTests})
				n.reopen(r)
				n.mapTo("masked", 9, 1)
				n.byTun(false)
				n.seen(s, 9, 1, from4, from6)
			})
		}
	}
}
