package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A field is what a packet has that a set can hold.
type field struct {
	text    string // as nft spells it
	key     nftables.SetDatatype
	native  bool                           // in the machine's byte order, and not the network's
	ip      []expr.Any                     // whether the packet is of the version of IP that has it
	check   []expr.Any                     // whether the packet has it, where that is not sure
	load    func(register uint32) expr.Any // what brings it into a register
	print   func(value []byte) string      // as nft prints it
	perLine int                            // how many of them nft puts on a line, if more than one
	at      int                            // where it stands in backend.Scope.ID, for fields that say who has sent a packet
}

var (
	isIPv4 = []expr.Any{load(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV4)}
	isIPv6 = []expr.Any{load(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV6)}
)

// The addresses of a packet.
var (
	source4      = field{text: "ip saddr", key: nftables.TypeIPAddr, ip: isIPv4, load: payload(expr.PayloadBaseNetworkHeader, 12, 4), print: addrText, perLine: 2, at: 12}
	source6      = field{text: "ip6 saddr", key: nftables.TypeIP6Addr, ip: isIPv6, load: payload(expr.PayloadBaseNetworkHeader, 8, 16), print: addrText}
	destination4 = field{text: "ip daddr", key: nftables.TypeIPAddr, ip: isIPv4, load: payload(expr.PayloadBaseNetworkHeader, 16, 4), print: addrText, perLine: 2}
	destination6 = field{text: "ip6 daddr", key: nftables.TypeIP6Addr, ip: isIPv6, load: payload(expr.PayloadBaseNetworkHeader, 24, 16), print: addrText}
)

func source(ipv4 bool) field {
	if ipv4 {
		return source4
	}
	return source6
}

func destination(ipv4 bool) field {
	if ipv4 {
		return destination4
	}
	return destination6
}

// What else a packet tells.
var (
	ipProtocol = field{text: "meta nfproto", key: nftables.TypeNFProto, load: meta(expr.MetaKeyNFPROTO), print: ipProtocolText, perLine: 5}
	transport  = field{text: "meta l4proto", key: nftables.TypeInetProto, load: meta(expr.MetaKeyL4PROTO), print: transportText}
	toPort     = field{text: "th dport", key: nftables.TypeInetService, load: payload(expr.PayloadBaseTransportHeader, 2, 2), print: portText}
	byPort     = field{text: "th sport", key: nftables.TypeInetService, load: payload(expr.PayloadBaseTransportHeader, 0, 2), print: portText}
	fromName   = field{text: "iifname", key: nftables.TypeIFName, native: true, load: meta(expr.MetaKeyIIFNAME), print: nameText}
	fromIndex  = field{text: "iif", key: nftables.TypeIFIndex, native: true, load: meta(expr.MetaKeyIIF), print: indexText}
	fromEther  = field{
		text: "ether saddr", key: nftables.TypeEtherAddr, load: payload(expr.PayloadBaseLLHeader, 6, 6),
		check: []expr.Any{load(expr.MetaKeyIIFTYPE), is(binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)...)}, at: 4,
		print: func(value []byte) string { return net.HardwareAddr(value).String() },
	}
	bySocketOf = field{
		text: "meta skuid", key: nftables.TypeUID, native: true, load: meta(expr.MetaKeySKUID),
		print: func(value []byte) string { return fmt.Sprint(binary.NativeEndian.Uint32(value)) }, perLine: 5,
	}
)

// bySocketIn is the cgroup at that depth above the socket that has sent a packet.
// Loading it ends the rule where the socket's cgroup lies less deep.
func bySocketIn(level int) field {
	return field{
		text: fmt.Sprint("socket cgroupv2 level ", level), key: nftables.TypeCGroupV2, native: true,
		load: func(r uint32) expr.Any {
			return &expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(level), Register: r}
		},
		print: func(value []byte) string { return fmt.Sprint(binary.NativeEndian.Uint64(value)) },
	}
}

func meta(key expr.MetaKey) func(uint32) expr.Any {
	return func(r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }
}

func payload(base expr.PayloadBase, offset, length uint32) func(uint32) expr.Any {
	return func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: offset, Len: length}
	}
}

func (f field) size() int { return int(f.key.Bytes) }

// is is the condition that a packet has this value.
func (f field) is(value []byte) match {
	return match{text: f.text + " " + f.print(value), ip: f.ip, exprs: append(slices.Clone(f.check), f.load(register), is(value...))}
}

// A selector is the fields that make up the keys of a set.
type selector []field

// firstRegister32 is NFT_REG32_00, the first four bytes of register 1.
const firstRegister32 = 8

func (s selector) String() string {
	var texts []string
	for _, f := range s {
		texts = append(texts, f.text)
	}
	return strings.Join(texts, " . ")
}

func (s selector) key() nftables.SetDatatype {
	if len(s) == 1 {
		return s[0].key
	}
	var types []nftables.SetDatatype
	for _, f := range s {
		types = append(types, f.key)
	}
	return nftables.MustConcatSetType(types...)
}

// load brings the packet's key into registers, from the first one on.
func (s selector) load() (exprs []expr.Any) {
	for _, f := range s {
		exprs = append(exprs, f.check...)
	}
	at := 0
	for _, f := range s {
		to := uint32(register)
		if at > 0 {
			to = firstRegister32 + uint32(at/4)
		}
		exprs = append(exprs, f.load(to))
		at += align(f.size())
	}
	return exprs
}

// in is the condition that the set holds the packet's key.
func (s selector) in(set string) match {
	m := match{text: s.String() + " @" + set, exprs: append(s.load(), &expr.Lookup{SourceRegister: register, SetName: set})}
	for _, f := range s {
		if f.ip != nil {
			m.ip = f.ip
		}
	}
	return m
}

// size is the length of a key: the kernel pads each of several fields to four bytes.
func (s selector) size() (n int) {
	if len(s) == 1 {
		return s[0].size()
	}
	for _, f := range s {
		n += align(f.size())
	}
	return n
}

// join makes a key of the values of the fields.
func (s selector) join(values ...[]byte) (key []byte) {
	for _, v := range values {
		if key = append(key, v...); len(s) > 1 {
			key = pad(key)
		}
	}
	return key
}

// text is a key as nft prints it.
func (s selector) text(key []byte) string { return s.spanText(only(key)) }

// spanText is a range of keys as nft prints it: field by field.
func (s selector) spanText(h span) string {
	if len(h.from) != s.size() || len(h.to) != len(h.from) {
		return fmt.Sprintf("0x%x", h.from)
	}
	var texts []string
	at := 0
	for _, f := range s {
		texts = append(texts, f.spanText(h.from[at:at+f.size()], h.to[at:at+f.size()]))
		at += align(f.size())
	}
	return strings.Join(texts, " . ")
}

func (f field) spanText(from, to []byte) string {
	switch {
	case bytes.Equal(from, to):
		return f.print(from)
	case f.ip == nil:
		return f.print(from) + "-" + f.print(to)
	}
	first, _ := netip.AddrFromSlice(from)
	last, _ := netip.AddrFromSlice(to)
	r := netipx.IPRangeFrom(first, last)
	if p, ok := r.Prefix(); ok {
		return p.String()
	}
	return r.String()
}

// compare orders keys as nft does: those of several fields as one number in the
// machine's byte order.
func (s selector) compare(a, b []byte) int {
	if len(s) == 1 && !s[0].native || isBigEndian {
		return bytes.Compare(a, b)
	}
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Reverse(a)
	slices.Reverse(b)
	return bytes.Compare(a, b)
}

var isBigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

func addrText(b []byte) string {
	addr, _ := netip.AddrFromSlice(b)
	return addr.String()
}

func ipProtocolText(b []byte) string {
	if b[0] == unix.NFPROTO_IPV4 {
		return "ipv4"
	}
	return "ipv6"
}

func transportText(b []byte) string {
	for name, number := range backend.Protocols {
		if number == b[0] {
			return name
		}
	}
	return fmt.Sprint(b[0])
}

func portText(b []byte) string { return fmt.Sprint(binary.BigEndian.Uint16(b)) }

func nameText(b []byte) string { return strconv.Quote(cString(b)) }

func indexText(b []byte) string {
	index := int(binary.NativeEndian.Uint32(b))
	if i, err := net.InterfaceByIndex(index); err == nil {
		return strconv.Quote(i.Name)
	}
	return fmt.Sprint(index)
}
