package nft

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// For the kernel, a connection of UDP or ping is what has the same addresses and ports.
// Whoever binds a port that another program has let go of has its connection, for as
// long as the kernel remembers that. So where programs are told apart, packets of live
// connections without an end of their own pass by who sends them: the holder of a grant,
// or who has sent there lately, and had one then. That stands in a set beside each set
// of grants, as what lingers does, but opens nothing to new connections.

// liveFor is how long that is known after a packet: longer than the kernel remembers
// such a connection (nf_conntrack_udp_timeout_stream, which is two minutes), so that it
// ends nothing that is in use.
const liveFor = 3 * time.Minute

const (
	goesOn    = "live connections of the holder go on"
	notOthers = "somebody else's live connection"

	chainLive = "live-"
	chainUsed = "used-"
)

// canBeTakenOver is the condition that a packet's connection is any program's that has
// its port.
var canBeTakenOver = protocols("icmp, udp, ipv6-icmp, udplite", unix.IPPROTO_ICMP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_UDPLITE)

// livedBefore is the key of who has sent before he was asked.
func livedBefore(ipv4 bool) selector { return selector{bySocketOf, destination(ipv4)} }

// begun is the key of what has begun since.
func begun(ipv4 bool) selector {
	return selector{source(ipv4), byPort, destination(ipv4), toPort}
}

// apart reports whether the chain tells this machine's programs apart.
func (o *opening) apart() bool {
	return slices.ContainsFunc(o.sets, func(s *grantSet) bool {
		return s.scope.Holder == backend.User || s.scope.Holder == backend.Unit || s.class.predicates.Local()
	})
}

// liveSets are those of who has sent lately, and of who did so before he was asked.
func (o *opening) liveSets(max int) (sets []set) {
	if !o.apart() {
		return nil
	}
	sets = append(sets, set{
		name: setSettling, key: selector{ipProtocol}, timeout: true,
		comment: "holds ipv4 and ipv6 after a change, while live connections become known",
	})
	for _, s := range o.sets {
		sets = append(sets, newUsedSet(s.named(setLive), s.class.comment("used lately: its live connections go on"), s.key(s.who), max))
	}
	for _, ipv4 := range []bool{true, false} {
		sets = append(sets, newUsedSet(forVersion(setOlder, ipv4), "used lately by that user, since before a change", livedBefore(ipv4), 0),
			newUsedSet(forVersion(setBegun, ipv4), "what has begun since a change, and so is none from before", begun(ipv4), 0))
	}
	return sets
}

// openedBy are the sets that open the chain to new connections of holders of s.
func (o *opening) openedBy(s *grantSet) []string {
	if o.linger > 0 {
		return []string{s.name, s.named(setLinger)}
	}
	return []string{s.name}
}

// always are the rules for packets that pass whoever sends them.
func (o *opening) always() []rule {
	return slices.Concat([]rule{loopback(goBack)}, dhcpClient(goBack), allowed("allowed-local", goBack))
}

// liveChains are the one that enters packets which pass, and the one that looks at those
// of live connections. It goes back to where they are accepted.
func (o *opening) liveChains(always []rule) []chain {
	if !o.apart() {
		return nil
	}
	back := func(selector) ([]match, verdict) { return nil, goBack }
	used := chain{name: chainUsed + o.chain}
	live := chain{name: chainLive + o.chain, rules: append(slices.Clip(always), rule{goesOn, nil, jump(used.name)})}
	for _, s := range o.sets {
		enter := func(key selector) ([]match, verdict) {
			return []match{refresh(s.named(setLive), key, liveFor)}, goBack
		}
		for _, by := range o.openedBy(s) {
			used.rules = append(used.rules, s.rules(goesOn, by, enter)...)
			live.rules = append(live.rules, s.rules(goesOn, by, back)...) // also where it cannot be entered
		}
		live.rules = append(live.rules, s.rules(goesOn, s.named(setLive), enter)...)
	}
	const older = "live since before a change"
	for _, ipv4 := range []bool{true, false} {
		key, name := livedBefore(ipv4), forVersion(setOlder, ipv4)
		live.rules = append(live.rules,
			rule{older, []match{key.in(name), refresh(name, key, liveFor)}, goBack},
			rule{notOthers, []match{begun(ipv4).in(forVersion(setBegun, ipv4))}, rejectProhibited})
	}
	for _, ipv4 := range []bool{true, false} {
		key, name := livedBefore(ipv4), forVersion(setOlder, ipv4)
		enter := refresh(name, key, liveFor)
		enter.ip = destination(ipv4).ip
		live.rules = append(live.rules, rule{older, []match{selector{ipProtocol}.in(setSettling), enter}, goBack})
	}
	live.rules = append(live.rules,
		rule{older, []match{selector{ipProtocol}.in(setSettling)}, goBack},
		rule{notOthers, nil, rejectProhibited})
	return []chain{used, live}
}

// known sends packets of live connections there: not those that come back, nor errors.
func (o *opening) known() []rule {
	if !o.apart() {
		return nil
	}
	return []rule{{goesOn, []match{ctState("established"), ctOriginal, canBeTakenOver}, jump(chainLive + o.chain)}}
}

// begins enters packets of new connections.
func (o *opening) begins() []rule {
	if !o.apart() {
		return nil
	}
	var rules []rule
	for _, ipv4 := range []bool{true, false} {
		enter := refresh(forVersion(setBegun, ipv4), begun(ipv4), liveFor)
		enter.ip = destination(ipv4).ip
		rules = append(rules, rule{"none from before a change", []match{selector{ipProtocol}.in(setSettling), canBeTakenOver, enter}, verdict{}})
	}
	return append(rules, rule{goesOn, []match{canBeTakenOver}, jump(chainUsed + o.chain)})
}

// unsettled reports whether live connections have to become known: nobody remembers
// them by what is to stand there, or what they passed by is another.
func (rs ruleset) unsettled(p present) bool {
	wanted, changed := map[string]bool{}, false
	for _, s := range rs.sets {
		wanted[s.name] = true
		switch {
		case strings.HasPrefix(s.name, setLive):
			changed = changed || p.sets[s.name] == nil
		case strings.HasPrefix(s.name, setAllowed), strings.HasPrefix(s.name, setUpstream):
			changed = changed || !p.holds(s)
		}
	}
	for name := range p.sets {
		changed = changed || strings.HasPrefix(name, setLive) && !wanted[name]
	}
	return changed && wanted[setSettling]
}
