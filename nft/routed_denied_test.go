package nft

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// What is refused of routed traffic is listed by its mapped address. In audit, what lacks
// only a grant passes, but what leads nowhere goes on to be refused.
func TestRoutedDenials(t *testing.T) {
	for name, audit := range map[string]bool{"refused": false, "audited": true} {
		t.Run(name, func(t *testing.T) {
			n := routedNetwork(t)
			r := routedRules(t)
			r.AuditLocal, r.AuditGateway = audit, audit
			n.guard(r)
			n.mapTo("one", 1, 1)
			want := map[backend.Flow]bool{}
			for hook, from := range map[backend.Hook]speaker{backend.Output: n.here, backend.Forward: n.client} {
				n.reaches(from, audit, "tcp", toMapped(1, 443)...)
				n.reaches(from, audit, "udp", toMapped(1, 8005)...)
				n.reaches(from, false, "tcp", toMapped(2, 443)...)
				for _, port := range []uint16{443, 8005} {
					for number := 1; number <= 2; number++ {
						v4, v6 := mappedAddrs(number)
						for _, addr := range []netip.Addr{v4, v6} {
							f := backend.Flow{Kind: backend.Kind{Hook: hook, Audited: audit && number == 1}, Protocol: unix.IPPROTO_TCP, Addr: addr, Port: port}
							if port == 8005 {
								f.Protocol = unix.IPPROTO_UDP
							}
							want[f] = port == 443 || number == 1
						}
					}
				}
			}
			got := map[backend.Flow]bool{}
			for f, d := range n.listed() {
				f.Interface, f.Client = 0, netip.Addr{}
				v4, v6 := mappedAddrs(2)
				if f.Audited && (f.Addr == v4 || f.Addr == v6) {
					continue // it is not granted: only then it is seen that there is nothing behind it
				}
				if got[f] = true; d.Packets == 0 || !want[f] {
					t.Errorf("%v: %d packets", d.Flow, d.Packets)
				}
			}
			for f, wanted := range want {
				if wanted && !got[f] {
					t.Errorf("not listed: %v", f)
				}
			}
			n.tallies()
		})
	}
}
