package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

const (
	guard4, guard6   = "192.0.2.1", "2001:db8::1"
	client4, client6 = "192.168.50.2", "fd50::2"
)

// Types of ICMPv6, by the IANA's registry.
const (
	echoRequest                           = 128
	mldQuery, mldReport, mldDone, mld2    = 130, 131, 132, 143
	routerSolicitation, routerAdvert      = 133, 134
	neighbourSolicitation, neighbourAdv   = 135, 136
	redirect                              = 137
	allRouters, mldRouters, relaysServers = "ff02::2", "ff02::16", "ff02::1:2"
)

// linkLocal is the link-local address of a host's interface.
func (w *world) linkLocal(h *netlab.Host, ifname string) (addr string) {
	w.Helper()
	w.must(h.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		addrs, err := ifi.Addrs()
		for _, a := range addrs {
			if ip := a.(*net.IPNet).IP; ip.To4() == nil && ip.IsLinkLocalUnicast() {
				addr = ip.String()
			}
		}
		return err
	}))
	return addr
}

// join lets a host hear a multicast group until the test ends.
func (w *world) join(h *netlab.Host, ifname, group string) {
	w.Helper()
	w.must(h.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		conn, err := net.ListenMulticastUDP("udp6", ifi, &net.UDPAddr{IP: net.ParseIP(group), Port: 5000})
		if err == nil {
			w.Cleanup(func() { conn.Close() })
		}
		return err
	}))
}

// A machine stays on its network: it gets an address by DHCP and keeps it, finds
// its neighbours and is found, and hears the multicast groups it has joined.
func TestTheNetworkGoesOnWorking(t *testing.T) {
	for _, m := range modes {
		if !m.self {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			const neighbour, another, group = "2001:db8::77", "2001:db8::78", "ff15::77"
			w := newWorld(t)
			x := w.tap()
			w.start(corefile(guardBlock(m.name, "allowedLocalIPs "+neighbour)))

			ownLink, serverLink := w.linkLocal(w.guard, "wan0"), w.linkLocal(w.world, "eth0")
			for name, p := range map[string]packet{
				"DHCP to everybody":    newUDP(guard4, "255.255.255.255", 68, 67),
				"DHCP renewal":         newUDP(guard4, "198.18.67.1", 68, 67),
				"DHCPv6 to everybody":  newUDP(ownLink, relaysServers, 546, 547),
				"DHCPv6 renewal":       newUDP(ownLink, serverLink, 546, 547),
				"router solicitation":  newICMPv6(ownLink, allRouters, 255, routerSolicitation),
				"MLDv1 report":         newICMPv6(ownLink, group, 1, mldReport),
				"MLDv1 done":           newICMPv6(ownLink, allRouters, 1, mldDone),
				"MLD query":            newICMPv6(ownLink, "ff02::1", 1, mldQuery),
				"MLDv2 report by hand": newICMPv6(ownLink, mldRouters, 1, mld2),
			} {
				if err := send(w.guard, "wan0", p); err != nil {
					w.Errorf("%s: %v", name, err)
				}
				w.eventually(fmt.Sprintf("%s comes by (%v)", name, p), func() bool { return x.count(p.same) > 0 })
			}

			// What the kernel itself sends, after the rules are in force.
			w.must(w.world.Addr("eth0", neighbour+"/64"))
			w.wantOpen(w.guard, "tcp", neighbour) // it must be found first
			w.must(w.guard.Echo(echoPort))
			w.must(w.guard.Addr("wan0", another+"/64"))
			w.wantOpen(w.world, "tcp", another) // so must this
			w.join(w.guard, "wan0", group)
			w.eventually("the report on a joined group comes by", func() bool {
				return x.count(func(p packet) bool {
					return p.destination.String() == mldRouters && p.icmpv6(mld2) && p.hops == 1 &&
						bytes.Contains(p.payload, net.ParseIP(group))
				}) > 0
			})
			for _, kind := range []byte{neighbourSolicitation, neighbourAdv} {
				w.eventually(fmt.Sprintf("ICMPv6 type %d comes by", kind), func() bool {
					return x.count(func(p packet) bool {
						return p.icmpv6(kind) && p.hops == 255 && (p.source.String() == guard6 || p.source.String() == another)
					}) > 0
				})
			}
		})
	}
}

// What looks like DHCP, ND or MLD and is none goes nowhere: it would be a way out
// to anywhere.
func TestLookAlikesAreRefused(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			x := w.tap()
			c := w.start(corefile(guardBlock(m.name)))
			var all []forgery
			if m.self {
				all = append(all, forgeries(w.guard, "wan0", guard4, guard6)...)
			}
			if m.behind {
				all = append(all, forgeries(w.client, "eth0", client4, client6)...)
			}
			for _, f := range all {
				err := send(f.from, f.ifname, f.packet)
				if f.from == w.guard && !errors.Is(err, unix.EPERM) || f.from != w.guard && err != nil {
					w.Errorf("%s: %v: %v", f.from.Name(), f.packet, err)
				}
			}
			x.sync()
			for _, f := range all {
				if x.count(f.same) > 0 {
					w.Errorf("%s: went out: %v", f.from.Name(), f.packet)
				}
			}
			// Were it not for the guard, they would.
			w.must(c.Stop())
			w.nftables(deleteTable)
			for _, f := range all {
				w.must(send(f.from, f.ifname, f.packet))
			}
			x.sync()
			for _, f := range all {
				w.eventually(fmt.Sprintf("%v comes by", f.packet), func() bool { return x.count(f.same) > 0 })
			}
		})
	}
}

// A forgery is a packet that a host sends out of an interface.
type forgery struct {
	from   *netlab.Host
	ifname string
	packet
}

// forgeries each go to a destination of their own.
func forgeries(from *netlab.Host, ifname, own4, own6 string) (all []forgery) {
	add := func(ipv4 bool, forge func(source, destination string) packet) {
		n := len(all) + 1
		source, destination := own6, fmt.Sprintf("2001:db8:18:ff::%s:%x", own6[len(own6)-1:], n)
		if ipv4 {
			source, destination = own4, fmt.Sprintf("198.18.%s.%d", own4[len(own4)-1:], n)
		}
		all = append(all, forgery{from, ifname, forge(source, destination)})
	}
	udp := func(ipv4 bool, from, to uint16) {
		add(ipv4, func(source, destination string) packet { return newUDP(source, destination, from, to) })
	}
	icmpv6 := func(hops, kind byte) {
		add(false, func(source, destination string) packet { return newICMPv6(source, destination, hops, kind) })
	}
	for _, ports := range [][2]uint16{{68, 53}, {67, 67}, {67, 68}, {68, 68}, {53, 67}} {
		udp(true, ports[0], ports[1])
	}
	for _, ports := range [][2]uint16{{546, 547}, {547, 546}, {546, 53}, {68, 67}} {
		udp(false, ports[0], ports[1])
	}
	mld := []byte{mldQuery, mldReport, mldDone, mld2}
	nd := []byte{routerSolicitation, routerAdvert, neighbourSolicitation, neighbourAdv, redirect}
	for _, kind := range slices.Concat(mld, nd, []byte{echoRequest}) {
		icmpv6(64, kind)
	}
	if ifname == "wan0" {
		for _, kind := range mld {
			icmpv6(1, kind) // as MLD does, but to one host
		}
	} else {
		udp(true, 68, 67) // a client's DHCP ends at the gateway
		for _, kind := range nd {
			icmpv6(255, kind)
		}
		for _, kind := range mld {
			icmpv6(2, kind) // 1 when it is forwarded
		}
	}
	for _, ipv4 := range []bool{true, false} { // as DHCP does, but TCP
		add(ipv4, func(source, destination string) packet {
			syn := []byte{0, 68, 0, 67, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0}
			return newPacket(source, destination, 64, unix.IPPROTO_TCP, syn, 16)
		})
	}
	return all
}
