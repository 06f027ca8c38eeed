package identity

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func (w *watched) address(op func(netlink.Link, *netlink.Addr) error, ifname, cidr string) {
	w.t.Helper()
	link, err := w.nl.LinkByName(ifname)
	must(w.t, err)
	addr, err := netlink.ParseAddr(cidr)
	must(w.t, err)
	must(w.t, op(link, addr))
}

func (w *watched) owns(addr string, want bool) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("own(%s) is %v", addr, want), func() bool {
		return w.Own(netip.MustParseAddr(addr)) == want
	})
}

func TestOwn(t *testing.T) {
	a, _ := newPair(t)
	w := watch(t, a)
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true,
		"192.0.2.1": true, "::ffff:192.0.2.1": true, "2001:db8::1": true,
		"192.0.2.2": false, "2001:db8::2": false, "0.0.0.0": false, "::": false, "192.0.2.255": false,
	} {
		if got := w.Own(netip.MustParseAddr(addr)); got != want {
			t.Errorf("own(%s) is %v", addr, got)
		}
	}
	if w.Own(netip.Addr{}) {
		t.Error("no address is own")
	}
}

func TestOwnFollows(t *testing.T) {
	w := watch(t, newHost(t))
	w.port("d0")
	for _, addr := range []string{"198.51.100.7", "2001:db8:7::7"} {
		w.owns(addr, false)
		w.address(w.nl.AddrAdd, "d0", addr+"/24")
		w.owns(addr, true)
		w.address(w.nl.AddrDel, "d0", addr+"/24")
		w.owns(addr, false)
	}
	w.address(w.nl.AddrAdd, "d0", "198.51.100.8/24")
	w.address(w.nl.AddrAdd, "d0", "2001:db8:8::8/64")
	w.owns("198.51.100.8", true)
	w.owns("2001:db8:8::8", true)
	link, err := w.nl.LinkByName("d0")
	must(t, err, w.nl.LinkDel(link))
	w.owns("198.51.100.8", false)
	w.owns("2001:db8:8::8", false)
}

// IPv4 allows one address several times on an interface.
func TestOwnTwice(t *testing.T) {
	w := watch(t, newHost(t))
	w.port("d0")
	w.address(w.nl.AddrAdd, "d0", "198.51.100.7/24")
	w.address(w.nl.AddrAdd, "d0", "198.51.100.7/28")
	w.address(w.nl.AddrDel, "d0", "198.51.100.7/24")
	w.address(w.nl.AddrAdd, "d0", "198.51.100.9/24")
	w.owns("198.51.100.9", true) // so the deletion before has been heard too
	w.owns("198.51.100.7", true)
	w.address(w.nl.AddrDel, "d0", "198.51.100.7/28")
	w.owns("198.51.100.7", false)
}

// The peer's address of a point-to-point link is not our own.
func TestOwnPointToPoint(t *testing.T) {
	w := watch(t, newHost(t))
	w.port("d0")
	link, err := w.nl.LinkByName("d0")
	must(t, err)
	addr, err := netlink.ParseAddr("198.51.100.1/32")
	must(t, err)
	for _, peer := range []string{"198.51.100.2/32", "198.51.100.3/32"} {
		addr.Peer, err = netlink.ParseIPNet(peer)
		must(t, err, w.nl.AddrAdd(link, addr))
	}
	w.owns("198.51.100.1", true)
	w.owns("198.51.100.2", false)
	must(t, w.nl.AddrDel(link, addr))
	w.address(w.nl.AddrAdd, "d0", "198.51.100.4/32")
	w.owns("198.51.100.4", true)
	w.owns("198.51.100.1", true) // with the other peer still
}

// An address that a neighbour has too (duplicate address detection) is not own.
func TestOwnDuplicate(t *testing.T) {
	a, _ := newPair(t)
	w := watch(t, a)
	must(t, a.Sysctl("net/ipv6/conf/eth0/accept_dad", "1"))
	w.address(w.nl.AddrAdd, "eth0", "2001:db8::2/64") // b's
	w.address(w.nl.AddrAdd, "eth0", "2001:db8::3/64") // nobody's
	w.owns("2001:db8::3", true)
	if w.Own(netip.MustParseAddr("2001:db8::2")) {
		t.Error("own, though it is another's")
	}
}

func TestOwnWithZone(t *testing.T) {
	w := watch(t, newHost(t))
	d0, d1 := w.port("d0"), w.port("d1")
	w.address(w.nl.AddrAdd, "d0", "fe80::1/64")
	w.owns("fe80::1", true)
	for zone, want := range map[string]bool{
		"d0": true, "d1": false, "nosuch": false, fmt.Sprint(d0): true, fmt.Sprint(d1): false, "0": false, "99999999999": false,
	} {
		if got := w.Own(netip.MustParseAddr("fe80::1%" + zone)); got != want {
			t.Errorf("own(fe80::1%%%s) is %v", zone, got)
		}
	}
	link, err := w.nl.LinkByName("d0")
	must(t, err, w.nl.LinkSetName(link, "renamed"))
	w.owns("fe80::1%renamed", true)
	w.owns("fe80::1%d0", false)
}

// The machine's own wires are known, follow its addresses, and are told of.
func TestOnLink(t *testing.T) {
	a, _ := newPair(t)
	w := watch(t, a)
	lists := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return fmt.Sprint(w.OnLink()) == want })
	}
	linkLocal := netip.MustParsePrefix("fe80::/64")
	lists("[192.0.2.0/24 2001:db8::/64 " + linkLocal.String() + "]")
	for len(w.Changed()) > 0 {
		<-w.Changed()
	}
	must(t, a.Addr("eth0", "198.51.100.1/25"), a.Addr("eth0", "203.0.113.1/32"), a.Addr("eth0", "192.0.2.7/24"))
	<-w.Changed()
	lists("[192.0.2.0/24 198.51.100.0/25 2001:db8::/64 " + linkLocal.String() + "]")
	w.Close()
	for range w.Changed() { // it ends
	}
}
