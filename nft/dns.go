package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// upstreamKey is an address with a port.
func upstreamKey(ipv4 bool) selector { return selector{destination(ipv4), toPort} }

// newUpstreamSets are the resolvers that only one program may ask.
func newUpstreamSets(upstream []netip.AddrPort) (sets []set) {
	for _, ipv4 := range []bool{true, false} {
		s := set{name: forVersion(setUpstream, ipv4), comment: "open to CoreDNS itself: upstream", key: upstreamKey(ipv4)}
		var keys [][]byte
		for _, a := range upstream {
			if addr := a.Addr().Unmap(); addr.Is4() == ipv4 {
				keys = append(keys, s.key.join(addr.AsSlice(), binary.BigEndian.AppendUint16(nil, a.Port())))
			}
		}
		s.hold(keys...)
		sets = append(sets, s)
	}
	return sets
}

// upstream opens the resolvers to the program.
func upstream(to []netip.AddrPort, program backend.Program) (rules []rule) {
	if len(to) == 0 {
		return nil
	}
	for _, ipv4 := range []bool{true, false} {
		rules = append(rules, rule{"CoreDNS asks upstream", []match{
			sentBy(program), tcpOrUDP, upstreamKey(ipv4).in(forVersion(setUpstream, ipv4)),
		}, accept})
	}
	return rules
}

// sentBy is the condition that the program has sent the packet.
func sentBy(p backend.Program) match {
	if p.Cgroup.ID != 0 {
		return bySocketIn(p.Cgroup.Level).is(binary.NativeEndian.AppendUint64(nil, p.Cgroup.ID))
	}
	return bySocketOf.is(binary.NativeEndian.AppendUint32(nil, p.User))
}

const plainDNS = 53

// newCapture is the chain that sends the plain DNS of guarded clients, whomever they
// ask, to a port of this machine. What asks this machine at that port anyway is left
// alone: CoreDNS may listen at another of its addresses than the kernel would choose.
func newCapture(r backend.Rules) chain {
	port := binary.BigEndian.AppendUint16(nil, plainDNS)
	where := []match{notLoopback}
	if len(r.Interfaces) > 0 {
		where = append(where, selector{fromName}.in(setGuarded))
	}
	if r.Capture == plainDNS {
		where = append(where, toOthers)
	}
	return chain{name: chainCapture, base: &captureBase, rules: []rule{
		{"plain DNS of clients: capture", append(where, tcpOrUDP, toPort.is(port)), redirect(r.Capture)},
	}}
}

// toOthers is the condition that a packet is not for this machine.
var toOthers = match{text: "fib daddr type != local", exprs: []expr.Any{
	&expr.Fib{Register: register, FlagDADDR: true, ResultADDRTYPE: true},
	compare(expr.CmpOpNeq, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)...),
}}

// redirect sends a connection to a port of this machine.
func redirect(port uint16) verdict {
	const specified = 2 // NF_NAT_RANGE_PROTO_SPECIFIED
	return verdict{fmt.Sprint("redirect to :", port), []expr.Any{
		&expr.Immediate{Register: register, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: register, Flags: specified},
	}}
}

var captureBase = base{
	text: "type nat hook prerouting priority dstnat; policy accept;",
	kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityNATDest, policy: nftables.ChainPolicyAccept,
}
