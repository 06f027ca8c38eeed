package nft

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

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

// What must leave by its route, and would leave another way, is listed by its mapped address, new
// or of a live connection, be that since another way leads there or since the address has no route.
// Audit is not about it.
func TestRoutedOutDenials(t *testing.T) {
	for name, audit := range map[string]bool{"refused": false, "in audit": true} {
		t.Run(name, func(t *testing.T) {
			n := routedNetwork(t)
			r := outRules(t)
			r.AuditLocal, r.AuditGateway = audit, audit
			n.guard(r)
			defer n.dump()
			n.uplink(77)
			const elsewhere, gone, lost = 1, 2, 3
			lan0, err := net.InterfaceByName("lan0")
			if err != nil {
				t.Fatal(err)
			}
			senders := n.senders()
			n.mapTo("out", elsewhere, 1)
			n.mapTo("tun", gone, 2)
			n.mapTo("tun", lost, 3)
			live := map[int][]net.Conn{}
			for _, s := range senders {
				for number := elsewhere; number <= lost; number++ {
					n.openMapped(number, s.holder)
				}
				n.unreached(s, toMapped(elsewhere, 443)...)
				for _, a := range both(mappedAddrs(elsewhere)) {
					n.raw(s, 253, a, []byte("x"), 1)
				}
				for _, number := range []int{gone, lost} {
					live[number] = append(live[number], n.dialsBoth(s, toMapped(number, 443)...)...)
				}
			}
			n.unmap(gone)
			n.talks(false, live[gone]...)
			n.noUplink()
			n.talks(false, live[lost]...)

			listed := n.listed()
			for path, hook := range map[string]backend.Hook{"local": backend.Output, "forwarded": backend.Forward} {
				for number := elsewhere; number <= lost; number++ {
					for i, addr := range both(mappedAddrs(number)) {
						for protocol, port := range map[uint8]uint16{unix.IPPROTO_TCP: 443, unix.IPPROTO_UDP: 443, 253: 0} {
							f := backend.Flow{Kind: backend.Kind{Hook: hook, Bound: true}, Protocol: protocol, Addr: addr, Port: port}
							if hook == backend.Forward {
								f.Interface, f.Client = uint32(lan0.Index), netip.MustParseAddr(senders[path].as[i])
							}
							if d := listed[f]; (d.Packets > 0) != (number == elsewhere || protocol != 253) {
								t.Errorf("%v: %d packets", f, d.Packets)
							}
							delete(listed, f)
						}
					}
				}
			}
			for f := range listed {
				if f.Bound {
					t.Errorf("listed: %v", f)
				}
			}
			n.tallies()
		})
	}
}

// What is refused for where a mapped address leads is listed by the mapped address as well.
func TestTranslatedDenials(t *testing.T) {
	const own, resolver = 1, 2
	for _, linger := range []time.Duration{0, time.Minute} { // live connections with all others, and apart
		for name, audit := range map[string]bool{"refused": false, "in audit": true} {
			t.Run(fmt.Sprint(name, ", linger ", linger), func(t *testing.T) {
				n := routedNetwork(t)
				r := routedRules(t)
				r.Linger, r.AuditLocal, r.AuditGateway = linger, audit, audit
				r.Upstream, r.Self = upstreams(t, to(resolver, 443)...), backend.Program{User: 1001}
				n.guard(r)
				defer n.dump()
				var mappings []backend.Mapping
				leadsTo := func(number int, reals ...netip.Addr) {
					for i, m := range both(mappedAddrs(number)) {
						mappings = append(mappings, backend.Mapping{Route: "open", Mapped: m, Real: reals[i]})
					}
				}
				leadsTo(own, netip.MustParseAddr(from4), netip.MustParseAddr(from6))
				leadsTo(resolver, both(addrs(resolver))...)
				if err := n.Map(t.Context(), mappings, time.Minute); err != nil {
					t.Fatal(err)
				}
				want := map[backend.Flow]bool{}
				for path, hook := range map[string]backend.Hook{"local": backend.Output, "forwarded": backend.Forward} {
					s := n.senders()[path]
					for number := own; number <= resolver; number++ {
						n.openMapped(number, s.holder)
						passes := audit && number == resolver
						for _, network := range []string{"tcp", "udp"} {
							n.reaches(s, passes, network, toMapped(number, 443)...)
						}
						for i, addr := range both(mappedAddrs(number)) {
							for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
								f := backend.Flow{Kind: backend.Kind{Hook: hook, Audited: passes}, Protocol: protocol, Addr: addr, Port: 443}
								if hook == backend.Forward {
									f.Client = netip.MustParseAddr(s.as[i])
								}
								want[f] = true
							}
						}
					}
				}
				for f, d := range n.listed() {
					if f.Hook == backend.Output && f.User == backend.NoUser {
						continue // of a socket that an earlier test has closed
					}
					if f.Interface = 0; !want[f] {
						t.Errorf("listed: %v, %d packets", f, d.Packets)
					}
					delete(want, f)
				}
				for f := range want {
					t.Errorf("not listed: %v", f)
				}
				n.tallies()
			})
		}
	}
}
