package e2e

import (
	"bytes"
	"context"
	bin "encoding/binary" // the package has a func binary
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A packet as it was on the wire. Of IPv6 it may have a hop-by-hop header, as
// MLD reports do.
type packet struct {
	source, destination netip.Addr
	hops                byte
	protocol            byte
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
		return packet{source, destination, b[8], b[9], b[int(b[0]&15)*4:]}, true
	case kind == unix.ETH_P_IPV6 && len(b) >= 40:
		source, _ := netip.AddrFromSlice(b[8:24])
		destination, _ := netip.AddrFromSlice(b[24:40])
		p = packet{source, destination, b[7], b[6], b[40:]}
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
	marks int

	mu      sync.Mutex // guards what follows
	packets []packet
	marked  int
}

// ethertypeMark is free for experiments (IEEE 802).
const ethertypeMark = 0x88b5

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
			} else if len(frame) > 14 && bin.BigEndian.Uint16(frame[12:]) == ethertypeMark {
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

// sync waits until a frame that the guard sends now has come by: what was sent
// before it is then there as well.
func (x *wire) sync() {
	x.Helper()
	x.marks++
	x.must(x.guard.Inject("wan0", append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, ethertypeMark >> 8, ethertypeMark & 0xff}, "mark"...)))
	x.eventually("the mark comes by", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.marked >= x.marks
	})
	time.Sleep(10 * time.Millisecond) // each CPU has a queue of its own
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
		b = make([]byte, 20)
		b[0], b[8], b[9] = 0x45, p.hops, p.protocol
		bin.BigEndian.PutUint16(b[2:], uint16(20+len(p.payload)))
		copy(b[12:], p.source.AsSlice())
		copy(b[16:], p.destination.AsSlice())
		return unix.AF_INET, &unix.SockaddrInet4{Addr: p.destination.As4()}, b
	}
	b = make([]byte, 40)
	b[0], b[6], b[7] = 0x60, p.protocol, p.hops
	bin.BigEndian.PutUint16(b[4:], uint16(len(p.payload)))
	copy(b[8:], p.source.AsSlice())
	copy(b[24:], p.destination.AsSlice())
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: p.destination.As16()}, b
}

// newUDP makes a UDP packet.
func newUDP(source, destination string, from, to uint16) packet {
	b := bin.BigEndian.AppendUint16(nil, from)
	b = bin.BigEndian.AppendUint16(b, to)
	b = append(b, 0, 12, 0, 0)
	b = append(b, "ping"...)
	return newPacket(source, destination, 64, unix.IPPROTO_UDP, b, 6)
}

// newICMPv6 makes an ICMPv6 message of a type, long enough for all of them.
func newICMPv6(source, destination string, hops, kind byte) packet {
	b := make([]byte, 40)
	b[0] = kind
	copy(b[8:], netip.MustParseAddr(destination).AsSlice()) // the target, or the group
	return newPacket(source, destination, hops, unix.IPPROTO_ICMPV6, b, 2)
}

// newPacket fills in the checksum, at an offset of the payload.
func newPacket(source, destination string, hops, protocol byte, payload []byte, checksum int) packet {
	p := packet{netip.MustParseAddr(source), netip.MustParseAddr(destination), hops, protocol, payload}
	sum := uint32(len(payload)) + uint32(protocol)
	for _, b := range [][]byte{p.source.AsSlice(), p.destination.AsSlice(), payload} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(bin.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	bin.BigEndian.PutUint16(payload[checksum:], ^uint16(sum))
	return p
}
