package reach

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestGlobal(t *testing.T) {
	tests := []struct {
		addr   string
		global bool
		why    string // of Of, unless it is global
	}{
		{"8.8.8.8", true, ""},
		{"1.1.1.1", true, ""},
		{"9.255.255.255", true, ""},
		{"11.0.0.0", true, ""},
		{"0.0.0.0", false, "this network (RFC 791)"},
		{"0.1.2.3", false, "this network (RFC 791)"},
		{"1.0.0.0", true, ""},
		{"10.0.0.0", false, "private-use (RFC 1918)"},
		{"10.255.255.255", false, "private-use (RFC 1918)"},
		{"100.63.255.255", true, ""},
		{"100.64.0.0", false, "shared address space (RFC 6598)"},
		{"100.127.255.255", false, "shared address space (RFC 6598)"},
		{"100.128.0.0", true, ""},
		{"126.255.255.255", true, ""},
		{"127.0.0.1", false, "loopback (RFC 1122)"},
		{"127.255.255.254", false, "loopback (RFC 1122)"},
		{"128.0.0.1", true, ""},
		{"169.253.255.255", true, ""},
		{"169.254.1.1", false, "link-local (RFC 3927)"},
		{"169.255.0.0", true, ""},
		{"172.15.255.255", true, ""},
		{"172.16.0.1", false, "private-use (RFC 1918)"},
		{"172.31.255.255", false, "private-use (RFC 1918)"},
		{"172.32.0.0", true, ""},
		{"191.255.255.255", true, ""},
		{"192.0.0.1", false, "IPv4 service continuity (RFC 7335)"},
		{"192.0.0.8", false, "IPv4 dummy address (RFC 7600)"},
		{"192.0.0.9", true, ""},
		{"192.0.0.10", true, ""},
		{"192.0.0.11", false, "IETF protocol assignments (RFC 6890)"},
		{"192.0.0.170", false, "NAT64/DNS64 discovery (RFC 7050)"},
		{"192.0.0.171", false, "NAT64/DNS64 discovery (RFC 7050)"},
		{"192.0.1.1", true, ""},
		{"192.0.2.1", false, "documentation (RFC 5737)"},
		{"192.31.196.1", true, ""},
		{"192.52.193.1", true, ""},
		{"192.88.99.1", false, "deprecated 6to4 relay anycast (RFC 7526)"},
		{"192.88.99.2", false, "6a44 relay anycast (RFC 6751)"},
		{"192.167.255.255", true, ""},
		{"192.168.1.1", false, "private-use (RFC 1918)"},
		{"192.169.0.0", true, ""},
		{"192.175.48.1", true, ""},
		{"198.17.255.255", true, ""},
		{"198.18.0.1", false, "benchmarking (RFC 2544)"},
		{"198.19.255.255", false, "benchmarking (RFC 2544)"},
		{"198.20.0.0", true, ""},
		{"198.51.100.7", false, "documentation (RFC 5737)"},
		{"203.0.113.7", false, "documentation (RFC 5737)"},
		{"203.0.114.0", true, ""},
		{"223.255.255.255", true, ""},
		{"224.0.0.251", false, "multicast (RFC 5771)"},
		{"239.255.255.250", false, "multicast (RFC 5771)"},
		{"240.0.0.1", false, "reserved (RFC 1112)"},
		{"255.255.255.255", false, "limited broadcast (RFC 919)"},

		{"100.100.100.200", false, "metadata of Alibaba Cloud"},
		{"100.100.100.201", false, "shared address space (RFC 6598)"},
		{"168.63.129.16", false, "Azure's WireServer"},
		{"168.63.129.17", true, ""},
		{"169.254.0.23", false, "metadata of Tencent Cloud"},
		{"169.254.42.42", false, "metadata of Scaleway"},
		{"169.254.169.254", false, "metadata of most clouds"},
		{"169.254.169.253", false, "link-local (RFC 3927)"},
		{"169.254.170.2", false, "credentials of Amazon ECS tasks"},
		{"169.254.170.23", false, "credentials of Amazon EKS pods"},
		{"192.0.0.192", false, "metadata of Oracle Cloud, once"},
		{"fd00:42::42", false, "metadata of Scaleway"},
		{"fd00:100::100:200", false, "metadata of Alibaba Cloud"},
		{"fd00:a9fe:a9fe::1", false, "metadata of Akamai"},
		{"fd00:c1::a9fe:a9fe", false, "metadata of Oracle Cloud"},
		{"fd00:ec2::23", false, "credentials of Amazon EKS pods"},
		{"fd00:ec2::254", false, "metadata of Amazon EC2"},
		{"fd00:ec2::253", false, "unique-local (RFC 4193)"},
		{"fd20:ce::254", false, "metadata of Google Cloud"},
		{"fe80::a9fe:a9fe", false, "metadata of OpenStack"},

		{"2606:4700::1111", true, ""},
		{"2620:fe::fe", true, ""},
		{"2a00:1450:4001:800::200e", true, ""},
		{"2000::1", true, ""},
		{"3ffe::1", true, ""},
		{"3fff:1000::1", true, ""},
		{"1fff:ffff::1", false, "not given out by IANA (RFC 4291)"},
		{"4000::1", false, "not given out by IANA (RFC 4291)"},
		{"e000::1", false, "not given out by IANA (RFC 4291)"},
		{"::", false, "unspecified (RFC 4291)"},
		{"::1", false, "loopback (RFC 4291)"},
		{"::2", false, "deprecated IPv4-compatible (RFC 4291)"},
		{"::8.8.8.8", false, "deprecated IPv4-compatible (RFC 4291)"},
		{"::192.168.1.1", false, "deprecated IPv4-compatible (RFC 4291)"},
		{"::ffff:0:8.8.8.8", false, "IPv4-translated (RFC 2765)"},
		{"64:ff9b:1::808:808", false, "NAT64 for local use (RFC 8215)"},
		{"64:ff9b:2::808:808", false, "not given out by IANA (RFC 4291)"},
		{"64:ff9b::1:0:0", false, "not given out by IANA (RFC 4291)"},
		{"100::1", false, "discard-only (RFC 6666)"},
		{"100:0:0:1::1", false, "dummy prefix (RFC 9780)"},
		{"100:0:0:2::1", false, "not given out by IANA (RFC 4291)"},
		{"2001:1::1", true, ""},
		{"2001:1::2", true, ""},
		{"2001:1::3", true, ""},
		{"2001:1::4", false, "IETF protocol assignments (RFC 2928)"},
		{"2001:2::1", false, "benchmarking (RFC 5180)"},
		{"2001:2:1::1", false, "IETF protocol assignments (RFC 2928)"},
		{"2001:3::1", true, ""},
		{"2001:4:112::1", true, ""},
		{"2001:4:113::1", false, "IETF protocol assignments (RFC 2928)"},
		{"2001:10::1", false, "deprecated ORCHID (RFC 4843)"},
		{"2001:20::1", true, ""},
		{"2001:2f:ffff::1", true, ""},
		{"2001:30::1", true, ""},
		{"2001:40::1", false, "IETF protocol assignments (RFC 2928)"},
		{"2001:1ff:ffff::1", false, "IETF protocol assignments (RFC 2928)"},
		{"2001:200::1", true, ""},
		{"2001:4860:4860::8888", true, ""},
		{"2001:db8::1", false, "documentation (RFC 3849)"},
		{"2001:db9::1", true, ""},
		{"2620:4f:8000::1", true, ""},
		{"3fff::1", false, "documentation (RFC 9637)"},
		{"3fff:fff::1", false, "documentation (RFC 9637)"},
		{"5f00::1", false, "segment routing (RFC 9602)"},
		{"fc00::1", false, "unique-local (RFC 4193)"},
		{"fd12:3456:789a::1", false, "unique-local (RFC 4193)"},
		{"fe00::1", false, "not given out by IANA (RFC 4291)"},
		{"fe80::1", false, "link-local (RFC 4291)"},
		{"febf::1", false, "link-local (RFC 4291)"},
		{"fec0::1", false, "deprecated site-local (RFC 3879)"},
		{"ff02::1", false, "multicast (RFC 4291)"},
		{"ff0e::1", false, "multicast (RFC 4291)"},

		// What holds IPv4 addresses is judged by these: why is that of a part.
		{"::ffff:8.8.8.8", true, ""},
		{"::ffff:10.0.0.1", false, "private-use (RFC 1918)"},
		{"::ffff:127.0.0.1", false, "loopback (RFC 1122)"},
		{"::ffff:169.254.169.254", false, "metadata of most clouds"},
		{"64:ff9b::8.8.8.8", true, ""},
		{"64:ff9b::10.0.0.1", false, "private-use (RFC 1918)"},
		{"64:ff9b::192.0.0.170", false, "NAT64/DNS64 discovery (RFC 7050)"},
		{"64:ff9b::168.63.129.16", false, "Azure's WireServer"},
		{"2002:808:808::1", true, ""},
		{"2002:c0a8:101::1", false, "private-use (RFC 1918)"},
		{"2002:a9fe:a9fe::", false, "metadata of most clouds"},
		{"2002:7f00:1::1", false, "loopback (RFC 1122)"},
		{"2001:0:808:808:0:ffff:f6f6:f6f6", true, ""},                         // 9.9.9.9 asks 8.8.8.8
		{"2001:0:808:808:0:ffff:f5ff:fffe", false, "private-use (RFC 1918)"},  // 10.0.0.1
		{"2001:0:a00:1:0:ffff:f6f6:f6f6", false, "private-use (RFC 1918)"},    // asks 10.0.0.1
		{"2001:0:808:808:0:ffff:5601:5601", false, "metadata of most clouds"}, // 169.254.169.254
		{"2606:4700::5efe:8.8.8.8", true, ""},                                 // ISATAP
		{"2606:4700::5efe:10.0.0.1", false, "private-use (RFC 1918)"},
		{"2606:4700::200:5efe:192.168.1.1", false, "private-use (RFC 1918)"},
		{"2606:4700::300:5efe:192.168.1.1", true, ""},                    // not ISATAP
		{"2002:808:808::5efe:10.0.0.1", false, "private-use (RFC 1918)"}, // in 6to4
		{"2606:4700:a00:1::1", true, ""},                                 // as NAT64 with any prefix may look
		{"2606:4700::10.0.0.1", true, ""},
		{"2001:0:808:808:0:5efe:f6f6:f6f6", false, "reserved (RFC 1112)"},        // Teredo with a port like ISATAP
		{"2001:1::5efe:10.0.0.1", false, "IETF protocol assignments (RFC 2928)"}, // the first part counts
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			addr := netip.MustParseAddr(tt.addr)
			if got := Global(addr); got != tt.global {
				t.Errorf("globally reachable: %v", got)
			}
			if got := why(addr); got != tt.why {
				t.Errorf("got %q, want %q", got, tt.why)
			}
		})
	}
}

// why says of the first part that is not globally reachable what it is.
func why(addr netip.Addr) string {
	for _, part := range Parts(addr, nil) {
		if b := Of(part); b.Kind != Anywhere {
			return b.Why
		}
	}
	return ""
}

func TestParts(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1":                        "[10.0.0.1]",
		"2606:4700::1111":                 "[2606:4700::1111]",
		"::":                              "[::]",
		"::1":                             "[::1]",
		"::ffff:10.0.0.1":                 "[10.0.0.1]",
		"::10.0.0.1":                      "[::a00:1 10.0.0.1]",
		"::ffff:0:169.254.169.254":        "[::ffff:0:a9fe:a9fe 169.254.169.254]",
		"64:ff9b::10.0.0.1":               "[64:ff9b::a00:1 10.0.0.1]",
		"64:ff9b:1:2:3:4:169.254.169.254": "[64:ff9b:1:2:3:4:a9fe:a9fe 169.254.169.254]",
		"2002:a00:1::5efe:10.0.0.2":       "[2002:a00:1::5efe:a00:2 10.0.0.1 10.0.0.2]",
		"2001:0:a00:1:0:5efe:f5ff:fffd":   "[2001:0:a00:1:0:5efe:f5ff:fffd 10.0.0.1 10.0.0.2 245.255.255.253]",
	} {
		if got := fmt.Sprint(Parts(netip.MustParseAddr(addr), nil)); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// smallest finds a block the slow way.
func smallest(addr netip.Addr) *Block {
	var found *Block
	for i := range blocks {
		if b := &blocks[i]; b.Prefix.Contains(addr) && (found == nil || b.Prefix.Bits() > found.Prefix.Bits()) {
			found = b
		}
	}
	return found
}

// Each block begins and ends where it should, and so does what is around it.
func TestBlocks(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for i := range blocks {
		b := &blocks[i]
		if b.Prefix != b.Prefix.Masked() || seen[b.Prefix] || b.Why == "" && b.Prefix.Bits() > 0 {
			t.Errorf("%v: %+v", b.Prefix, b)
		}
		seen[b.Prefix] = true
		first, last := b.Prefix.Addr().AsSlice(), b.Prefix.Addr().AsSlice()
		for bit := b.Prefix.Bits(); bit < 8*len(last); bit++ {
			last[bit/8] |= 1 << (7 - bit%8)
		}
		from, _ := netip.AddrFromSlice(first)
		to, _ := netip.AddrFromSlice(last)
		for _, addr := range []netip.Addr{from, to, from.Prev(), to.Next()} {
			if addr.IsValid() && !addr.Is4In6() && Of(addr) != smallest(addr) {
				t.Errorf("%v is in %+v, want %+v", addr, Of(addr), smallest(addr))
			}
		}
	}
}

func FuzzGlobal(f *testing.F) {
	for i := range blocks {
		f.Add(blocks[i].Prefix.Addr().AsSlice())
	}
	for _, text := range []string{"::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:a00:1::", "2001:0:808:808::", "2606:4700::5efe:a00:1"} {
		f.Add(netip.MustParseAddr(text).AsSlice())
	}
	f.Fuzz(func(t *testing.T, bytes []byte) {
		addr, ok := netip.AddrFromSlice(bytes)
		if !ok {
			return
		}
		if Of(addr) != smallest(addr.Unmap()) {
			t.Errorf("%v is in %+v, want %+v", addr, Of(addr), smallest(addr.Unmap()))
		}
		global := true
		for _, part := range Parts(addr, nil) {
			global = global && smallest(part).Kind == Anywhere
		}
		if Global(addr) != global {
			t.Errorf("%v: %v", addr, Global(addr))
		}
		if global && (addr.IsPrivate() || addr.IsLoopback() || addr.IsMulticast() || addr.IsUnspecified() || addr.IsLinkLocalUnicast()) {
			t.Errorf("%v is not global", addr)
		}
	})
}

var benchAddrs = []string{"9.9.9.9", "192.0.1.1", "192.168.1.1", "2620:fe::fe", "2001:4860:4860::8888", "2001:db8::1", "64:ff9b::909:909"}

func BenchmarkGlobal(b *testing.B) {
	for _, text := range benchAddrs {
		addr := netip.MustParseAddr(text)
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Global(addr)
			}
		})
	}
}

func TestAllocatesNothing(t *testing.T) {
	for _, text := range benchAddrs {
		addr := netip.MustParseAddr(text)
		var buf [4]netip.Addr
		if n := testing.AllocsPerRun(100, func() { Global(addr); Parts(addr, buf[:0]) }); n > 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}
