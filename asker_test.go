package ipdestinationguard

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// wrapped is an address as some plugins hand it on.
type wrapped struct{ net.Addr }

// ends are what a question came by.
type ends struct {
	dns.ResponseWriter
	remote, local net.Addr
}

func (e ends) RemoteAddr() net.Addr { return e.remote }
func (e ends) LocalAddr() net.Addr  { return e.local }

func TestScope(t *testing.T) {
	udp := func(addr string) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	tcp := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	const (
		gateway   = "ipdestinationguard nft-gateway"
		both      = "ipdestinationguard nft-both"
		forwarded = "ipdestinationguard {\nmode nft-gateway\ntrusted_forwarder 192.168.0.9 fd00::/64\n}"

		application  = "ipdestinationguard {\nmode nft-local\nscope application\nshared_resolver 102 nscd.service\n}"
		applications = "ipdestinationguard {\nmode nft-both\nscope application\n}"
		byUser       = "ipdestinationguard {\nmode nft-local\nscope application uid\n}"
		programs     = "ipdestinationguard {\nmode nft-both\nusers 33\n}"
		anyPrograms  = "ipdestinationguard {\nmode nft-both\nscope any\nunits cron.service\n}"
	)
	for _, tt := range []struct {
		name, directive string
		from            net.Addr
		subnet          string // EDNS Client Subnet
		want            string
	}{
		{"a server is its own only client", "ipdestinationguard nft-local", udp("192.168.0.2:1000"), "", "this machine"},
		{"any", "ipdestinationguard {\nmode nft-both\nscope any\n}", udp("192.168.0.2:1000"), "", "everyone"},
		{"a neighbour", gateway, udp("192.168.0.2:1000"), "", "02:00:00:00:00:02 at interface 3"},
		{"a neighbour over TCP", gateway, tcp("192.168.0.2:1000"), "", "02:00:00:00:00:02 at interface 3"},
		{"a neighbour on a socket of both versions", gateway, udp("[::ffff:192.168.0.2]:1000"), "", "02:00:00:00:00:02 at interface 3"},
		{"a routed client", gateway, udp("10.0.0.1:1000"), "", "10.0.0.1"},
		{"a routed client, IPv6", both, udp("[2001:db8::1]:1000"), "", "2001:db8::1"},
		{"the gateway asks for itself", gateway, udp("127.0.0.1:1000"), "", "this machine"},
		{"by an address of its own", gateway, udp("192.168.0.1:1000"), "", "this machine"},
		{"and is guarded itself", both, udp("192.168.0.1:1000"), "", "this machine"},
		{"a header of the PROXY protocol", gateway, wrapped{udp("192.168.0.2:1000")}, "", "02:00:00:00:00:02 at interface 3"},
		{"an address that was lost", both, &net.TCPAddr{}, "", "::"},
		{"IPv6 loopback", both, tcp("[::1]:1000"), "", "this machine"},
		{"no address", both, &net.UnixAddr{Name: "x"}, "", "this machine"},
		{"a forwarder for a neighbour", forwarded, udp("192.168.0.9:53"), "192.168.0.2/32", "02:00:00:00:00:02 at interface 3"},
		{"a forwarder for a routed client", forwarded, udp("[fd00::1]:53"), "2001:db8::7/128", "2001:db8::7"},
		{"a forwarder with a network", forwarded, udp("192.168.0.9:53"), "192.168.0.0/24", "192.168.0.9"},
		{"a forwarder for itself", forwarded, udp("192.168.0.9:53"), "", "192.168.0.9"},
		{"a forwarder for the gateway", forwarded, udp("192.168.0.9:53"), "127.0.0.1/32", "192.168.0.9"},
		{"a forwarder for an address of the gateway", forwarded, udp("192.168.0.9:53"), "192.168.0.1/32", "192.168.0.9"},
		{"a stranger names another", forwarded, udp("192.168.0.3:53"), "192.168.0.2/32", "192.168.0.3"},
		{"anyone names another", gateway, udp("192.168.0.3:53"), "192.168.0.2/32", "192.168.0.3"},
		{"an application", application, udp("127.0.0.1:2001"), "", "cgroup 71"},
		{"over TCP", application, tcp("[::1]:2001"), "", "cgroup 71"},
		{"of no unit", application, udp("127.0.0.1:2002"), "", "user 1002"},
		{"by its user", byUser, udp("127.0.0.1:2001"), "", "user 1001"},
		{"a resolver for all, by its user", application, udp("127.0.0.1:2003"), "", "this machine"},
		{"a resolver for all, by its unit", application, udp("127.0.0.1:2004"), "", "this machine"},
		{"an application that is gone", application, udp("127.0.0.1:2005"), "", "who asks cannot be found: gone"},
		{"an application without an address", application, nil, "", "who asks cannot be found: it has no address"},
		{"somebody else than applications", application, udp("192.168.0.2:1000"), "", "nobody"},
		{"a client, where applications are told apart", applications, udp("192.168.0.2:1000"), "", "02:00:00:00:00:02 at interface 3"},
		{"an application on a gateway", applications, udp("192.168.0.1:2001"), "", "cgroup 71"},
		{"a client, of names for users", programs, udp("192.168.0.2:1000"), "", errPrograms.Error()},
		{"the machine, of names for users", programs, udp("127.0.0.1:1000"), "", "this machine (class 1)"},
		{"a client, of names for units", anyPrograms, udp("192.168.0.2:1000"), "", errPrograms.Error()},
		{"the machine, of names for units", anyPrograms, udp("127.0.0.1:1000"), "", "everyone (class 1)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			r.network.own = map[netip.Addr]bool{netip.MustParseAddr("192.168.0.1"): true}
			r.network.links = map[netip.Addr][6]byte{netip.MustParseAddr("192.168.0.2"): {2, 0, 0, 0, 0, 2}}
			for client, program := range map[string]program{
				"127.0.0.1:2001":   {identity.Asker{UID: 1001, Cgroup: 71}, "/user.slice/app.service"},
				"[::1]:2001":       {identity.Asker{UID: 1001, Cgroup: 71}, "/user.slice/app.service"},
				"192.168.0.1:2001": {identity.Asker{UID: 1001, Cgroup: 71}, "/user.slice/app.service"},
				"127.0.0.1:2002":   {identity.Asker{UID: 1002, Cgroup: 1}, "/"},
				"127.0.0.1:2003":   {identity.Asker{UID: 102, Cgroup: 73}, "/system.slice/resolver.service"},
				"127.0.0.1:2004":   {identity.Asker{UID: 1004, Cgroup: 74}, "/system.slice/nscd.service"},
			} {
				r.programs[netip.MustParseAddrPort(client)] = program
			}
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
			got := ""
			scope, err := r.guard.scope(t.Context(), ends{remote: tt.from}, m, r.policy)
			switch {
			case err != nil:
				got = err.Error()
			case scope == nobody:
				got = "nobody"
			default:
				got = scope.String()
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
