package flowlog

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A Packet is what is known of one that the kernel has shown, beside its flow. All of it
// is what the sender says.
type Packet struct {
	Source       netip.AddrPort // the port is 0 with protocols that have none
	Ether        net.HardwareAddr
	SourceRouted bool  // it says by which routers it wants to go: that is refused whatever is open
	ICMP         uint8 // the type of ICMP and ICMPv6
	Length       int   // as IP has it
}

const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

// readPacket reads an IP packet's beginning into what it tells of the flow and of itself.
// It is hostile. One that is cut off before the ports, or is a later fragment, says
// nothing.
func readPacket(b []byte, f *backend.Flow, p *Packet) bool {
	if len(b) == 0 {
		return false
	}
	var source netip.Addr
	var transport []byte
	var ok bool
	switch b[0] >> 4 {
	case 4:
		source, transport, ok = readIPv4(b, f, p)
	case 6:
		source, transport, ok = readIPv6(b, f, p)
	}
	if !ok {
		return false
	}
	if f.Hook == backend.Forward {
		f.Client = source
	}
	var port uint16
	switch {
	case hasPorts(f.Protocol):
		if len(transport) < 4 {
			return false
		}
		port, f.Port = binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])
	case f.Protocol == protocolICMP || f.Protocol == protocolICMPv6:
		if len(transport) < 1 {
			return false
		}
		p.ICMP = transport[0]
	}
	p.Source = netip.AddrPortFrom(source, port)
	return true
}

func hasPorts(protocol uint8) bool {
	for _, p := range backend.Protocols {
		if p == protocol {
			return true
		}
	}
	return false
}

// readIPv4 reads a header of IPv4 (RFC 791, section 3.1).
func readIPv4(b []byte, f *backend.Flow, p *Packet) (source netip.Addr, transport []byte, ok bool) {
	const offset = 0x1fff // of a fragment
	if len(b) < 20 {
		return source, nil, false
	}
	size := int(b[0]&15) * 4
	if size < 20 || size > len(b) || binary.BigEndian.Uint16(b[6:])&offset != 0 {
		return source, nil, false
	}
	p.Length = int(binary.BigEndian.Uint16(b[2:]))
	p.SourceRouted = size > 20 && mayBeSourceRouted(b[20:size])
	f.Protocol = b[9]
	f.Addr = netip.AddrFrom4([4]byte(b[16:20]))
	return netip.AddrFrom4([4]byte(b[12:16])), b[size:], true
}

// mayBeSourceRouted looks for options with which a sender lays down the route. It is so, too,
// where they are others than those that do no harm, or cannot be read to the end: nftables
// refuses these, as the kernel might find a route in them.
func mayBeSourceRouted(options []byte) bool {
	const end, none, recordRoute, routerAlert = 0, 1, 7, 148
	found := false
	for len(options) > 0 && options[0] != end {
		if options[0] == none {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) || options[0] != recordRoute && options[0] != routerAlert {
			return true
		}
		found, options = true, options[options[1]:]
	}
	return !found
}

// readIPv6 reads the headers of IPv6 up to the one that nftables takes for the transport's:
// that of authentication is one (RFC 8200, section 4.1).
func readIPv6(b []byte, f *backend.Flow, p *Packet) (source netip.Addr, transport []byte, ok bool) {
	const hopByHop, routing, fragment, destination = 0, 43, 44, 60
	if len(b) < 40 {
		return source, nil, false
	}
	p.Length = 40 + int(binary.BigEndian.Uint16(b[4:]))
	source, f.Addr = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:]
	for {
		size := 0
		switch next {
		case hopByHop, routing, destination:
			p.SourceRouted = p.SourceRouted || next == routing
			if len(rest) >= 2 {
				size = 8 + 8*int(rest[1])
			}
		case fragment:
			if size = 8; len(rest) >= 4 && binary.BigEndian.Uint16(rest[2:])>>3 != 0 {
				return source, nil, false
			}
		default:
			f.Protocol = next
			return source, rest, true
		}
		if size == 0 || size > len(rest) {
			return source, nil, false
		}
		next, rest = rest[0], rest[size:]
	}
}
