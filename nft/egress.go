package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// routeChains are those for routes that all paths share, and for connections that are bound to
// routes of before.
func routeChains(r *backend.Rules, anyBound bool) (first, last []chain) {
	if len(r.Routes) > 0 {
		first, last = nowhereChains(r), leavingChains(r)
	}
	if anyBound && r.Gateway {
		elsewhere, gone := stray(r, backend.Forward, chainBound, rejectNoHost), stray(r, backend.Forward, chainBound+"-gone", drop)
		first = append(slices.Concat(first, elsewhere.chains(), gone.chains()), bound(chainBound, r, elsewhere, gone))
	}
	if anyBound && r.Local { // before, no packet on its way out tells which that is
		name := chainBound + "-" + chainLeaving
		elsewhere := stray(r, backend.Output, name, drop)
		first = append(append(first, elsewhere.chains()...), bound(name, r, elsewhere, elsewhere))
		last = append(last, chain{chainLeaving, &leavingBase, isBound(name, hasDNAT, ctOriginal)})
	}
	return first, last
}

// leavingChains are for what arrives here, and what has a route out.
func leavingChains(r *backend.Rules) []chain {
	arriving := &path{rules: r, forward: r.Gateway}
	own := chain{name: chainOwn, base: &ownBase}
	if r.Gateway && r.Capture != 0 {
		own.rules = append(own.rules, rule{"plain DNS of clients: captured", []match{notLoopback, tcpOrUDP, toPort.is(portBytes(r.Capture))}, accept})
	}
	own.rules = append(own.rules, translated(r, "a real address is this machine's own", arriving.atOnce().verdict())...)
	egress := chain{chainEgress, &egressBase, eachVersion(r.Routes, func(route *backend.Route, ipv4 bool) []rule {
		at := slices.IndexFunc(route.Egress, func(a netip.Addr) bool { return a.Is4() == ipv4 })
		v := masquerade
		switch {
		case at >= 0:
			v = snat(route.Egress[at])
		case route.Transparent:
			return nil
		}
		return []rule{{"leaves as its route says", []match{hasDNAT, originally(ipv4).in(routeName(route.Name, ipv4, r.Book))}, v}}
	})}
	return []chain{own, egress}
}

var (
	routedForwardBase = base{
		text: "type filter hook prerouting priority dstnat - 10; policy accept;",
		kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityRef(-110), policy: nftables.ChainPolicyAccept,
	}
	routedOutputBase = base{
		text: "type filter hook output priority -110; policy accept;",
		kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityRef(-110), policy: nftables.ChainPolicyAccept,
	}
	translateForwardBase = base{
		text: "type nat hook prerouting priority dstnat - 5; policy accept;",
		kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityRef(-105), policy: nftables.ChainPolicyAccept,
	}
	translateOutputBase = base{
		text: "type nat hook output priority -105; policy accept;",
		kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityRef(-105), policy: nftables.ChainPolicyAccept,
	}
	ownBase = base{
		text: "type filter hook input priority filter; policy accept;",
		kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
	}
	leavingBase = base{
		text: "type filter hook postrouting priority filter; policy accept;",
		kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
	}
	egressBase = base{
		text: "type nat hook postrouting priority srcnat - 10; policy accept;",
		kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityRef(90), policy: nftables.ChainPolicyAccept,
	}
)
