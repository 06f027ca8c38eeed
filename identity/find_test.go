package identity

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A client that the mirror has not heard of yet: here it hears nothing.
func TestFindAsksTheKernel(t *testing.T) {
	a, b := newPair(t)
	w := unstarted(t, a)
	now := time.Now()
	w.answers.now = func() time.Time { return now }
	must(t, a.Echo(7))

	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, addr := range []netip.Addr{v4, v6} {
		if _, _, ok := w.Find(addr); ok {
			t.Errorf("%v is found before it has said anything", addr)
		}
	}
	for _, server := range []string{"192.0.2.1:7", "[2001:db8::1]:7"} {
		conn, err := b.Dial(t.Context(), "tcp", server)
		must(t, err, conn.Close())
	}
	for _, addr := range []netip.Addr{v4, v6} {
		if _, _, ok := w.Find(addr); ok {
			t.Errorf("%v: the kernel was asked again within a second", addr)
		}
	}
	now = now.Add(answerLife)
	want := macOn(t, b, "eth0")
	for _, addr := range []netip.Addr{v4, v6, netip.MustParseAddr("::ffff:192.0.2.2")} {
		w.finds(addr.String(), "eth0", want)
	}
}

// Who is behind a router, or is the machine itself, is no neighbour, and costs a
// question a second.
func TestFindNobody(t *testing.T) {
	a, _ := newPair(t)
	must(t, a.Route("198.18.0.0/15", "192.0.2.2"), a.Route("2001:db8:f::/48", "2001:db8::2"))
	w := watch(t, a)
	eth0 := w.ifindex("eth0")
	w.neighbour(eth0, "192.0.2.2", mac(2), unix.NUD_PERMANENT)
	w.neighbour(eth0, "fe80::9", mac(9), unix.NUD_PERMANENT)
	w.links(eth0, "192.0.2.2", mac(2))
	w.links(eth0, "fe80::9", mac(9))
	for _, addr := range []string{
		"198.18.0.1", "2001:db8:f::1", // routed
		"203.0.113.1", "2001:db8:99::1", // no route
		"192.0.2.1", "2001:db8::1", // own
		"192.0.2.3", "2001:db8::3", // not there
		"127.0.0.1", "::1", "224.0.0.1", "ff02::1", "fe80::9", "fe80::7%eth0", "fe80::7%nosuch", "fe80::7%4711",
	} {
		if index, hw, ok := w.Find(netip.MustParseAddr(addr)); ok {
			t.Errorf("%s is found at %s, %d", addr, hex(hw), index)
		}
	}
}

// finds fails the test unless addr is found at an interface.
func (w *watched) finds(addr, ifname string, want hardware) {
	w.t.Helper()
	index, hw, ok := w.Find(netip.MustParseAddr(addr))
	if !ok || hw != want || index != uint32(w.ifindex(ifname)) {
		w.t.Errorf("%s is found at %s, %d, %v; want %s, %s", addr, hex(hw), index, ok, hex(want), ifname)
	}
}

func (w *watched) findsNot(addr string) {
	w.t.Helper()
	if index, hw, ok := w.Find(netip.MustParseAddr(addr)); ok {
		w.t.Errorf("%s is found at %s, %d", addr, hex(hw), index)
	}
}

func TestFindWithZone(t *testing.T) {
	for name, limit := range map[string]int{"in the mirror": maxAddresses, "asked": 0} {
		t.Run(name, func(t *testing.T) {
			w := watchWith(t, newHost(t), func(w *Watcher) { w.neighbours.limit = limit })
			d0, d1 := w.port("d0"), w.port("d1")
			w.neighbour(d0, "fe80::7", mac(1), unix.NUD_STALE)
			w.neighbour(d1, "fe80::7", mac(2), unix.NUD_STALE)
			eventually(t, "interfaces are known", func() bool { _, ok := w.index("d1"); return ok })
			if limit > 0 {
				w.links(d1, "fe80::7", mac(2))
			}
			w.finds("fe80::7%d0", "d0", mac(1))
			w.finds("fe80::7%d1", "d1", mac(2))
			w.finds(fmt.Sprint("fe80::7%", d1), "d1", mac(2))
			w.findsNot("fe80::7")
			w.findsNot("fe80::7%nosuch")
		})
	}
}

// Who claims an address on another wire than its own is not taken for it, whatever
// else is known.
func TestFindOnTheWireOfTheRoute(t *testing.T) {
	for _, tt := range []struct{ own, client, route string }{
		{"198.51.100.1/24", "198.51.100.7", "198.51.100.7/32"},
		{"2001:db8:7::1/64", "2001:db8:7::7", "2001:db8:7::7/128"},
		{"169.254.1.1/16", "169.254.1.7", "169.254.1.7/32"},
	} {
		t.Run(tt.client, func(t *testing.T) {
			var now atomic.Int64
			w := watchWith(t, newHost(t), func(w *Watcher) {
				w.answers.now = func() time.Time { return time.Unix(now.Load(), 0) }
			})
			d0, d1 := w.port("d0"), w.port("d1")
			w.address(w.nl.AddrAdd, "d0", tt.own)
			w.neighbour(d1, tt.client, mac(2), unix.NUD_STALE)
			w.links(d1, tt.client, mac(2))
			w.findsNot(tt.client) // though nobody else has it
			w.neighbour(d0, tt.client, mac(1), unix.NUD_STALE)
			w.links(d0, tt.client, mac(1))
			w.finds(tt.client, "d0", mac(1))
			w.neighbour(d0, tt.client, mac(3), unix.NUD_STALE)
			w.links(d0, tt.client, mac(3))
			w.finds(tt.client, "d0", mac(3))
			w.removeNeighbour(d0, tt.client)
			w.links(d0, tt.client, hardware{})
			now.Add(1)
			w.findsNot(tt.client)

			_, to, err := net.ParseCIDR(tt.route)
			must(t, err, w.nl.RouteAdd(&netlink.Route{LinkIndex: d1, Dst: to, Scope: netlink.SCOPE_LINK}))
			now.Add(1)
			w.finds(tt.client, "d1", mac(2))
		})
	}
}

func TestAnswersAreNotMixedUp(t *testing.T) {
	w := watchWith(t, newHost(t), func(w *Watcher) { w.neighbours.limit = 0 })
	d0 := w.port("d0")
	w.address(w.nl.AddrAdd, "d0", "10.1.0.1/16")
	const n = 1000
	for i := 2; i < n; i++ {
		w.neighbour(d0, floodAddr(i).String(), mac(i), unix.NUD_PERMANENT)
	}
	for range 2 { // from the kernel, and from what it has said
		for i := 2; i < n; i++ {
			w.finds(floodAddr(i).String(), "d0", mac(i))
		}
	}
}

// A lookup allocates nothing, and neither does a miss that is remembered.
func TestLookupsDoNotAllocate(t *testing.T) {
	a, _ := newPair(t)
	w := watch(t, a)
	eth0 := w.ifindex("eth0")
	w.neighbour(eth0, "192.0.2.2", mac(2), unix.NUD_PERMANENT)
	w.neighbour(eth0, "fe80::2", mac(2), unix.NUD_PERMANENT)
	w.links(eth0, "fe80::2", mac(2))
	client, routed := netip.MustParseAddr("::ffff:192.0.2.2"), netip.MustParseAddr("203.0.113.1")
	zoned, own := netip.MustParseAddr("fe80::2%eth0"), netip.MustParseAddr("192.0.2.1")
	w.answers.now = func() time.Time { return time.Time{} }
	w.Find(routed)
	w.Find(client)
	for name, lookup := range map[string]func(){
		"own":       func() { w.Own(own) },
		"not own":   func() { w.Own(client) },
		"own zone":  func() { w.Own(zoned) },
		"neighbour": func() { w.Find(client) },
		"with zone": func() { w.Find(zoned) },
		"miss":      func() { w.Find(routed) },
	} {
		if n := testing.AllocsPerRun(100, lookup); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
