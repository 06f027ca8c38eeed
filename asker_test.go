package ipdestinationguard

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// wrapped is an address as some plugins hand it on.
type wrapped struct{ net.Addr }

func TestScope(t *testing.T) {
	udp := func(addr string) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	tcp := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	const (
		gateway   = "ipdestinationguard nft-gateway"
		both      = "ipdestinationguard nft-both"
		forwarded = "ipdestinationguard {\nmode nft-gateway\ntrusted_forwarder 192.168.0.9 fd00::/64\n}"
	)
	for _, tt := range []struct {
		name, directive string
		from            net.Addr
		subnet          string // EDNS Client Subnet
		want            string
	}{
		{"a server is its own only client", "ipdestinationguard nft-local", udp("192.168.0.2:1000"), "", "this machine"},
		{"any", "ipdestinationguard {\nmode nft-both\nscope any\n}", udp("192.168.0.2:1000"), "", "everyone"},
		{"a neighbour", gateway, udp("192.168.0.2:1000"), "", "02:00:00:00:00:02 at interface 7"},
		{"a neighbour over TCP", gateway, tcp("192.168.0.2:1000"), "", "02:00:00:00:00:02 at interface 7"},
		{"a neighbour on a socket of both versions", gateway, udp("[::ffff:192.168.0.2]:1000"), "", "02:00:00:00:00:02 at interface 7"},
		{"a routed client", gateway, udp("10.0.0.1:1000"), "", "10.0.0.1"},
		{"a routed client, IPv6", both, udp("[2001:db8::1]:1000"), "", "2001:db8::1"},
		{"the gateway asks for itself", gateway, udp("127.0.0.1:1000"), "", "this machine"},
		{"by an address of its own", gateway, udp("192.168.0.1:1000"), "", "this machine"},
		{"and is guarded itself", both, udp("192.168.0.1:1000"), "", "this machine"},
		{"a header of the PROXY protocol", gateway, wrapped{udp("192.168.0.2:1000")}, "", "02:00:00:00:00:02 at interface 7"},
		{"an address that was lost", both, &net.TCPAddr{}, "", "::"},
		{"IPv6 loopback", both, tcp("[::1]:1000"), "", "this machine"},
		{"no address", both, &net.UnixAddr{Name: "x"}, "", "this machine"},
		{"a forwarder for a neighbour", forwarded, udp("192.168.0.9:53"), "192.168.0.2/32", "02:00:00:00:00:02 at interface 7"},
		{"a forwarder for a routed client", forwarded, udp("[fd00::1]:53"), "2001:db8::7/128", "2001:db8::7"},
		{"a forwarder with a network", forwarded, udp("192.168.0.9:53"), "192.168.0.0/24", "192.168.0.9"},
		{"a forwarder for itself", forwarded, udp("192.168.0.9:53"), "", "192.168.0.9"},
		{"a forwarder for the gateway", forwarded, udp("192.168.0.9:53"), "127.0.0.1/32", "this machine"},
		{"a stranger names another", forwarded, udp("192.168.0.3:53"), "192.168.0.2/32", "192.168.0.3"},
		{"anyone names another", gateway, udp("192.168.0.3:53"), "192.168.0.2/32", "192.168.0.3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			r.network.own = map[netip.Addr]bool{netip.MustParseAddr("192.168.0.1"): true}
			r.network.links = map[netip.Addr][6]byte{netip.MustParseAddr("192.168.0.2"): {2, 0, 0, 0, 0, 2}}
			m := new(dns.Msg)
			m.SetQuestion("a.test.", dns.TypeA)
			if tt.subnet != "" {
				p := netip.MustParsePrefix(tt.subnet)
				family := uint16(1)
				if p.Addr().Is6() {
					family = 2
				}
				m.SetEdns0(1232, false)
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{
					Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice(),
				})
			}
			got := r.guard.scope(tt.from, m).String()
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
