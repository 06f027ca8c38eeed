package ipdestinationguard

import (
	"net/netip"
	"testing"

	"github.com/coredns/caddy"

	"github.com/destination-guard/coredns-ip-destination-guard/reach"
)

// newFilter is the filter for an answer to a question for a name.
func newFilter(t testing.TB, directive, name string) *filter {
	t.Helper()
	s, p, err := parse(caddy.NewTestController("dns", directive))
	if err != nil {
		t.Fatal(err)
	}
	if s == nil {
		s = &settings{limits: defaultLimits}
	}
	return &filter{policy: p, settings: s, name: name}
}

func TestWithheld(t *testing.T) {
	const (
		rules = `ipdestinationguard nft-both {
			private **.lan
			private printer.home.arpa *.cam.home.arpa 192.168.20.0/24 fd00:20::/64
			private cloud.test 169.254.169.254 10.0.0.0/8
			private imds.test 169.254.0.0/16 fd00:ec2::254
			private lists.test 127.0.0.0/8
			private wide.test 0.0.0.0/0 ::/0
			private me.test 9.9.9.9 192.168.20.1
			private nat64.test 64:ff9b:1::/96
		}`
		private, loopback = "private-use (RFC 1918)", "loopback (RFC 1122)"
		metadata, own     = "metadata of most clouds", "an address of this machine"
		shared            = "shared address space (RFC 6598)"
	)
	tests := []struct{ name, addr, want string }{
		{"a.test.", "8.8.8.8", ""},
		{"a.test.", "10.0.0.1", private},
		{"a.test.", "64:ff9b::a00:1", private},
		{"a.test.", "2002:a00:1::1", private},
		{"a.test.", "169.254.169.254", metadata},
		{"a.test.", "168.63.129.16", "Azure's WireServer"},
		{"a.test.", "127.0.0.1", loopback},
		{"a.test.", "0.0.0.0", "this network (RFC 791)"},
		{"a.test.", "9.9.9.9", own},

		// Without networks: all but metadata and the machine itself.
		{"nas.lan.", "10.0.0.1", ""},
		{"NAS.Lan.", "10.0.0.1", ""},
		{"a.b.lan.", "fe80::1", ""},
		{"lan.", "100.64.0.1", ""},
		{"nas.lan.", "64:ff9b::a00:1", ""},
		{"nas.lan.", "169.254.169.254", metadata},
		{"nas.lan.", "64:ff9b::a9fe:a9fe", metadata},
		{"nas.lan.", "64:ff9b:1::a9fe:a9fe", metadata},
		{"nas.lan.", "::169.254.169.254", metadata},
		{"nas.lan.", "2002:a9fe:a9fe::1", metadata},
		{"nas.lan.", "fd00:ec2::254", "metadata of Amazon EC2"},
		{"nas.lan.", "127.0.0.1", loopback},
		{"nas.lan.", "::1", "loopback (RFC 4291)"},
		{"nas.lan.", "::", "unspecified (RFC 4291)"},
		{"nas.lan.", "192.168.20.1", own},
		{"nas.lan.", "64:ff9b::192.168.20.1", own},
		{"nas.lan.", "9.9.9.9", own},
		{"lan.test.", "10.0.0.1", private},
		{"xlan.", "10.0.0.1", private},

		// With networks: these.
		{"printer.home.arpa.", "192.168.20.9", ""},
		{"printer.home.arpa.", "fd00:20::9", ""},
		{"a.cam.home.arpa.", "192.168.20.10", ""},
		{"a.b.cam.home.arpa.", "192.168.20.10", private},
		{"printer.home.arpa.", "192.168.21.9", private},
		{"printer.home.arpa.", "fd00:21::9", "unique-local (RFC 4193)"},
		{"printer.home.arpa.", "192.168.20.1", own},
		{"tv.home.arpa.", "192.168.20.9", private},
		{"cloud.test.", "10.1.2.3", ""},
		{"cloud.test.", "100.64.0.1", shared},

		// Metadata and the machine itself are meant, or not.
		{"cloud.test.", "169.254.169.254", ""},
		{"cloud.test.", "64:ff9b::a9fe:a9fe", ""},
		{"cloud.test.", "169.254.170.2", "credentials of Amazon ECS tasks"},
		{"imds.test.", "169.254.169.254", metadata},
		{"imds.test.", "169.254.1.1", ""},
		{"imds.test.", "fd00:ec2::254", ""},
		{"lists.test.", "127.0.0.2", ""},
		{"lists.test.", "0.0.0.0", "this network (RFC 791)"},
		{"wide.test.", "10.0.0.1", ""},
		{"wide.test.", "fd00::1", ""},
		{"wide.test.", "127.0.0.1", loopback},
		{"wide.test.", "::1", "loopback (RFC 4291)"},
		{"wide.test.", "169.254.169.254", metadata},
		{"wide.test.", "64:ff9b::a9fe:a9fe", metadata},
		{"wide.test.", "9.9.9.9", own},
		{"me.test.", "9.9.9.9", ""},
		{"me.test.", "192.168.20.1", ""},
		{"nat64.test.", "64:ff9b:1::8.8.8.8", ""},
		{"nat64.test.", "64:ff9b:1::10.0.0.1", ""},
		{"nat64.test.", "64:ff9b:1::a9fe:a9fe", metadata},
		{"a.test.", "64:ff9b:1::8.8.8.8", "NAT64 for local use (RFC 8215)"},

		// By RFC.
		{"localhost.", "127.0.0.1", ""},
		{"a.localhost.", "::1", ""},
		{"localhost.", "10.0.0.1", private},
		{"localhost.test.", "127.0.0.1", loopback},
		{"ipv4only.arpa.", "192.0.0.170", ""},
		{"ipv4only.arpa.", "64:ff9b::192.0.0.171", ""},
		{"ipv4only.arpa.", "192.0.0.172", "IETF protocol assignments (RFC 6890)"},
		{"ipv4only.test.", "192.0.0.170", "NAT64/DNS64 discovery (RFC 7050)"},
	}
	f := newFilter(t, rules, "")
	f.own = func(addr netip.Addr) bool {
		return addr == netip.MustParseAddr("9.9.9.9") || addr == netip.MustParseAddr("192.168.20.1") || addr.IsLoopback()
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.addr, func(t *testing.T) {
			f.name = tt.name
			if got := text(f.withheld(netip.MustParseAddr(tt.addr))); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func text(b *reach.Block) string {
	if b == nil {
		return ""
	}
	return b.Why
}

// What is open to everybody who is guarded, without any DNS, need not be withheld.
func TestWithheldAndAllowed(t *testing.T) {
	const lists = ` {
		allowedIPs 10.1.0.0/16 169.254.169.254 169.254.0.0/16 0.0.0.0/0
		allowedLocalIPs fd00:1::/32 fd00:3::/32 fd00:ec2::/32
		allowedGatewayIPs fd00:2::/32 fd00:3::1
	}`
	for _, tt := range []struct {
		addr                 string
		local, gateway, both bool
	}{
		{"10.1.2.3", true, true, true},
		{"192.168.1.1", true, true, true},
		{"169.254.169.254", true, true, true}, // literally
		{"169.254.170.2", false, false, false},
		{"127.0.0.1", false, false, false},
		{"192.168.20.1", false, false, false}, // our own
		{"fd00:1::1", true, false, false},
		{"fd00:2::1", false, true, false},
		{"fd00:3::1", true, true, true},
		{"fd00:3::2", true, false, false},
		{"fd00:ec2::254", false, false, false},
		{"fd00:ec2::253", true, false, false},
	} {
		for mode, want := range map[string]bool{"nft-local": tt.local, "nft-gateway": tt.gateway, "nft-both": tt.both} {
			f := newFilter(t, "ipdestinationguard "+mode+lists, "a.test.")
			f.own = func(addr netip.Addr) bool { return addr == netip.MustParseAddr("192.168.20.1") }
			if why := f.withheld(netip.MustParseAddr(tt.addr)); (why == nil) != want {
				t.Errorf("%s in %s: withheld is %q", tt.addr, mode, text(why))
			}
		}
	}
}

// A block that only joins has a policy of its own, and that is a strict one.
func TestPolicyOfABlockThatJoins(t *testing.T) {
	f := newFilter(t, "ipdestinationguard", "a.test.")
	if f.withheld(netip.MustParseAddr("10.0.0.1")) == nil || !f.canary {
		t.Error("it is not strict")
	}
}
