package identity

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// lead asks with memory of nothing.
func lead(t *testing.T, h *netlab.Host, to string, way Way) (leads bool) {
	t.Helper()
	must(t, h.Do(func() error {
		leads = new(Ways).Lead(netip.MustParseAddr(to), way, time.Unix(1, 0))
		return nil
	}))
	return leads
}

func TestWays(t *testing.T) {
	a, _ := newPair(t)
	must(t, a.Route("2001:db8:a::/48", "2001:db8::2"), a.Route("198.51.100.0/24", "192.0.2.2"))
	must(t, a.Do(func() error {
		nl, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer nl.Close()
		link, err := nl.LinkByName("eth0")
		if err != nil {
			return err
		}
		for cidr, kind := range map[string]int{"2001:db8:b::/48": unix.RTN_BLACKHOLE, "2001:db8:c::/48": unix.RTN_PROHIBIT, "2001:db8:d::/48": unix.RTN_UNREACHABLE} {
			to, err := netlink.ParseIPNet(cidr)
			if err == nil {
				err = nl.RouteAdd(&netlink.Route{Dst: to, Type: kind})
			}
			if err != nil {
				return fmt.Errorf("%s: %w", cidr, err)
			}
		}
		to, err := netlink.ParseIPNet("2001:db8:e::/48")
		if err != nil {
			return err
		}
		if err := nl.RouteAdd(&netlink.Route{Dst: to, LinkIndex: link.Attrs().Index, Table: 100}); err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table = netlink.FAMILY_V6, 7, 100
		return nl.RuleAdd(rule)
	}))
	for _, tt := range []struct {
		to   string
		way  Way
		want bool
	}{
		{"192.0.2.2", Way{}, true},
		{"198.51.100.1", Way{}, true},
		{"203.0.113.1", Way{}, false},
		{"2001:db8::2", Way{}, true},
		{"2001:db8:a::1", Way{}, true},
		{"2001:db8:b::1", Way{}, false},
		{"2001:db8:c::1", Way{}, false},
		{"2001:db8:d::1", Way{}, false},
		{"2001:db8:e::1", Way{}, false},
		{"2001:db8:e::1", Way{Mark: 7}, true},
		{"2001:db8:e::1", Way{Mark: 8}, false},
		{"2001:db8:a::1", Way{Out: "eth0"}, true},
		{"2001:db8:a::1", Way{Out: "lo"}, false},
		{"2001:db8:a::1", Way{Out: "nowhere0"}, false},
		{"2001:db8:f::1", Way{}, false},
	} {
		if got := lead(t, a, tt.to, tt.way); got != tt.want {
			t.Errorf("%s by %+v: %v", tt.to, tt.way, got)
		}
	}
}

// With nothing but a link-local address, replies find no way back, unless the source is
// to be another one.
func TestWaysWithoutAddress(t *testing.T) {
	hosts := newHosts(t, "a", "b")
	a := hosts[0]
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	must(t, lab.Link(a, "eth0", hosts[1], "eth0"), a.Addr("eth0", "192.0.2.1/24"))
	must(t, a.Do(func() error {
		nl, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer nl.Close()
		link, err := nl.LinkByName("eth0")
		if err != nil {
			return err
		}
		to, err := netlink.ParseIPNet("2001:db8::/32")
		if err != nil {
			return err
		}
		return nl.RouteAdd(&netlink.Route{Dst: to, LinkIndex: link.Attrs().Index})
	}))
	eventually(t, "there is a link-local address", func() bool { return lead(t, a, "2001:db8::1", Way{Fixed: true}) })
	if lead(t, a, "2001:db8::1", Way{}) {
		t.Error("replies are expected at a link-local address")
	}
}

func TestWaysRemember(t *testing.T) {
	a, _ := newPair(t)
	var w Ways
	now := time.Unix(1, 0)
	to := netip.MustParseAddr("2001:db8:a::1")
	ask := func() (leads bool) {
		must(t, a.Do(func() error { leads = w.Lead(to, Way{}, now); return nil }))
		return leads
	}
	if ask() {
		t.Error("there is a way before there is a route")
	}
	must(t, a.Route("2001:db8:a::/48", "2001:db8::2"))
	if now = now.Add(wayKept - 1); ask() {
		t.Error("it is forgotten too early")
	}
	if now = now.Add(1); !ask() {
		t.Error("it is remembered for too long")
	}
	if n := testing.AllocsPerRun(100, func() { w.Lead(to, Way{}, now) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	for i := range 2 * mostWays {
		w.Lead(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), Way{}, now)
	}
	if len(w.known) > mostWays {
		t.Errorf("%d are remembered", len(w.known))
	}
}
