package e2e

import (
	"bytes"
	"context"
	bin "encoding/binary" // the package has a func binary
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A packet as it was on the wire. Of IPv6 it may have a hop-by-hop header, as
// MLD reports do.
type packet struct {
	source, destination netip.Addr
	hops                byte
	protocol            byte
	fragment            uint16 // IPv4: flags and offset, as they stand in the header
	options             []byte // IPv4: a multiple of four bytes
	payload             []byte // from the transport header on
}

func (p packet) String() string {
	return fmt.Sprintf("%v > %v, protocol %d, hop limit %d, % x", p.source, p.destination, p.protocol, p.hops, p.payload)
}

// same reports whether q is p on its way, on which only the hop limit changes.
func (p packet) same(q packet) bool {
	return p.source == q.source && p.destination == q.destination && p.protocol == q.protocol && bytes.Equal(p.payload, q.payload)
}

// icmpv6 reports whether p is of one of the types.
func (p packet) icmpv6(types ...byte) bool {
	return p.protocol == unix.IPPROTO_ICMPV6 && len(p.payload) > 0 && bytes.IndexByte(types, p.payload[0]) >= 0
}

// readPacket reads an Ethernet frame.
func readPacket(frame []byte) (p packet, ok bool) {
	if len(frame) < 14 {
		return p, false
	}
	kind, b := bin.BigEndian.Uint16(frame[12:]), frame[14:]
	switch {
	case kind == unix.ETH_P_IP && len(b) >= 20 && len(b) >= int(b[0]&15)*4:
		source, _ := netip.AddrFromSlice(b[12:16])
		destination, _ := netip.AddrFromSlice(b[16:20])
		return packet{source: source, destination: destination, hops: b[8], protocol: b[9], payload: b[int(b[0]&15)*4:]}, true
	case kind == unix.ETH_P_IPV6 && len(b) >= 40:
		source, _ := netip.AddrFromSlice(b[8:24])
		destination, _ := netip.AddrFromSlice(b[24:40])
		p = packet{source: source, destination: destination, hops: b[7], protocol: b[6], payload: b[40:]}
		if p.protocol == unix.IPPROTO_HOPOPTS && len(p.payload) >= 8 {
			p.protocol, p.payload = p.payload[0], p.payload[int(p.payload[1])*8+8:]
		}
		return p, true
	}
	return p, false
}

// A wire remembers the packets on the link between the guard and the world, as
// the world's end has them.
type wire struct {
	*world

	mu            sync.Mutex // guards what follows
	packets       []packet
	marks, marked int
}

// tap starts to remember.
func (w *world) tap() *wire {
	w.Helper()
	sniffer, err := w.world.Sniff("eth0")
	w.must(err)
	x := &wire{world: w}
	go func() { // until the lab is closed
		for {
			frame, err := sniffer.Next(context.Background())
			if err != nil {
				return
			}
			x.mu.Lock()
			if p, ok := readPacket(frame); ok {
				x.packets = append(x.packets, p)
			} else if len(frame) > 14 && bin.BigEndian.Uint16(frame[12:]) == netlab.EthertypeMark {
				x.marked++
			}
			x.mu.Unlock()
		}
	}()
	return x
}

// seen counts the packets that the guard has sent or forwarded until now.
func (x *wire) seen(match func(packet) bool) (n int) {
	x.Helper()
	x.sync()
	return x.count(match)
}

// count counts the packets that have come by.
func (x *wire) count(match func(packet) bool) (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.packets {
		if match(p) {
			n++
		}
	}
	return n
}

// sync waits until frames that the guard sends now have come by: what was sent
// before them is then there as well.
func (x *wire) sync() {
	x.Helper()
	for range 2 {
		sent, err := x.guard.Mark("wan0")
		x.must(err)
		x.mu.Lock()
		x.marks += sent
		marks := x.marks
		x.mu.Unlock()
		x.eventually("the marks come by", func() bool {
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.marked >= marks
		})
	}
}

// send sends a packet out of an interface of a host, as nothing but root can: with
// a header of its own making. The kernel adds the checksum of an IPv4 header; that
// of the payload has to be right already. The error is the firewall's, if any.
func send(from *netlab.Host, ifname string, p packet) error {
	return from.Do(func() error {
		family, to, header := p.header()
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // IP_HDRINCL
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
			return err
		}
		if err := unix.BindToDevice(fd, ifname); err != nil {
			return err
		}
		return unix.Sendto(fd, append(header, p.payload...), 0, to)
	})
}

func (p packet) header() (family int, to unix.Sockaddr, b []byte) {
	if p.destination.Is4() {
		b = append(make([]byte, 20), p.options...)
		b[0], b[8], b[9] = 0x40|byte(len(b)/4), p.hops, p.protocol
		bin.BigEndian.PutUint16(b[2:], uint16(len(b)+len(p.payload)))
		bin.BigEndian.PutUint16(b[4:], 0x1dea) // which fragments belong together
		bin.BigEndian.PutUint16(b[6:], p.fragment)
		copy(b[12:], p.source.AsSlice())
		copy(b[16:], p.destination.AsSlice())
		bin.BigEndian.PutUint16(b[10:], ^sum(0, b))
		return unix.AF_INET, &unix.SockaddrInet4{Addr: p.destination.As4()}, b
	}
	b = make([]byte, 40)
	b[0], b[6], b[7] = 0x60, p.protocol, p.hops
	bin.BigEndian.PutUint16(b[4:], uint16(len(p.payload)))
	copy(b[8:], p.source.AsSlice())
	copy(b[24:], p.destination.AsSlice())
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: p.destination.As16()}, b
}

// newUDP makes a UDP packet. Without data it says ping.
func newUDP(source, destination string, from, to uint16, data ...byte) packet {
	if data == nil {
		data = []byte("ping")
	}
	b := bin.BigEndian.AppendUint16(nil, from)
	b = bin.BigEndian.AppendUint16(b, to)
	b = bin.BigEndian.AppendUint16(b, uint16(8+len(data)))
	b = append(append(b, 0, 0), data...)
	return newPacket(source, destination, 64, unix.IPPROTO_UDP, b, 6)
}

// newICMPv6 makes an ICMPv6 message of a type, long enough for all of them.
func newICMPv6(source, destination string, hops, kind byte) packet {
	b := make([]byte, 40)
	b[0] = kind
	copy(b[8:], netip.MustParseAddr(destination).AsSlice()) // the target, or the group
	return newPacket(source, destination, hops, unix.IPPROTO_ICMPV6, b, 2)
}

// newICMP makes an ICMP echo request.
func newICMP(source, destination string) packet {
	if !is4(destination) {
		return newICMPv6(source, destination, 64, echoRequest)
	}
	return newPacket(source, destination, 64, unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1, 'p', 'i', 'n', 'g'}, 2)
}

// The flags of a TCP header.
const fin, syn, rst, psh, ack, urg = 1, 2, 4, 8, 16, 32

// newTCP makes a TCP segment.
func newTCP(source, destination string, from, to uint16, flags byte, data ...byte) packet {
	b := bin.BigEndian.AppendUint16(nil, from)
	b = bin.BigEndian.AppendUint16(b, to)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	if flags&ack != 0 {
		b[11] = 1
	}
	return newPacket(source, destination, 64, unix.IPPROTO_TCP, append(b, data...), 16)
}

// newSCTP makes the packet that a connection begins with (RFC 9260, section 3.3.2).
func newSCTP(source, destination string) packet {
	b := []byte{
		0, 9, 0, echoPort, 0, 0, 0, 0, 0, 0, 0, 0, // the common header
		1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, // INIT
	}
	bin.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return packet{source: netip.MustParseAddr(source), destination: netip.MustParseAddr(destination), hops: 64, protocol: unix.IPPROTO_SCTP, payload: b}
}

// behindHeaders puts IPv6 extension headers, of eight bytes of padding each, in
// front of the payload.
func behindHeaders(p packet, kinds ...byte) packet {
	for _, kind := range slices.Backward(kinds) {
		p.payload = append([]byte{p.protocol, 0, 1, 4, 0, 0, 0, 0}, p.payload...)
		p.protocol = kind
	}
	return p
}

// cut cuts a packet into two fragments. The first has so many bytes of the payload,
// a multiple of eight.
func cut(p packet, at int) []packet {
	first, second := p, p
	if p.destination.Is4() {
		const moreFragments = 1 << 13
		first.payload, first.fragment = p.payload[:at:at], moreFragments
		second.payload, second.fragment = p.payload[at:], uint16(at/8)
		return []packet{first, second}
	}
	header := func(offset int, more byte) []byte {
		return append(bin.BigEndian.AppendUint16([]byte{p.protocol, 0}, uint16(offset)|uint16(more)), 0, 0, 0x1d, 0xea)
	}
	first.protocol, second.protocol = unix.IPPROTO_FRAGMENT, unix.IPPROTO_FRAGMENT
	first.payload = append(header(0, 1), p.payload[:at]...)
	second.payload = append(header(at, 0), p.payload[at:]...)
	return []packet{first, second}
}

// newPacket fills in the checksum, at an offset of the payload.
func newPacket(source, destination string, hops, protocol byte, payload []byte, checksum int) packet {
	p := packet{source: netip.MustParseAddr(source), destination: netip.MustParseAddr(destination), hops: hops, protocol: protocol, payload: payload}
	start := uint32(0)
	if protocol != unix.IPPROTO_ICMP { // which counts no pseudo-header
		start = uint32(len(payload)) + uint32(protocol) + uint32(sum(0, p.source.AsSlice())) + uint32(sum(0, p.destination.AsSlice()))
	}
	bin.BigEndian.PutUint16(payload[checksum:], ^sum(start, payload))
	return p
}

// sum is the internet's checksum (RFC 1071), not yet inverted.
func sum(start uint32, b []byte) uint16 {
	for i := 0; i < len(b); i += 2 {
		start += uint32(b[i]) << 8
		if i+1 < len(b) {
			start += uint32(b[i+1])
		}
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// frame is the packet with an Ethernet header.
func (p packet) frame(to, from net.HardwareAddr) []byte {
	_, _, header := p.header()
	kind := []byte{0x08, 0x00}
	if p.destination.Is6() {
		kind = []byte{0x86, 0xdd}
	}
	return slices.Concat(to, from, kind, header, p.payload)
}

// mac is the Ethernet address of a host's interface.
func (w *world) mac(h *netlab.Host, ifname string) (hw net.HardwareAddr) {
	w.Helper()
	w.must(h.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err == nil {
			hw = ifi.HardwareAddr
		}
		return err
	}))
	return hw
}

// ifindex is the number of a host's interface, which is good for a zone outside of the
// host's namespace, too.
func (w *world) ifindex(h *netlab.Host, ifname string) (index int) {
	w.Helper()
	w.must(h.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err == nil {
			index = ifi.Index
		}
		return err
	}))
	return index
}
