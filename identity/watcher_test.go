package identity

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func macOf(hw hardware) net.HardwareAddr { return hw[:] }

func mac(i int) hardware { return hardware{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

// macOn returns the link address of a host's interface.
func macOn(t testing.TB, h *netlab.Host, ifname string) (hw hardware) {
	t.Helper()
	must(t, h.Do(func() error {
		nl, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer nl.Close()
		link, err := nl.LinkByName(ifname)
		if err == nil {
			hw = hardware(link.Attrs().HardwareAddr)
		}
		return err
	}))
	return hw
}

func TestLinkOfPeer(t *testing.T) {
	a, b := newPair(t)
	w := watch(t, a)
	want := macOn(t, b, "eth0")
	eth0 := w.ifindex("eth0")
	must(t, a.Echo(7))
	for addr, server := range map[string]string{"192.0.2.2": "192.0.2.1:7", "2001:db8::2": "[2001:db8::1]:7"} {
		if _, ok := w.mirrors(eth0, netip.MustParseAddr(addr)); ok {
			t.Errorf("%s is known before it has said anything", addr)
		}
		conn, err := b.Dial(t.Context(), "tcp", server)
		must(t, err, conn.Close())
		w.links(eth0, addr, want)
	}
}

func TestLinkStates(t *testing.T) {
	w := watch(t, newHost(t))
	d0 := w.port("d0")
	for i, tt := range []struct {
		name  string
		state int
		known bool
	}{
		{"permanent", unix.NUD_PERMANENT, true},
		{"reachable", unix.NUD_REACHABLE, true},
		{"stale", unix.NUD_STALE, true},
		{"delay", unix.NUD_DELAY, true},
		{"noarp", unix.NUD_NOARP, false},
		{"failed", unix.NUD_FAILED, false},
		{"incomplete", unix.NUD_INCOMPLETE, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, addr := range []string{fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("2001:db8::%d", i+1)} {
				w.neighbour(d0, addr, mac(1), unix.NUD_PERMANENT)
				w.links(d0, addr, mac(1))
				w.neighbour(d0, addr, mac(2), tt.state)
				if tt.known {
					w.links(d0, addr, mac(2))
				} else {
					w.links(d0, addr, hardware{})
				}
			}
		})
	}
}

func TestLinkFollows(t *testing.T) {
	w := watch(t, newHost(t))
	d0 := w.port("d0")
	for _, addr := range []string{"198.51.100.7", "2001:db8::7", "fe80::7"} {
		w.neighbour(d0, addr, mac(1), unix.NUD_STALE)
		w.links(d0, addr, mac(1))
		w.neighbour(d0, addr, mac(2), unix.NUD_STALE)
		w.links(d0, addr, mac(2))
		w.removeNeighbour(d0, addr)
		w.links(d0, addr, hardware{})
	}
	w.neighbour(d0, "198.51.100.8", mac(3), unix.NUD_PERMANENT)
	w.links(d0, "198.51.100.8", mac(3))
	link, err := w.nl.LinkByName("d0")
	must(t, err, w.nl.LinkDel(link))
	w.links(d0, "198.51.100.8", hardware{})
}

// What a bridge or a proxy answers for is not a neighbour.
func TestLinkOfOtherTables(t *testing.T) {
	w := watch(t, newHost(t))
	d0 := w.port("d0")
	proxy := neighbourEntry(d0, "198.51.100.7", mac(1), unix.NUD_PERMANENT)
	proxy.Flags = unix.NTF_PROXY
	must(t, w.nl.NeighAdd(proxy))
	w.neighbour(d0, "198.51.100.8", mac(2), unix.NUD_PERMANENT)
	w.links(d0, "198.51.100.8", mac(2))
	w.links(d0, "198.51.100.7", hardware{})
	if again := watch(t, w.host); again != nil {
		again.links(d0, "198.51.100.7", hardware{})
		again.links(d0, "198.51.100.8", mac(2))
	}
}

func TestWatchOfNothing(t *testing.T) {
	w := watch(t, newHost(t))
	for _, addr := range []netip.Addr{{}, netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if _, _, ok := w.Find(addr); ok {
			t.Errorf("%v was found", addr)
		}
	}
}

func TestWatcherCloses(t *testing.T) {
	h := newHost(t)
	watch(t, h).Watcher.Close()
	before := runtime.NumGoroutine()
	w := watch(t, h)
	d0 := w.port("d0")
	w.address(w.nl.AddrAdd, "d0", "198.51.100.1/24")
	w.neighbour(d0, "198.51.100.7", mac(1), unix.NUD_PERMANENT)
	w.links(d0, "198.51.100.7", mac(1))
	var asking sync.WaitGroup
	for i := range 8 {
		asking.Go(func() {
			for j := range 100 {
				w.Find(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i + j)}))
			}
		})
	}
	w.Watcher.Close()
	w.Watcher.Close()
	asking.Wait()
	if w.Own(netip.MustParseAddr("198.51.100.1")) || !w.Own(netip.MustParseAddr("127.0.0.1")) {
		t.Error("own after the end")
	}
	if _, _, ok := w.Find(netip.MustParseAddr("198.51.100.7")); ok {
		t.Error("found after the end")
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	if errs := w.logged(); len(errs) > 0 {
		t.Error(errors.Join(errs...))
	}
}
