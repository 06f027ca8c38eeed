package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A ruleset is a whole table as data: compile.go turns it into netlink messages
// and print.go into the text that `nft list table` shows of it.
type ruleset struct {
	table  string
	sets   []set
	chains []chain
}

type set struct {
	name, comment string
	key           nftables.SetDatatype
	size          int  // most elements; 0 for no bound
	timeout       bool // elements end by themselves; they survive a reload
	grants        *grantSet

	// What a set without timeouts holds: one of these.
	ranges     []netipx.IPRange
	interfaces []string
}

type chain struct {
	name  string
	hook  *nftables.ChainHook
	rules []rule
}

type rule struct {
	comment string
	match   []match
	verdict verdict
}

// Names in the table. Sets come once for each IP version: see forVersion.
const (
	chainOutput  = "output"
	chainForward = "forward"
	setGranted   = "granted"
	setArming    = "arming"
	setGuarded   = "guarded"
	setOnLink    = "on-link"
)

// newRuleset writes down the table for the rules wanted.
func newRuleset(r backend.Rules) ruleset {
	rs := ruleset{table: r.Table}
	rs.sets = append(rs.sets, set{
		name: setArming, key: nftables.TypeNFProto, timeout: true,
		comment: "holds ipv4 and ipv6 while connections older than the guard may go on",
	})
	for _, s := range grantSetsFor(r) {
		rs.sets = append(rs.sets, set{name: s.name, comment: s.comment, key: s.key(), size: r.MaxGrants, timeout: true, grants: s})
	}
	rs.addSets("allowed", "always open: allowedIPs", r.Allowed)
	// These stand there in every mode, so that a reload to another finds them
	// filled: see clear.
	rs.addSets("allowed-local", "always open to this machine: allowedLocalIPs", r.AllowedLocal)
	rs.addSets("allowed-gateway", "always open to the network behind: allowedGatewayIPs", r.AllowedGateway)

	if r.Know(backend.Scope{Holder: backend.Link}) {
		rs.addSets(setOnLink, "this machine's own wires, where a packet's Ethernet address is its sender's", r.OnLink)
	}
	if r.Local {
		rs.chains = append(rs.chains, chain{
			name: chainOutput, hook: nftables.ChainHookOutput,
			rules: concat(preamble(), dhcpClient(), allowed("allowed-local"), granted(r.LocalHolders, r.DNSPorts), refuse()),
		})
	}
	if r.Gateway {
		var unguarded []rule
		if len(r.Interfaces) > 0 {
			rs.sets = append(rs.sets, set{
				name: setGuarded, key: nftables.TypeIFName, interfaces: r.Interfaces,
				comment: "what comes in by these is guarded: interfaces",
			})
			unguarded = []rule{{"comes in by an interface that is not guarded", []match{notGuarded}, accept}}
		}
		rs.chains = append(rs.chains, chain{
			name: chainForward, hook: nftables.ChainHookForward,
			rules: concat(unguarded, preamble(), allowed("allowed-gateway"), granted(r.GatewayHolders, r.DNSPorts), refuse()),
		})
	}
	return rs
}

// addSets adds a set of ranges for each IP version.
func (rs *ruleset) addSets(name, comment string, prefixes []netip.Prefix) {
	v4, v6 := ranges(prefixes)
	for _, s := range []set{
		{key: nftables.TypeIPAddr, ranges: v4, name: forVersion(name, true)},
		{key: nftables.TypeIP6Addr, ranges: v6, name: forVersion(name, false)},
	} {
		s.comment = comment
		rs.sets = append(rs.sets, s)
	}
}

// forVersion is the name of a set for one IP version.
func forVersion(name string, ipv4 bool) string {
	if ipv4 {
		return name + "4"
	}
	return name + "6"
}

// ranges joins what overlaps or touches, so that the kernel's interval sets take
// it, and parts the IP versions.
func ranges(prefixes []netip.Prefix) (v4, v6 []netipx.IPRange) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	all, _ := b.IPSet() // errors only on invalid prefixes, which Rules cannot hold
	for _, r := range all.Ranges() {
		if r.From().Is4() {
			v4 = append(v4, r)
		} else {
			v6 = append(v6, r)
		}
	}
	return v4, v6
}

// preamble is what every guarded chain begins with.
func preamble() []rule {
	return []rule{
		{"belongs to no connection", []match{ctState("invalid")}, drop},
		{"live connections go on", []match{ctState("established,related")}, accept},
		{"loopback", []match{oifLoopback}, accept},
		{"TCP connections older than the guard", []match{arming, ctState("new"), tcpMidStream}, accept},
		// A router lowers the hop limit, so nothing off the link can say 255
		// (RFC 4861, section 3.1), and 1 never leaves it (RFC 3810, section 5).
		{"neighbour discovery", []match{hopLimit(255), icmpv6(
			"nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert", "nd-redirect")}, accept},
		{"multicast listener discovery", []match{hopLimit(1), ip6DestinationPrefix("ff00::/8"), icmpv6(
			"mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report")}, accept},
	}
}

// dhcpClient opens what a DHCP client of this machine sends. DHCPv4 renews
// straight with its server, wherever that is (RFC 2131, section 4.4.5); DHCPv6
// talks on the link only (RFC 8415, section 7.1).
func dhcpClient() []rule {
	const relaysAndServers = "ff02::1:2"
	return []rule{
		{"DHCP client", []match{ipVersion4, udpPorts(68, 67)}, accept},
		{"DHCPv6 client", []match{ip6Destination(relaysAndServers), udpPorts(546, 547)}, accept},
		{"DHCPv6 client", []match{ip6DestinationPrefix("fe80::/10"), udpPorts(546, 547)}, accept},
	}
}

// allowed lets through what goes to addresses that the Corefile names.
func allowed(chainsOwn string) []rule {
	var rules []rule
	for _, s := range []struct{ name, comment string }{
		{"allowed", "allowedIPs"},
		{chainsOwn, "allowed on this chain"},
	} {
		for _, ipv4 := range []bool{true, false} {
			rules = append(rules, rule{s.comment, []match{destinationIn(s.name, ipv4)}, accept})
		}
	}
	return rules
}

// granted lets through what holders of grants send where they may, but no
// questions to other resolvers.
func granted(holders []backend.Holder, dns bool) []rule {
	var rules []rule
	if !dns {
		rules = append(rules, rule{"no DNS answer opens another resolver", []match{tcpOrUDP, dnsPorts}, rejectProhibited})
	}
	for i := range grantSets {
		if slices.Contains(holders, grantSets[i].holder) {
			rules = append(rules, rule{"opened by a DNS answer", []match{grantSets[i].match()}, accept})
		}
	}
	return rules
}

func refuse() []rule {
	return []rule{{"no DNS answer has opened this address", []match{counter}, rejectProhibited}}
}

func concat(parts ...[]rule) (all []rule) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// interval reports whether the set's elements are ranges of addresses.
func (s set) interval() bool { return !s.timeout && s.key != nftables.TypeIFName }
