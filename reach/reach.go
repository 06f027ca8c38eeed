// Package reach tells addresses that mean the same everywhere on the internet from
// those that do not.
package reach

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// A Kind is where packets to an address end up.
type Kind uint8

// The kinds of addresses.
const (
	Anywhere Kind = iota // at the same place from everywhere: globally reachable
	Special              // somewhere near, at many, or nowhere
	Loopback             // at the machine that sends them
	Metadata             // at a service that gives a cloud's machines their credentials
)

// A Block is addresses of one kind.
type Block struct {
	Prefix netip.Prefix
	Kind   Kind
	Why    string // for people: what it is for, and who says so
}

// Global reports whether addr is globally reachable, and so are the IPv4 addresses
// that it holds. NAT64 with a prefix of the network's own cannot be told from other
// addresses and is judged by that prefix alone.
func Global(addr netip.Addr) bool {
	if addr.Is4() {
		return Of(addr).Kind == Anywhere
	}
	hi, lo := words(addr.As16())
	if !mapped(hi, lo) && v6.find(hi, lo).Kind != Anywhere {
		return false
	}
	held, n := holds(hi, lo)
	for _, ip := range held[:n] {
		if v4.find(uint64(ip)<<32, 0).Kind != Anywhere {
			return false
		}
	}
	return true
}

// Of returns the block that addr belongs to, whatever addresses it holds. An
// IPv4-mapped address is the IPv4 address.
func Of(addr netip.Addr) *Block {
	if addr = addr.Unmap(); addr.Is4() {
		b := addr.As4()
		return v4.find(uint64(binary.BigEndian.Uint32(b[:]))<<32, 0)
	}
	return v6.find(words(addr.As16()))
}

// Parts appends to buf where packets to addr may end up: addr, unless it is
// IPv4-mapped, and the IPv4 addresses that it holds.
func Parts(addr netip.Addr, buf []netip.Addr) []netip.Addr {
	if addr.Is4() {
		return append(buf, addr)
	}
	hi, lo := words(addr.As16())
	if !mapped(hi, lo) {
		buf = append(buf, addr)
	}
	held, n := holds(hi, lo)
	for _, ip := range held[:n] {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], ip)
		buf = append(buf, netip.AddrFrom4(b))
	}
	return buf
}

// mapped reports whether an address is IPv4 in IPv6's clothes: ::ffff:0:0/96.
func mapped(hi, lo uint64) bool { return hi == 0 && lo>>32 == 0xffff }

// holds returns the IPv4 addresses in an IPv6 address: gateways there are that take
// the packets to them.
func holds(hi, lo uint64) (held [3]uint32, n int) {
	switch {
	case hi == 0:
		switch lo >> 32 {
		case 0xffff, // mapped
			0xffff0000: // translated, RFC 2765
			held[0], n = uint32(lo), 1
		case 0: // compatible, but for :: and ::1
			if lo > 1 {
				held[0], n = uint32(lo), 1
			}
		}
	case hi == 0x64_ff9b<<32 && lo>>32 == 0, // NAT64, RFC 6052
		hi>>16 == 0x64_ff9b_0001: // NAT64 with a prefix of 96 bits in the block for local use
		held[0], n = uint32(lo), 1
	case hi>>48 == 0x2002: // 6to4
		held[0], n = uint32(hi>>16), 1
	case hi>>32 == 0x2001_0000: // Teredo: its server, and the client's NAT
		held[0], held[1], n = uint32(hi), ^uint32(lo), 2
	}
	if lo>>32&^0x200_0000 == 0x5efe { // ISATAP, RFC 5214 section 6.1
		held[n] = uint32(lo)
		n++
	}
	return held, n
}

// words are an address as two numbers.
func words(b [16]byte) (hi, lo uint64) {
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// A table finds the block of an address by its first byte: the smallest that has all
// addresses with that byte, and the smaller ones in it.
type table [256]node

// A node is a block and what stands in it. IPv4 addresses are the first 32 bits of
// 128.
type node struct {
	hi, lo, maskHi, maskLo uint64
	block                  *Block
	inner                  []node
}

var v4, v6 = newTable(4), newTable(16)

func newTable(bytes int) *table {
	var own []*Block
	for i := range blocks {
		if blocks[i].Prefix.Addr().BitLen() == 8*bytes {
			own = append(own, &blocks[i])
		}
	}
	slices.SortFunc(own, func(a, b *Block) int { return a.Prefix.Bits() - b.Prefix.Bits() })
	t := new(table)
	for _, b := range own {
		first := int(b.Prefix.Addr().AsSlice()[0])
		if b.Prefix.Bits() > 8 {
			t[first].add(b)
			continue
		}
		for i := range 1 << (8 - b.Prefix.Bits()) {
			t[first+i].block = b
		}
	}
	return t
}

// add puts a block that is no larger than those before it where it belongs.
func (n *node) add(b *Block) {
	for i := range n.inner {
		if n.inner[i].block.Prefix.Contains(b.Prefix.Addr()) {
			n.inner[i].add(b)
			return
		}
	}
	var addr [16]byte
	copy(addr[:], b.Prefix.Addr().AsSlice())
	hi, lo := words(addr)
	bits := uint(b.Prefix.Bits())
	n.inner = append(n.inner, node{
		hi: hi, lo: lo, block: b,
		maskHi: ^uint64(0) << (64 - min(bits, 64)), maskLo: ^uint64(0) << (128 - max(bits, 64)),
	})
}

func (t *table) find(hi, lo uint64) *Block {
	n := &t[hi>>56]
	for i := 0; i < len(n.inner); i++ {
		if in := &n.inner[i]; hi&in.maskHi == in.hi && lo&in.maskLo == in.lo {
			n, i = in, -1
		}
	}
	return n.block
}
