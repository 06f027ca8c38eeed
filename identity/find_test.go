package identity

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A client that the mirror has not heard of yet: here it hears nothing.
func TestFindAsksTheKernel(t *testing.T) {
	a, b := newPair(t)
	var w *Watcher
	must(t, a.Do(func() (err error) {
		w, err = openWatcher(func(err error) { t.Error(err) })
		return err
	}))
	t.Cleanup(w.Close)
	now := time.Now()
	w.answers.now = func() time.Time { return now }
	must(t, a.Echo(7))

	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, addr := range []netip.Addr{v4, v6} {
		if _, ok := w.Find(addr); ok {
			t.Errorf("%v is found before it has said anything", addr)
		}
	}
	for _, server := range []string{"192.0.2.1:7", "[2001:db8::1]:7"} {
		conn, err := b.Dial(t.Context(), "tcp", server)
		must(t, err, conn.Close())
	}
	for _, addr := range []netip.Addr{v4, v6} {
		if _, ok := w.Find(addr); ok {
			t.Errorf("%v: the kernel was asked again within a second", addr)
		}
	}
	now = now.Add(answerLife)
	want := macOn(t, b, "eth0")
	for _, addr := range []netip.Addr{v4, v6, netip.MustParseAddr("::ffff:192.0.2.2")} {
		if hw, ok := w.Find(addr); !ok || hw != want {
			t.Errorf("%v: found %s, %v", addr, hex(hw), ok)
		}
	}
}

// Who is behind a router, or is the machine itself, is no neighbour, and costs a
// question a second.
func TestFindNobody(t *testing.T) {
	a, _ := newPair(t)
	must(t, a.Route("198.18.0.0/15", "192.0.2.2"), a.Route("2001:db8:f::/48", "2001:db8::2"))
	w := watch(t, a)
	w.neighbour(w.ifindex("eth0"), "192.0.2.2", mac(2), unix.NUD_PERMANENT)
	w.links("192.0.2.2", mac(2))
	for _, addr := range []string{
		"198.18.0.1", "2001:db8:f::1", // routed
		"203.0.113.1", "2001:db8:99::1", // no route
		"192.0.2.1", "2001:db8::1", // own
		"192.0.2.3", "2001:db8::3", // not there
		"127.0.0.1", "::1", "224.0.0.1", "ff02::1", "fe80::7", "fe80::7%eth0", "fe80::7%nosuch", "fe80::7%4711",
	} {
		if hw, ok := w.Find(netip.MustParseAddr(addr)); ok {
			t.Errorf("%s is found at %s", addr, hex(hw))
		}
	}
}

func TestFindWithZone(t *testing.T) {
	w := watchWith(t, newHost(t), func(w *Watcher) { w.neighbours.limit = 0 })
	d0, d1 := w.port("d0"), w.port("d1")
	w.neighbour(d0, "fe80::7", mac(1), unix.NUD_STALE)
	w.neighbour(d1, "fe80::7", mac(2), unix.NUD_STALE)
	eventually(t, "interfaces are known", func() bool { _, ok := w.index("d1"); return ok })
	for zone, want := range map[string]hardware{"d0": mac(1), "d1": mac(2)} {
		if hw, ok := w.Find(netip.MustParseAddr("fe80::7%" + zone)); !ok || hw != want {
			t.Errorf("on %s: found %s, %v", zone, hex(hw), ok)
		}
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
			if hw, ok := w.Find(floodAddr(i)); !ok || hw != mac(i) {
				t.Fatalf("%v is found at %s, %v", floodAddr(i), hex(hw), ok)
			}
		}
	}
}

// A lookup allocates nothing, and neither does a miss that is remembered.
func TestLookupsDoNotAllocate(t *testing.T) {
	a, _ := newPair(t)
	w := watch(t, a)
	w.neighbour(w.ifindex("eth0"), "192.0.2.2", mac(2), unix.NUD_PERMANENT)
	w.neighbour(w.ifindex("eth0"), "fe80::2", mac(2), unix.NUD_PERMANENT)
	w.links("fe80::2%eth0", mac(2))
	client, routed := netip.MustParseAddr("::ffff:192.0.2.2"), netip.MustParseAddr("203.0.113.1")
	zoned, own := netip.MustParseAddr("fe80::2%eth0"), netip.MustParseAddr("192.0.2.1")
	w.answers.now = func() time.Time { return time.Time{} }
	w.Find(routed)
	for name, lookup := range map[string]func(){
		"own":       func() { w.Own(own) },
		"not own":   func() { w.Own(client) },
		"link":      func() { w.Link(client) },
		"with zone": func() { w.Link(zoned) },
		"miss":      func() { w.Find(routed) },
	} {
		if n := testing.AllocsPerRun(100, lookup); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
