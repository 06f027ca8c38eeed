package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A match is one condition of a rule, or a statement that decides nothing: what
// nft prints of it and the kernel's expressions for it, side by side so that they
// can be compared at a glance. A test loads every ruleset and compares with what
// nft prints.
type match struct {
	text  string
	ip    []expr.Any // the version of IP it is about: looked at once a rule, before the first that has one
	exprs []expr.Any
	set   *literal // its elements, when the last expression looks up a set literal
}

// A literal is a set written in the rule itself: `{ a, b }`.
type literal struct {
	key      nftables.SetDatatype
	elements []nftables.SetElement
}

// A verdict ends a rule. Rules that decide nothing have none.
type verdict struct {
	text  string
	exprs []expr.Any
}

var (
	accept           = verdict{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
	drop             = verdict{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}
	rejectProhibited = verdict{"reject with icmpx admin-prohibited", []expr.Any{&expr.Reject{
		Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED,
	}}}
)

// goBack goes on after the rule that has sent the packet to the chain.
var goBack = verdict{"return", []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}}

func jump(chain string) verdict {
	return verdict{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

// register is the first one. Most expressions need no other.
const register = 1

func load(key expr.MetaKey) expr.Any { return meta(key)(register) }

func compare(op expr.CmpOp, data ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: register, Data: data}
}

func is(data ...byte) expr.Any { return compare(expr.CmpOpEq, data...) }

func mask(bits ...byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: register, DestRegister: register,
		Len: uint32(len(bits)), Mask: bits, Xor: make([]byte, len(bits)),
	}
}

var (
	ipVersion4  = match{text: "meta nfproto ipv4", exprs: isIPv4}
	ipVersion6  = match{text: "meta nfproto ipv6", exprs: isIPv6}
	oifLoopback = match{text: `oif "lo"`, exprs: []expr.Any{
		// Loopback has index 1 in every namespace (LOOPBACK_IFINDEX).
		load(expr.MetaKeyOIF), is(binary.NativeEndian.AppendUint32(nil, 1)...),
	}}
	notLoopback = match{text: `iif != "lo"`, exprs: []expr.Any{
		load(expr.MetaKeyIIF), compare(expr.CmpOpNeq, binary.NativeEndian.AppendUint32(nil, 1)...),
	}}
	notGuarded = match{text: "iifname != @" + setGuarded, exprs: []expr.Any{
		load(expr.MetaKeyIIFNAME), &expr.Lookup{SourceRegister: register, SetName: setGuarded, Invert: true},
	}}
	tcpOpening = match{text: "tcp flags syn / syn,ack", exprs: []expr.Any{
		load(expr.MetaKeyL4PROTO), is(unix.IPPROTO_TCP),
		payload(expr.PayloadBaseTransportHeader, 13, 1)(register), mask(0x12), is(0x02),
	}}
	tcpMidStream = match{text: "tcp flags ! syn", exprs: []expr.Any{
		load(expr.MetaKeyL4PROTO), is(unix.IPPROTO_TCP),
		payload(expr.PayloadBaseTransportHeader, 13, 1)(register), mask(0x02), is(0),
	}}
)

// tcpOrUDP and dnsPorts together are DNS, plain and over TLS or QUIC.
var (
	tcpOrUDP = protocols("tcp, udp", unix.IPPROTO_TCP, unix.IPPROTO_UDP)
	dnsPorts = match{text: "th dport { 53, 853 }", exprs: []expr.Any{
		toPort.load(register), &expr.Lookup{SourceRegister: register},
	}, set: &literal{key: nftables.TypeInetService, elements: []nftables.SetElement{{Key: []byte{0, 53}}, {Key: []byte{853 >> 8, 853 & 0xff}}}}}
)

// protocols are those of transport, as nft names them.
func protocols(names string, numbers ...byte) match {
	l := &literal{key: nftables.TypeInetProto}
	for _, n := range numbers {
		l.elements = append(l.elements, nftables.SetElement{Key: []byte{n}})
	}
	return match{text: "meta l4proto { " + names + " }", set: l, exprs: []expr.Any{
		load(expr.MetaKeyL4PROTO), &expr.Lookup{SourceRegister: register},
	}}
}

// notUDP is the condition that a packet is of another transport protocol. The other
// way round nft would call th of a packet udp, wherever it stands in the rule.
var notUDP = match{text: "meta l4proto != udp", exprs: []expr.Any{
	load(expr.MetaKeyL4PROTO), compare(expr.CmpOpNeq, unix.IPPROTO_UDP),
}}

var (
	liveConnection = ctState("established,related")
	ctOriginal     = match{text: "ct direction original", exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, is(0), // IP_CT_DIR_ORIGINAL
	}}
)

func ctState(names string) match {
	bits := map[string]uint32{
		"invalid": expr.CtStateBitINVALID, "new": expr.CtStateBitNEW,
		"established": expr.CtStateBitESTABLISHED, "related": expr.CtStateBitRELATED,
	}
	var want uint32
	for name := range strings.SplitSeq(names, ",") {
		want |= bits[name]
	}
	return match{text: "ct state " + names, exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: register},
		mask(binary.NativeEndian.AppendUint32(nil, want)...),
		compare(expr.CmpOpNeq, 0, 0, 0, 0),
	}}
}

// comesFromWhereItIs is the condition that a packet has come in by the interface that its
// source is routed to: else anybody on another wire could say that it is theirs.
var comesFromWhereItIs = match{text: "fib saddr . iif oif exists", exprs: []expr.Any{
	&expr.Fib{Register: register, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}, is(binary.NativeEndian.AppendUint32(nil, 1)...),
}}

// ipOption is the condition that an IPv4 packet has an option (RFC 791, section 3.1).
func ipOption(name string, number byte) match {
	const (
		opIPv4  = 2 // NFT_EXTHDR_OP_IPV4
		present = 1 // NFT_EXTHDR_F_PRESENT
	)
	return match{text: "ip option " + name + " exists", ip: isIPv4, exprs: []expr.Any{
		&expr.Exthdr{DestRegister: register, Type: number, Len: 1, Flags: present, Op: opIPv4}, is(1),
	}}
}

// Options with which a sender lays down a packet's route, and those that do no harm.
var (
	lsrr, ssrr               = ipOption("lsrr", 131), ipOption("ssrr", 137)
	recordRoute, routerAlert = ipOption("rr", 7), ipOption("ra", 148)
)

// hasOptions is the condition that an IPv4 packet has any: its header is longer than five
// times four bytes.
var hasOptions = match{text: "ip hdrlength != 5", ip: isIPv4, exprs: []expr.Any{
	payload(expr.PayloadBaseNetworkHeader, 0, 1)(register), mask(0x0f), compare(expr.CmpOpNeq, 5),
}}

// notBare is the condition that a packet is not IPv4 without options, which is what its first
// byte says.
var notBare = match{text: "@nh,0,8 != 0x45", exprs: []expr.Any{
	payload(expr.PayloadBaseNetworkHeader, 0, 1)(register), compare(expr.CmpOpNeq, 0x45),
}}

// routingHeader is the condition that an IPv6 packet has one, of whatever type (RFC 8200,
// section 4.4).
var routingHeader = match{text: "exthdr rt exists", ip: isIPv6, exprs: []expr.Any{
	&expr.Exthdr{DestRegister: register, Type: unix.IPPROTO_ROUTING, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6}, is(1),
}}

func hopLimit(n byte) match {
	return match{text: fmt.Sprintf("ip6 hoplimit %d", n), ip: isIPv6, exprs: []expr.Any{
		payload(expr.PayloadBaseNetworkHeader, 7, 1)(register), is(n),
	}}
}

// icmpv6Types are the types of the IANA registry that rules here name.
var icmpv6Types = map[string]byte{
	"mld-listener-query": 130, "mld-listener-report": 131, "mld-listener-done": 132, "mld2-listener-report": 143,
	"nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137,
}

func icmpv6(names ...string) match {
	l := &literal{key: nftables.TypeICMP6Type}
	for _, n := range names {
		l.elements = append(l.elements, nftables.SetElement{Key: []byte{icmpv6Types[n]}})
	}
	return match{text: "icmpv6 type { " + strings.Join(names, ", ") + " }", set: l, exprs: []expr.Any{
		load(expr.MetaKeyL4PROTO), is(unix.IPPROTO_ICMPV6),
		payload(expr.PayloadBaseTransportHeader, 0, 1)(register), &expr.Lookup{SourceRegister: register},
	}}
}

func udpPorts(source, destination uint16) match {
	ports := binary.BigEndian.AppendUint16(nil, source)
	ports = binary.BigEndian.AppendUint16(ports, destination)
	return match{text: fmt.Sprintf("udp sport %d udp dport %d", source, destination), exprs: []expr.Any{
		load(expr.MetaKeyL4PROTO), is(unix.IPPROTO_UDP), payload(expr.PayloadBaseTransportHeader, 0, 4)(register), is(ports...),
	}}
}

func ip6Destination(addr string) match {
	return destination6.is(netip.MustParseAddr(addr).AsSlice())
}

func ip6DestinationPrefix(prefix string) match { return destinationIn(netip.MustParsePrefix(prefix)) }
