package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// byTun has the first real addresses be reached by the second uplink, or no more.
func (n *network) byTun(yes bool) {
	n.Helper()
	link, err := netlink.LinkByName("tun0")
	if err != nil {
		n.Fatal(err)
	}
	change := netlink.RouteDel
	if yes {
		change = netlink.RouteReplace
	}
	for i, a := range both(addrs(1)) {
		via := uplinks[[]int{netlink.FAMILY_V4, netlink.FAMILY_V6}[i]]
		if err := change(&netlink.Route{
			LinkIndex: link.Attrs().Index, Gw: net.ParseIP(via),
			Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		}); err != nil {
			n.Fatal(err)
		}
	}
}

// haveOptions gives the next packets of connections IPv4 options.
func (n *network) haveOptions(options []byte, conns ...net.Conn) {
	n.Helper()
	for _, c := range conns {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			n.Fatal(err)
		}
		var set error
		if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptString(int(fd), unix.SOL_IP, unix.IP_OPTIONS, string(options)) }); err != nil || set != nil {
			n.Fatal(err, set)
		}
	}
}

// What leaves by an interface leaves by no other, whatever else is wrong with its packets, and
// also in audit, where that lets all others pass.
func TestRoutedOutWithOptions(t *testing.T) {
	for _, audit := range []bool{false, true} {
		t.Run(fmt.Sprint("audit ", audit), func(t *testing.T) {
			n := routedNetwork(t)
			r := routedRules(t)
			r.Local, r.AuditGateway = false, audit
			r.Routes = []backend.Route{{Name: "out", Pools: poolsOfTests, Out: "tun0"}}
			n.guard(r)
			defer n.dump()
			s := n.senders()["forwarded"]
			n.byTun(true)
			n.mapTo("out", 1, 1)
			n.openMapped(1, s.holder)
			addr := toMapped(1, 443)[0]
			live := n.dialsBoth(s, addr)
			sniffed := n.countsTo(both(addrs(1))) // the mapped ones may be of sockets that earlier tests have closed
			n.byTun(false)
			anew, err := s.Dial(t.Context(), "udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer anew.Close()
			live = append(live, anew)
			for _, options := range [][]byte{
				{68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}, // timestamps
				{7, 7, 4, 0, 0, 0, 0, 0},               // records its way
			} {
				n.haveOptions(options, live...)
				n.talks(false, live...)
			}
			if leaked := sniffed(); leaked > 0 {
				t.Errorf("%d packets have left by the other interface", leaked)
			}
		})
	}
}

// Nor does an error go back by the way that the sender has laid down.
func TestRoutedOutAnswersNoSourceRoutes(t *testing.T) {
	n := routedNetwork(t)
	r := routedRules(t)
	r.Local = false
	r.Routes = []backend.Route{{Name: "out", Pools: poolsOfTests, Out: "tun0"}}
	n.guard(r)
	defer n.dump()
	for _, ifname := range []string{"all", "lan0"} {
		if err := n.here.Sysctl("net/ipv4/conf/"+ifname+"/accept_source_route", "1"); err != nil {
			t.Fatal(err)
		}
	}
	s := n.senders()["forwarded"]
	n.byTun(true)
	n.mapTo("out", 1, 1)
	n.openMapped(1, s.holder)
	live := n.dials(s, "udp", toMapped(1, 443)[0])[0]
	n.byTun(false)
	sniffer, err := n.here.Sniff("lan0")
	if err != nil {
		t.Fatal(err)
	}
	defer sniffer.Close()

	packets, err := s.ListenPacket("ip4:udp", client4)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	raw, err := ipv4.NewRawConn(packets)
	if err != nil {
		t.Fatal(err)
	}
	mapped, _ := mappedAddrs(1)
	port := binary.BigEndian.AppendUint16(nil, netip.MustParseAddrPort(live.LocalAddr().String()).Port())
	route := append([]byte{131, 7, 8}, append(netip.MustParseAddr(other4).AsSlice(), 0)...) // that hop is behind it
	if err := raw.WriteTo(&ipv4.Header{
		Version: 4, Len: 28, TotalLen: 36, TTL: 64, Protocol: unix.IPPROTO_UDP, Src: net.ParseIP(client4), Dst: mapped.AsSlice(), Options: route,
	}, append(port, 443>>8, 443&0xff, 0, 8, 0, 0), nil); err != nil {
		t.Fatal(err)
	}
	n.talks(false, live) // it hears that there is no way
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for laid := false; ; {
		f, err := sniffer.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(f) < 34 || f[12] != 8 || f[13] != 0 {
			continue
		}
		switch header := f[14:]; {
		case header[9] == unix.IPPROTO_UDP && header[0] == 0x47:
			laid = true
		case header[9] == unix.IPPROTO_ICMP && header[0] != 0x45:
			t.Fatalf("an error goes back by a route: % x", header)
		case header[9] == unix.IPPROTO_ICMP && !bytes.Contains(header, route):
			if !laid {
				t.Error("nobody has laid down a route")
			}
			return
		}
	}
}

// In audit, a packet whose sender has laid down its route is counted once, by its mapped address,
// whatever else there is to say of it.
func TestRoutedAuditCountsSourceRoutesOnce(t *testing.T) {
	const granted, other = 1, 2
	for _, linger := range []time.Duration{0, time.Minute} {
		t.Run(fmt.Sprint("linger ", linger), func(t *testing.T) {
			n := routedNetwork(t)
			r := routedRules(t)
			r.Local, r.AuditGateway, r.Linger = false, true, linger
			n.guard(r)
			defer n.dump()
			s := n.senders()["forwarded"]
			for number := granted; number <= other; number++ {
				n.mapTo("open", number, 1)
			}
			n.openMapped(granted, s.holder)
			want := map[netip.Addr]uint64{}
			check := func(when string) {
				t.Helper()
				got := map[netip.Addr]uint64{}
				for f, d := range n.listed() {
					got[f.Addr] += d.Packets
				}
				if !maps.Equal(got, want) {
					t.Errorf("%s: %v are listed, want %v", when, got, want)
				}
			}
			for number := granted; number <= other; number++ {
				for i, mapped := range both(mappedAddrs(number)) {
					conn, err := s.Dial(t.Context(), "udp", toMapped(number, 443)[i])
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					send := func() error { return n.sendsRouted(s, conn) }
					if mapped.Is4() {
						n.haveOptions([]byte{68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}, conn)
						send = func() error { return echo(conn) }
					}
					for _, when := range []string{"new", "live"} {
						if err := send(); err != nil {
							t.Errorf("%s, %v: %v", when, mapped, err)
						}
						want[mapped]++
						check(fmt.Sprint(when, ", ", mapped))
					}
				}
			}
			n.tallies()
		})
	}
}

// sendsRouted sends a packet of a connection of UDP over IPv6 with a routing header, and hears the
// echo.
func (n *network) sendsRouted(s sender, conn net.Conn) error {
	n.Helper()
	from, to := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = append(udp, 0, 9, 0, 0, 'x', 0) // the last one fills up the sum
	sum := uint32(unix.IPPROTO_UDP + 9)
	for part := range slices.Chunk(slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice(), udp), 2) {
		sum += uint32(binary.BigEndian.Uint16(part))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum+sum>>16))
	n.raw(s, unix.IPPROTO_ROUTING, to.Addr(), append([]byte{unix.IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 0}, udp[:9]...), 1)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	return err
}
