package nft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// An ear hears the ICMP of a host, of both versions.
type ear struct {
	*testing.T
	v4, v6 net.PacketConn
}

func (n *network) listens(h *netlab.Host) *ear {
	n.Helper()
	e := &ear{T: n.T}
	var err4, err6 error
	e.v4, err4 = h.ListenPacket("ip4:icmp", "0.0.0.0")
	e.v6, err6 = h.ListenPacket("ip6:ipv6-icmp", "::")
	if err := errors.Join(err4, err6); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { e.v4.Close(); e.v6.Close() })
	return e
}

func (e *ear) of(ipv4 bool) (conn net.PacketConn, protocol int) {
	if ipv4 {
		return e.v4, 1
	}
	return e.v6, 58
}

// hears fails the test unless an ICMP message of that type comes that is about a packet to
// this address.
func (e *ear) hears(typ byte, about netip.Addr) {
	e.Helper()
	conn, _ := e.of(about.Is4())
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	var others []string
	for buf := make([]byte, 2000); ; {
		size, _, err := conn.ReadFrom(buf)
		if err != nil {
			e.Errorf("no type %d about %v: %v; heard: %v", typ, about, err, others)
			return
		}
		if size < 8 {
			continue
		}
		to := quoted(buf[8:size])
		if buf[0] == typ && to == about {
			return
		}
		others = append(others, fmt.Sprintf("type %d about %v", buf[0], to))
	}
}

// quoted is where the packet went that is quoted in a message about it.
func quoted(packet []byte) (to netip.Addr) {
	switch {
	case len(packet) < 20:
	case packet[0]>>4 == 4:
		to, _ = netip.AddrFromSlice(packet[16:20])
	case len(packet) >= 40:
		to, _ = netip.AddrFromSlice(packet[24:40])
	}
	return to
}

// ping sends one echo request and fails the test unless its answer comes, or none.
func (e *ear) ping(to netip.Addr, want bool) {
	e.Helper()
	conn, protocol := e.of(to.Is4())
	request := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: 77, Seq: 1, Data: []byte("x")}}
	reply := icmp.Type(ipv6.ICMPTypeEchoReply)
	if to.Is4() {
		request.Type, reply = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	}
	data, err := request.Marshal(nil)
	if err != nil {
		e.Fatal(err)
	}
	if _, err := conn.WriteTo(data, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		if want {
			e.Errorf("ping %v: %v", to, err)
		}
		return
	}
	patience := 200 * time.Millisecond
	if want {
		patience = 2 * time.Second
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for buf := make([]byte, 2000); ; {
		size, from, err := conn.ReadFrom(buf)
		if err != nil {
			if want {
				e.Errorf("no answer to a ping of %v: %v", to, err)
			}
			return
		}
		m, err := icmp.ParseMessage(protocol, buf[:size])
		if err == nil && m.Type == reply && netip.MustParseAddr(from.String()).Unmap() == to {
			if !want {
				e.Errorf("%v answers a ping", to)
			}
			return
		}
	}
}

// sends sends a UDP packet of that many bytes, whose life is so many hops, or as ever.
func (n *network) sends(from *netlab.Host, to string, size, hops int) {
	n.Helper()
	conn, err := from.Dial(n.Context(), "udp", to)
	if err != nil {
		n.Error(err)
		return
	}
	defer conn.Close()
	if hops > 0 {
		if netip.MustParseAddrPort(to).Addr().Is4() {
			err = ipv4.NewConn(conn).SetTTL(hops)
		} else {
			err = ipv6.NewConn(conn).SetHopLimit(hops)
		}
		if err != nil {
			n.Fatal(err)
		}
	}
	_, _ = conn.Write(make([]byte, size)) // may hear of the error of an earlier one
}

func TestRoutedPing(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	defer n.dump()
	n.mapTo("one", 1, 1)
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			e := n.listens(s.Host)
			m4, m6 := mappedAddrs(1)
			r4, r6 := addrs(1)
			for _, a := range []netip.Addr{m4, m6, r4, r6} {
				e.ping(a, false)
			}
			n.openMapped(1, s.holder)
			for _, a := range []netip.Addr{m4, m6} {
				e.ping(a, true)
			}
			for _, a := range []netip.Addr{r4, r6} {
				e.ping(a, false)
			}
		})
	}
}

// Whatever is said of packets to a mapped address is said of that address: the real one
// never gets to those who asked, nor does what they would not know as theirs.
func TestRoutedErrors(t *testing.T) {
	n := routedNetwork(t)
	r := routedRules(t)
	n.guard(r)
	defer n.dump()
	// Beyond the world is a network that it forwards to.
	for _, err := range []error{
		n.world.Forward(), n.world.Route("203.0.113.0/24", "192.0.2.1"), n.world.Route("2001:db8:113::/48", "2001:db8::1"),
		n.world.Sysctl("net/ipv4/icmp_ratelimit", "0"), n.world.Sysctl("net/ipv6/icmp/ratelimit", "0"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n.mapTo("one", 1, 1)
	n.mapTo("open", 2, 1)
	beyond4, beyond6 := mappedAddrs(3)
	if err := n.Map(t.Context(), []backend.Mapping{
		{Route: "one", Mapped: beyond4, Real: netip.MustParseAddr("203.0.113.1")},
		{Route: "one", Mapped: beyond6, Real: netip.MustParseAddr("2001:db8:113::1")},
	}, time.Minute); err != nil {
		t.Fatal(err)
	}
	wan, err := netlink.LinkByName("wan")
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			e := n.listens(s.Host)
			forwarded := s.Host == n.client
			if forwarded { // a sender on this machine hears EPERM
				for i, unreachable := range []byte{3, 1} {
					n.sends(s.Host, toMapped(1, whoPort)[i], 1, 0)
					e.hears(unreachable, both(mappedAddrs(1))[i])
				}
			}
			for number := 1; number <= 3; number++ {
				n.openMapped(number, s.holder)
			}
			for i, v4only := range versions {
				mapped := both(mappedAddrs(1))[i]
				closed := []netip.Addr{beyond4, beyond6}[i]
				unreachable, exceeded, tooBig := byte(1), byte(3), byte(2) // RFC 4443
				if v4only {
					unreachable, exceeded, tooBig = 3, 11, 3 // RFC 792
				}

				n.sends(s.Host, toMapped(1, 9999)[i], 1, 0) // nobody listens there
				e.hears(unreachable, mapped)
				n.sends(s.Host, toMapped(2, 9999)[i], 1, 0)
				e.hears(unreachable, both(mappedAddrs(2))[i])

				if forwarded { // the first packet of a connection ends here
					n.sends(s.Host, toMapped(1, whoPort)[i], 1, 1)
					e.hears(exceeded, mapped)
				}
				hops := 1
				if forwarded {
					hops = 2
				}
				n.sends(s.Host, toMapped(3, whoPort)[i], 1, hops) // or beyond
				e.hears(exceeded, closed)

				if forwarded {
					if err := netlink.LinkSetMTU(wan, 1400); err != nil {
						t.Fatal(err)
					}
					n.sends(s.Host, toMapped(1, whoPort)[i], 1430, 0) // the first packet of a connection
					e.hears(tooBig, mapped)
					if err := netlink.LinkSetMTU(wan, 1500); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func both(a, b netip.Addr) []netip.Addr { return []netip.Addr{a, b} }

// Where the way out is narrower than the one before the translation, everything gets
// through all the same: senders hear of it.
func TestRoutedNarrowUplink(t *testing.T) {
	for _, path := range []string{"forwarded", "local"} {
		t.Run(path, func(t *testing.T) {
			n := routedNetwork(t)
			n.guard(outRules(t))
			defer n.dump()
			n.uplink(77)
			s := n.senders()[path]
			n.mapTo("tun", 1, 1)
			n.openMapped(1, s.holder)
			narrow := func(ifname string) error {
				link, err := netlink.LinkByName(ifname)
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(link, 1300)
			}
			if err := errors.Join(narrow("tun0"), n.world.Do(func() error { return narrow("eth1") })); err != nil {
				t.Fatal(err)
			}
			for _, conn := range n.dials(s, "tcp", toMapped(1, 443)...) {
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				const size = 200_000
				go func() { _, _ = conn.Write(make([]byte, size)) }()
				if got, err := io.ReadFull(conn, make([]byte, size)); err != nil {
					t.Errorf("%v: %d bytes: %v", conn.RemoteAddr(), got, err)
				}
			}
			for _, conn := range n.dials(s, "udp", toMapped(1, 443)...) {
				backendtest.Eventually(t, "a large packet gets through, in parts", func() bool {
					_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
					if _, err := conn.Write(make([]byte, 1350)); err != nil {
						return false
					}
					got, err := conn.Read(make([]byte, 2000))
					return err == nil && got == 1350
				})
			}
		})
	}
}
