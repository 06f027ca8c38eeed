package nft

import (
	"slices"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A ruleset is a whole table as data: compile.go turns it into netlink messages
// and print.go into the text that `nft list table` shows of it.
type ruleset struct {
	table    string
	grants   grantSets
	counters []counter
	sets     []set // those of grants among them
	chains   []chain

	rules backend.Rules // that it is made of
	bound bool          // some connections may leave by their route only

	trial      time.Time // until when what passes in audit is refused
	mostMapped int       // of each version of IP; 0 is no limit
}

type chain struct {
	name  string
	base  *base // how packets come by; nil for a chain that rules send them to
	rules []rule
}

// A base is what makes the kernel send packets through a chain.
type base struct {
	text     string // as nft prints it
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	policy   nftables.ChainPolicy
}

var (
	outputBase = base{
		text: "type filter hook output priority filter; policy drop;",
		kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop,
	}
	forwardBase = base{
		text: "type filter hook forward priority filter; policy drop;",
		kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop,
	}
)

type rule struct {
	comment string
	match   []match
	verdict verdict
}

// Names in the table. Sets of addresses come once for each IP version: see
// forVersion. What belongs to a class has the class's suffix.
const (
	chainOutput   = "output"
	chainForward  = "forward"
	chainCapture  = "capture"
	chainUpstream = "upstream-output"
	chainAlive    = "alive"

	setGranted  = "granted"
	setLinger   = "linger"
	setArming   = "arming"
	setGuarded  = "guarded"
	setOnLink   = "on-link"
	setUpstream = "upstream"
	setPorts    = "ports"
	setUsers    = "users"
	setUnits    = "units"
	setAllowed  = "allowed"
	setLive     = "live"
	setOlder    = "live-older"
	setBegun    = "live-begun"
	setSettling = "settling"
)

// newRuleset writes down the table for the rules wanted.
func newRuleset(r backend.Rules) ruleset {
	return buildRuleset(r, slices.ContainsFunc(r.Routes, func(r backend.Route) bool { return r.Bound() }))
}

// binding is the ruleset where connections are left that are bound to routes of before.
func (rs ruleset) binding() ruleset {
	b := buildRuleset(rs.rules, true)
	b.trial = rs.trial
	return b
}

func buildRuleset(r backend.Rules, bound bool) ruleset {
	rs := ruleset{table: r.Table, rules: r, bound: bound, grants: newGrantSets(r), mostMapped: r.MaxMappings}
	rs.sets = append(rs.sets, set{
		name: setArming, key: selector{ipProtocol}, timeout: true,
		comment: "holds ipv4 and ipv6 while connections older than the guard may go on",
	})
	for _, s := range rs.grants.all() {
		rs.sets = append(rs.sets, set{
			name: s.name, comment: s.class.comment(s.kind.comment), key: s.key(s.who),
			timeout: true, size: r.MaxGrants, gc: gcInterval,
		})
		if r.Linger > 0 {
			rs.sets = append(rs.sets, newLingerSet(s, r.MaxGrants))
		}
	}
	if r.Local {
		o := rs.output(r)
		rs.sets = append(rs.sets, o.liveSets(r.MaxGrants)...)
	}
	rs.addDenials(r)
	for _, c := range classesOf(r) {
		rs.sets = append(rs.sets, c.sets()...)
	}
	// These stand there in every mode, so that a reload to another finds them
	// filled: see clear.
	rs.sets = slices.Concat(rs.sets,
		newAddrSets(setAllowed, "always open: allowedIPs", r.Allowed),
		newAddrSets("allowed-local", "always open to this machine: allowedLocalIPs", r.AllowedLocal),
		newAddrSets("allowed-gateway", "always open to the network behind: allowedGatewayIPs", r.AllowedGateway),
		newUpstreamSets(r.Upstream))
	if r.Know(backend.Scope{Holder: backend.Link}) {
		rs.sets = append(rs.sets, newAddrSets(setOnLink, "this machine's own wires, where a packet's Ethernet address is its sender's", r.OnLink)...)
	}
	if r.Gateway && len(r.Interfaces) > 0 {
		guarded := set{name: setGuarded, key: selector{fromName}, comment: "what comes in by these is guarded: interfaces"}
		for _, name := range r.Interfaces {
			key := make([]byte, unix.IFNAMSIZ)
			copy(key, name)
			guarded.holds = append(guarded.holds, only(key))
		}
		rs.sets = append(rs.sets, guarded)
	}
	rs.sets = slices.Concat(rs.sets, origins(&r), mappings(&r, bound))
	rs.addChains(r)
	return rs
}

// output is the opening of what this machine sends.
func (rs *ruleset) output(r backend.Rules) opening {
	d := newDenial(r, backend.Output)
	return opening{chainOutput, rs.grants.opening(r.LocalHolders, true), r.DNSPorts, r.Linger, d.verdict()}
}

// addChains adds the chains, each after those that its rules send packets to.
func (rs *ruleset) addChains(r backend.Rules) {
	first, last := routeChains(&r, rs.bound)
	rs.chains = append(append(rs.chains, liveChain), first...)
	if r.Local {
		o, p := rs.output(r), &path{&r, false, rs.bound}
		u := resolvers{r.Upstream, r.Self, o.refuse}
		rs.chains = append(slices.Concat(rs.chains, p.optionsChains(o), u.chains(), o.chains(), o.liveChains(o.always()), p.chains(o, u)), chain{chainOutput, &outputBase, slices.Concat(
			p.begin(&o, alive(o.refuse, u.live(), o.live(), o.known())), p.sentinels(), p.unassigned("no name has this address"), neighbours(),
			dhcpClient(accept), allowed("allowed-local", accept), u.open(), u.shut(), o.rules(), refuse(o.refuse))})
	}
	if r.Gateway {
		var unguarded []rule
		if len(r.Interfaces) > 0 {
			unguarded = []rule{{"comes in by an interface that is not guarded", []match{notGuarded}, accept}}
		}
		d, p := newDenial(r, backend.Forward), &path{&r, true, rs.bound}
		o := opening{chainForward, rs.grants.opening(r.GatewayHolders, false), r.DNSPorts, r.Linger, d.verdict()}
		u := resolvers{to: r.Upstream, refuse: o.refuse}
		rs.chains = append(slices.Concat(rs.chains, p.optionsChains(o), o.chains(), p.chains(o, u)), chain{chainForward, &forwardBase, slices.Concat(
			unguarded, p.begin(&o, alive(o.refuse, o.live())), p.unassigned("no name has this address"), neighbours(),
			allowed("allowed-gateway", accept), u.shut(), o.rules(), refuse(o.refuse))})
		if r.Capture != 0 {
			rs.chains = append(rs.chains, newCapture(r))
		}
	}
	rs.chains = append(rs.chains, last...)
}

// alive is what every guarded chain begins with. Packets of live connections go by the
// rules for them. They are most of all, so nothing else comes first.
func alive(refuse verdict, live ...[]rule) []rule {
	return append(append(slices.Concat(live...), livesOn()), notInvalid(refuse)...)
}

func notInvalid(refuse verdict) []rule {
	return []rule{{unconnected, []match{ctState("invalid")}, refuse}}
}

// livesOn lets packets of live connections through: see liveChain.
func livesOn() rule {
	return rule{"live connections go on", []match{liveConnection}, jump(chainAlive)}
}

// liveChain lets them through, wherever they come from. But a SYN may come from somebody else
// who has the port now: of a connection that was reset, connection tracking takes it for a
// part for some seconds.
var liveChain = chain{name: chainAlive, rules: []rule{
	{"begins anew", []match{tcpOpening, ctState("established")}, goBack},
	{"live connections go on", nil, accept},
}}

// neighbours is what passes whatever is granted.
func neighbours() []rule {
	return []rule{
		loopback(accept),
		{"TCP connections older than the guard", []match{selector{ipProtocol}.in(setArming), ctState("new"), tcpMidStream}, accept},
		// A router lowers the hop limit, so nothing off the link can say 255
		// (RFC 4861, section 3.1), and 1 never leaves it (RFC 3810, section 5).
		{"neighbour discovery", []match{hopLimit(255), icmpv6(
			"nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert", "nd-redirect")}, accept},
		{"multicast listener discovery", []match{hopLimit(1), ip6DestinationPrefix("ff00::/8"), icmpv6(
			"mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report")}, accept},
	}
}

func loopback(v verdict) rule { return rule{"loopback", []match{oifLoopback}, v} }

// dhcpClient opens what a DHCP client of this machine sends. DHCPv4 renews
// straight with its server, wherever that is (RFC 2131, section 4.4.5); DHCPv6
// talks on the link only (RFC 8415, section 7.1).
func dhcpClient(v verdict) []rule {
	const relaysAndServers = "ff02::1:2"
	return []rule{
		{"DHCP client", []match{ipVersion4, udpPorts(68, 67)}, v},
		{"DHCPv6 client", []match{ip6Destination(relaysAndServers), udpPorts(546, 547)}, v},
		{"DHCPv6 client", []match{ip6DestinationPrefix("fe80::/10"), udpPorts(546, 547)}, v},
	}
}

// allowed is what becomes of packets to addresses that the Corefile names.
func allowed(chainsOwn string, v verdict) []rule {
	var rules []rule
	for _, s := range []struct{ name, comment string }{
		{setAllowed, "allowedIPs"},
		{chainsOwn, "allowed on this chain"},
	} {
		for _, ipv4 := range []bool{true, false} {
			rules = append(rules, rule{s.comment, []match{selector{destination(ipv4)}.in(forVersion(s.name, ipv4))}, v})
		}
	}
	return rules
}

// An opening is what grants open in a chain.
type opening struct {
	chain  string
	sets   []*grantSet
	dns    bool          // the ports of DNS as well
	linger time.Duration // after a packet; 0 is no longer than the grant
	refuse verdict       // of what it does not open
}

// rules let through what holders of grants send where they may, but no questions to
// other resolvers.
func (o *opening) rules() (rules []rule) {
	if !o.dns {
		rules = append(rules, rule{"no DNS answer opens another resolver", []match{tcpOrUDP, dnsPorts}, o.refuse})
	}
	if o.linger > 0 {
		rules = append(rules, rule{stayOpen, nil, jump(o.lingerChain())})
	}
	rules = append(rules, o.begins()...)
	for _, s := range o.sets {
		rules = append(rules, s.rules("opened by a DNS answer", s.name, letThrough)...)
		if o.linger > 0 {
			rules = append(rules, s.rules(stayOpen, s.named(setLinger), letThrough)...)
		}
	}
	return rules
}

func refuse(v verdict) []rule {
	return []rule{{"no DNS answer has opened this address", nil, v}}
}
