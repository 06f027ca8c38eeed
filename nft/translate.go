package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What rules for mapped addresses look at and do, as in match.go.

var (
	isTCP        = match{text: "meta l4proto tcp", exprs: []expr.Any{load(expr.MetaKeyL4PROTO), is(unix.IPPROTO_TCP)}}
	plainDNSPort = toPort.is(portBytes(plainDNS))
	hasDNAT      = match{text: "ct status dnat", exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: register},
		mask(binary.NativeEndian.AppendUint32(nil, statusDNAT)...),
		compare(expr.CmpOpNeq, 0, 0, 0, 0),
	}}

	// toSelf is the condition that a packet is for this machine.
	toSelf = match{text: "fib daddr type local", exprs: []expr.Any{
		&expr.Fib{Register: register, FlagDADDR: true, ResultADDRTYPE: true}, is(binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)...),
	}}

	rejectReset  = verdict{"reject with tcp reset", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
	rejectNoPort = verdict{"reject", []expr.Any{&expr.Reject{ // as nft prints icmpx port-unreachable
		Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH,
	}}}
	rejectNoHost = verdict{"reject with icmpx host-unreachable", []expr.Any{&expr.Reject{
		Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH,
	}}}
	masquerade = verdict{"masquerade", []expr.Any{&expr.Masq{}}}
)

// statusDNAT is IPS_DST_NAT: the connection's destination has been translated.
const statusDNAT = 1 << 5

func portBytes(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }

// original4 and original6 are where a connection's first packet went. Which key they have
// for the kernel, google/nftables v0.3.0 cannot say: see correct.
var (
	original4 = field{text: "ct original ip daddr", key: destination4.key, load: ctOriginalAddr(keyOriginal4), print: addrText}
	original6 = field{text: "ct original ip6 daddr", key: destination6.key, load: ctOriginalAddr(keyOriginal6), print: addrText}
)

// The keys that correct replaces. No rule has them for what they are.
const (
	keyOriginal4 = expr.CtKeyDST
	keyOriginal6 = expr.CtKeySRC
)

func ctOriginalAddr(key expr.CtKey) func(uint32) expr.Any {
	return func(r uint32) expr.Any { return &expr.Ct{Key: key, Register: r} } // direction 0 is the original one
}

// correct gives the expressions of rules the keys that name a version of IP. For these
// the library sends no direction, which the kernel wants.
func correct(msgs []netlink.Message) {
	for _, m := range msgs {
		if uint16(m.Header.Type) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE {
			continue
		}
		for typ, list := range attributes(m.Data[4:]) {
			if typ == unix.NFTA_RULE_EXPRESSIONS {
				for _, e := range attributes(list) {
					correctExpression(e)
				}
			}
		}
	}
}

func correctExpression(e []byte) {
	isCt := false
	for typ, value := range attributes(e) {
		switch {
		case typ == unix.NFTA_EXPR_NAME:
			isCt = cString(value) == "ct"
		case typ == unix.NFTA_EXPR_DATA && isCt:
			for typ, key := range attributes(value) {
				if typ != unix.NFTA_CT_KEY {
					continue
				}
				switch expr.CtKey(binary.BigEndian.Uint32(key)) {
				case keyOriginal4:
					binary.BigEndian.PutUint32(key, unix.NFT_CT_DST_IP)
				case keyOriginal6:
					binary.BigEndian.PutUint32(key, unix.NFT_CT_DST_IP6)
				}
			}
		}
	}
}

func originally(ipv4 bool) selector {
	if ipv4 {
		return selector{original4}
	}
	return selector{original6}
}

// originallyIn is the condition that a connection's first packet went to the network.
func originallyIn(p netip.Prefix) match {
	f := original6
	if p.Addr().Is4() {
		f = original4
	}
	if p.IsSingleIP() {
		return f.is(p.Addr().AsSlice())
	}
	exprs := []expr.Any{f.load(register)}
	if whole := p.Bits() / 8; p.Bits()%8 == 0 {
		exprs = append(exprs, is(p.Addr().AsSlice()[:whole]...))
	} else {
		exprs = append(exprs, mask(maskOf(p)...), is(p.Addr().AsSlice()...))
	}
	return match{text: f.text + " " + p.String(), exprs: exprs}
}

// destinationIn is the condition that a packet goes to the network.
func destinationIn(p netip.Prefix) match {
	f := destination(p.Addr().Is4())
	if p.IsSingleIP() {
		return f.is(p.Addr().AsSlice())
	}
	m := match{text: f.text + " " + p.String(), ip: f.ip}
	if whole := p.Bits() / 8; p.Bits()%8 == 0 { // nft loads just the bytes that count
		at := f.load(register).(*expr.Payload)
		at.Len = uint32(whole)
		m.exprs = []expr.Any{at, is(p.Addr().AsSlice()[:whole]...)}
		return m
	}
	m.exprs = []expr.Any{f.load(register), mask(maskOf(p)...), is(p.Addr().AsSlice()...)}
	return m
}

func maskOf(p netip.Prefix) []byte {
	bits := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		bits[i/8] |= 0x80 >> (i % 8)
	}
	return bits
}

// out is the condition that a packet leaves by this interface.
func out(name string) match {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return match{text: fmt.Sprintf("oifname %q", name), exprs: []expr.Any{load(expr.MetaKeyOIFNAME), is(padded...)}}
}

func setMark(mark uint32) match {
	return match{text: fmt.Sprintf("meta mark set 0x%08x", mark), exprs: []expr.Any{
		&expr.Immediate{Register: register, Data: binary.NativeEndian.AppendUint32(nil, mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register},
	}}
}

// ipWord is what nft calls a version of IP in a translation, and what the kernel does.
func ipWord(ipv4 bool) (string, uint32) {
	if ipv4 {
		return "ip", unix.NFPROTO_IPV4
	}
	return "ip6", unix.NFPROTO_IPV6
}

// dnatBy sends a connection to what a map has for its destination, if it has anything.
func dnatBy(name string, ipv4 bool) verdict {
	word, family := ipWord(ipv4)
	to := destination(ipv4)
	return verdict{fmt.Sprintf("dnat %s to %s map @%s", word, to.text, name), []expr.Any{
		to.load(register),
		&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: register},
	}}
}

// snat lets a connection leave with this source address.
func snat(source netip.Addr) verdict {
	word, family := ipWord(source.Is4())
	return verdict{fmt.Sprintf("snat %s to %v", word, source), []expr.Any{
		&expr.Immediate{Register: register, Data: source.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: register},
	}}
}
