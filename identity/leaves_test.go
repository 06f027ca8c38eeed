package identity

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"
)

// The kernel is asked as for the packet itself: rules may go by its mark, by where it comes from
// and by what interface. What is down is no way.
func TestLeaves(t *testing.T) {
	a, _ := newPair(t)
	must(t, a.Forward())
	shell := func(script string) {
		t.Helper()
		must(t, a.Do(func() error {
			if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}))
	}
	shell(`for l in lan7 wg7; do ip link add $l type veth peer name $l-peer; ip link set $l-peer up; ip link set $l up; done
		ip address add 10.0.7.1/24 dev lan7; ip -6 address add fd07::1/64 dev lan7 nodad
		ip -6 address add fd08::1/64 dev wg7 nodad
		ip route add 198.51.100.0/24 via 192.0.2.2; ip -6 route add 2001:db8:a::/48 via 2001:db8::2
		ip route add blackhole 203.0.113.0/24; ip -6 route add unreachable 2001:db8:b::/48
		for v in -4 -6; do
			ip $v route add default dev wg7 table 107
			ip $v rule add fwmark 7 lookup 107
			ip $v rule add iif lan7 fwmark 8 lookup 107
		done
		ip rule add from 10.0.7.7 lookup 107; ip -6 rule add from fd07::7 lookup 107`)
	leaves := func(want string, p Packet) {
		t.Helper()
		must(t, a.Do(func() error {
			if got, err := Leaves(p); got != want || err != nil {
				t.Errorf("%+v leaves by %q (%v), want %q", p, got, err, want)
			}
			return nil
		}))
	}
	for _, v := range []struct{ to, nowhere, unknown, from, other string }{
		{"198.51.100.1", "203.0.113.1", "9.9.9.9", "10.0.7.7", "10.0.7.8"},
		{"2001:db8:a::1", "2001:db8:b::1", "2620:fe::9", "fd07::7", "fd07::8"},
	} {
		to, from, other := netip.MustParseAddr(v.to), netip.MustParseAddr(v.from), netip.MustParseAddr(v.other)
		leaves("eth0", Packet{To: to})
		leaves("wg7", Packet{To: to, Mark: 7})
		leaves("eth0", Packet{To: to, Mark: 8})
		leaves("wg7", Packet{To: to, From: from, In: "lan7"})
		leaves("wg7", Packet{To: to, From: from})
		leaves("eth0", Packet{To: to, From: other})
		leaves("wg7", Packet{To: to, From: other, Mark: 8})
		leaves("", Packet{To: netip.MustParseAddr(v.nowhere)})
		leaves("", Packet{To: netip.MustParseAddr(v.unknown)})
	}
	shell("ip link set wg7 down")
	leaves("eth0", Packet{To: netip.MustParseAddr("198.51.100.1"), Mark: 7})
	leaves("eth0", Packet{To: netip.MustParseAddr("2001:db8:a::1"), Mark: 7})
}
