package flowlog

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

const (
	ipv4  = "4500003c0001400040060000c0000201c6120001" // 192.0.2.1 > 198.18.0.1, TCP, 60 bytes
	ports = "0fa001bb"                                 // 4000 > 443
	from6 = "20010db8000000000000000000000001"
	to6   = "20010db8000f00000000000000000001"
)

// ipv6 is a header of 60 bytes in all, with what comes next.
func ipv6(next string) string { return "6000000000" + "14" + next + "40" + from6 + to6 }

var packets = map[string]struct {
	bytes  string
	reads  bool
	flow   backend.Flow // of the output chain
	packet Packet
}{
	"TCP": {ipv4 + ports, true, to("198.18.0.1", 6, 443), Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), Length: 60}},
	"a first fragment": {strings.Replace(ipv4, "00014000", "00012000", 1) + ports, true, to("198.18.0.1", 6, 443),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), Length: 60}},
	"a later fragment":     {strings.Replace(ipv4, "00014000", "00010010", 1) + ports, false, backend.Flow{}, Packet{}},
	"cut off in the ports": {ipv4 + ports[:6], false, backend.Flow{}, Packet{}},
	"ping": {strings.Replace(ipv4, "4006", "4001", 1) + "0800f7fd", true, to("198.18.0.1", 1, 0),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:0"), ICMP: 8, Length: 60}},
	"no type of ICMP": {strings.Replace(ipv4, "4006", "4001", 1), false, backend.Flow{}, Packet{}},
	"nothing after IP": {strings.Replace(ipv4, "4006", "40fd", 1), true, to("198.18.0.1", 253, 0),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:0"), Length: 60}},
	"a loose route": {strings.Replace(ipv4, "4500", "4700", 1) + "0183070411223344"[:16] + ports, true, to("198.18.0.1", 6, 443),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"a strict route after another option": {strings.Replace(ipv4, "4500", "4800", 1) + "44040000" + "89070411" + "22334400" + ports, true, to("198.18.0.1", 6, 443),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"a route after the end": {strings.Replace(ipv4, "4500", "4700", 1) + "0083070411223344" + ports, true, to("198.18.0.1", 6, 443),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"who records its way, and has routers look at it": {strings.Replace(ipv4, "4500", "4800", 1) + "94040000" + "0107070400000000" + ports, true, to("198.18.0.1", 6, 443),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), Length: 60}},
	"a route after what does no harm": {strings.Replace(ipv4, "4500", "4800", 1) + "94040000" + "83070811223344" + "00" + ports, true, to("198.18.0.1", 6, 443),
		Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"an option without length":   {strings.Replace(ipv4, "4500", "4600", 1) + "01010144" + ports, true, to("198.18.0.1", 6, 443), Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"an option of length 0":      {strings.Replace(ipv4, "4500", "4600", 1) + "44008304" + ports, true, to("198.18.0.1", 6, 443), Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"an option that is too long": {strings.Replace(ipv4, "4500", "4600", 1) + "44ff8304" + ports, true, to("198.18.0.1", 6, 443), Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), SourceRouted: true, Length: 60}},
	"a short header":             {strings.Replace(ipv4, "4500", "4400", 1) + ports, false, backend.Flow{}, Packet{}},
	"a header that is cut off":   {strings.Replace(ipv4, "4500", "4f00", 1) + ports, false, backend.Flow{}, Packet{}},
	"UDP over IPv6":              {ipv6("11") + ports, true, to("2001:db8:f::1", 17, 443), Packet{Source: netip.MustParseAddrPort("[2001:db8::1]:4000"), Length: 60}},
	"ping over IPv6":             {ipv6("3a") + "8000", true, to("2001:db8:f::1", 58, 0), Packet{Source: netip.MustParseAddrPort("[2001:db8::1]:0"), ICMP: 128, Length: 60}},
	"behind three headers": {ipv6("00") + "2b00010400000000" + "3c00000000000000" + "0601000000000000" + "0000000000000000" + ports, true,
		to("2001:db8:f::1", 6, 443), Packet{Source: netip.MustParseAddrPort("[2001:db8::1]:4000"), SourceRouted: true, Length: 60}},
	"a first fragment of IPv6": {ipv6("2c") + "0600000100000001" + ports, true, to("2001:db8:f::1", 6, 443), Packet{Source: netip.MustParseAddrPort("[2001:db8::1]:4000"), Length: 60}},
	"a later fragment of IPv6": {ipv6("2c") + "0600001000000001" + ports, false, backend.Flow{}, Packet{}},
	"authentication":           {ipv6("33") + "0604000000000000", true, to("2001:db8:f::1", 51, 0), Packet{Source: netip.MustParseAddrPort("[2001:db8::1]:0"), Length: 60}},
	"a header behind the end":  {ipv6("00") + "06ff", false, backend.Flow{}, Packet{}},
	"half a header of IPv6":    {ipv6("06")[:70], false, backend.Flow{}, Packet{}},
	"another version":          {"50" + ipv4[2:] + ports, false, backend.Flow{}, Packet{}},
	"nothing":                  {"", false, backend.Flow{}, Packet{}},
}

func to(addr string, protocol uint8, port uint16) backend.Flow {
	return backend.Flow{Protocol: protocol, Addr: netip.MustParseAddr(addr), Port: port}
}

func TestReadPacket(t *testing.T) {
	for name, tt := range packets {
		t.Run(name, func(t *testing.T) {
			b, err := hex.DecodeString(tt.bytes)
			if err != nil {
				t.Fatal(err)
			}
			for _, hook := range []backend.Hook{backend.Output, backend.Forward} {
				f, p := backend.Flow{Kind: backend.Kind{Hook: hook}}, Packet{}
				if reads := readPacket(b, &f, &p); reads != tt.reads {
					t.Fatalf("it is read: %v", reads)
				}
				want := tt.flow
				if want.Hook = hook; hook == backend.Forward {
					want.Client = tt.packet.Source.Addr()
				}
				if !tt.reads {
					continue
				}
				if f != want || p.Source != tt.packet.Source || p.SourceRouted != tt.packet.SourceRouted || p.ICMP != tt.packet.ICMP || p.Length != tt.packet.Length {
					t.Errorf("%+v %+v", f, p)
				}
			}
		})
	}
}

// No packet makes the reader go astray.
func FuzzReadPacket(f *testing.F) {
	for _, tt := range packets {
		b, _ := hex.DecodeString(tt.bytes)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var flow backend.Flow
		var p Packet
		if readPacket(b, &flow, &p) && !flow.Addr.IsValid() {
			t.Errorf("%+v", flow)
		}
	})
}

// Nor does anything in a message of the kernel.
func FuzzParseShown(f *testing.F) {
	packet, _ := hex.DecodeString(ipv4 + ports)
	attr := func(kind byte, value ...byte) []byte {
		b := append([]byte{byte(4 + len(value)), 0, kind, 0}, value...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	whole := attr(attrPrefix, []byte("denied-output\x00")...)
	whole = append(whole, attr(attrUser, 0, 0, 3, 232)...)
	whole = append(whole, attr(attrNumber, 0, 0, 0, 7)...)
	whole = append(whole, attr(attrEther, 0, 6, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0)...)
	whole = append(whole, attr(attrPayload, packet...)...)
	s, number, ok := parseShown(whole)
	if want := to("198.18.0.1", 6, 443); !ok || number != 7 || s.User != 1000 || s.Addr != want.Addr || s.Port != want.Port || s.Ether.String() != "02:00:00:00:00:07" {
		f.Errorf("%v %d %+v", ok, number, s)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) { parseShown(b) })
}
