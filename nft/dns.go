package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

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

// resolvers are what only one program may ask.
type resolvers struct {
	to     []netip.AddrPort
	self   backend.Program
	refuse verdict // of what others send them
}

// rules are about packets to them.
func (u *resolvers) rules(comment string, v verdict, conditions ...match) (rules []rule) {
	if len(u.to) == 0 {
		return nil
	}
	for _, ipv4 := range []bool{true, false} {
		rules = append(rules, rule{comment, append(conditions[:len(conditions):len(conditions)], upstreamKey(ipv4).in(forVersion(setUpstream, ipv4))), v})
	}
	return rules
}

// open lets the program's packets through.
func (u *resolvers) open() []rule {
	return u.rules("CoreDNS asks upstream", accept, sentBy(u.self), tcpOrUDP)
}

const notCoreDNS = "only CoreDNS asks upstream"

// shut refuses the others' new connections, whatever opens the address.
func (u *resolvers) shut() []rule { return u.rules(notCoreDNS, u.refuse, tcpOrUDP) }

// live sends what may be somebody else's by now to the chain for that.
func (u *resolvers) live() []rule {
	return u.rules(notCoreDNS, jump(chainUpstream), liveConnection, ctOriginal)
}

// chains are the one that looks at packets of live connections. A UDP port that the
// program has let go of can be bound by any other, which then has its connection, as
// long as the kernel remembers that. What is open to everybody stays so.
func (u *resolvers) chains() []chain {
	if len(u.to) == 0 {
		return nil
	}
	return []chain{{name: chainUpstream, rules: slices.Concat(
		[]rule{{"nobody else gets into a TCP connection", []match{notUDP}, goBack}, loopback(goBack)},
		allowed("allowed-local", goBack),
		[]rule{{"CoreDNS asks upstream", []match{sentBy(u.self)}, accept}, {notCoreDNS, nil, u.refuse}},
	)}}
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
