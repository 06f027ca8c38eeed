package e2e

import (
	"bytes"
	"fmt"
	"net"
	"testing"

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
