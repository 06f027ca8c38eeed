package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// All packets that a chain refuses go to one chain for that. It counts them, one by one
// and by flows; shows some; and refuses them. Nothing in it lets a packet pass. Where the
// hook is in audit, they go to another chain first, which does so, unless a trial is on.
//
// They are sent there by goto: where somebody else has emptied the chain, they come to
// the end of the base chain, whose policy is to drop.

const (
	chainDenied  = "denied"
	chainAudited = "audited"

	counterUnlisted = "unlisted"
)

// setEnforced is what a trial stands in: see audit.go.
const setEnforced = "enforced"

const (
	// shownPerSecond and shownAtOnce bound what a flood costs who looks at packets, and
	// shownBytes is enough of one for the headers of IP and transport.
	shownPerSecond, shownAtOnce, shownBytes = 100, 200, 128
)

// A denial is what becomes of the packets that a chain refuses.
type denial struct {
	chain string       // whose rules refuse them
	hook  backend.Hook // that the packets are counted for
	audit bool
	bound bool   // they must leave by their route only
	how   []rule // what becomes of them in the end; the last one is for all
}

// newDenial is the one of a hook's guarded chain.
func newDenial(r backend.Rules, hook backend.Hook) denial {
	d := denial{chain: hook.String(), hook: hook, audit: r.AuditLocal, how: prohibited}
	if hook == backend.Forward {
		d.audit = r.AuditGateway
	}
	return d
}

// prohibited is how guarded chains refuse.
var prohibited = []rule{unanswered, {"refused, and the sender hears of it", nil, rejectProhibited}}

// addDenials adds what the guarded chains send to the packets that they refuse.
func (rs *ruleset) addDenials(r backend.Rules) {
	if audited(r) {
		rs.sets = append(rs.sets, set{
			name: setEnforced, key: selector{ipProtocol}, timeout: true,
			comment: "holds ipv4 and ipv6 while a trial refuses what passes in audit",
		})
	}
	for _, hook := range guardedHooks(r) {
		d := newDenial(r, hook)
		rs.counters = append(rs.counters, d.counters()...)
		rs.sets = append(rs.sets, d.sets(rs.bound)...)
		rs.chains = slices.Concat(rs.chains, d.shared(&r, rs.bound), d.chains())
	}
}

// audited reports whether anything is in audit.
func audited(r backend.Rules) bool { return r.AuditLocal && r.Local || r.AuditGateway && r.Gateway }

func guardedHooks(r backend.Rules) (hooks []backend.Hook) {
	if r.Local {
		hooks = append(hooks, backend.Output)
	}
	if r.Gateway {
		hooks = append(hooks, backend.Forward)
	}
	return hooks
}

// verdict sends a packet there.
func (d *denial) verdict() verdict {
	if d.audit {
		return goTo(chainAudited + "-" + d.chain)
	}
	return goTo(chainDenied + "-" + d.chain)
}

func goTo(chain string) verdict {
	return verdict{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

// kinds are those of the hook that there can be, where connections may be bound to routes.
func (d *denial) kinds(bound bool) []backend.Kind {
	return slices.DeleteFunc(slices.Clone(backend.Kinds), func(k backend.Kind) bool {
		return k.Hook != d.hook || k.Audited && !d.audit || k.Bound && !bound
	})
}

// chains are those that the packets are sent to, each after those that its rules send
// packets to.
func (d *denial) chains() []chain {
	denied := d.begin(backend.Kind{Hook: d.hook, Bound: d.bound})
	denied.rules = append(denied.rules, d.how...)
	if !d.audit {
		return []chain{denied}
	}
	audited := d.begin(backend.Kind{Hook: d.hook, Audited: true})
	audited.rules = slices.Concat(
		[]rule{{"a trial refuses", []match{selector{ipProtocol}.in(setEnforced)}, d.unaudited().verdict()}},
		audited.rules,
		[]rule{{"in audit all passes", nil, accept}})
	return []chain{denied, audited}
}

func (d denial) unaudited() *denial {
	d.audit = false
	return &d
}

// begin begins a chain that all packets of a kind come to, and invalid ones.
func (d *denial) begin(k backend.Kind) chain {
	name, all, invalid := chainDenied, k, k
	if k.Audited {
		name = chainAudited
	}
	all.Bound, invalid.Invalid = false, true
	c := chain{name: name + "-" + d.chain, rules: []rule{{"all packets", []match{countedBy(all.String())}, verdict{}}}}
	if !k.Bound { // what is translated is of a connection
		c.rules = append(c.rules, rule{unconnected, []match{ctState("invalid")}, goTo(invalid.String())})
	}
	c.rules = append(c.rules, flowByFlow(k))
	return c
}

const unconnected = "belongs to no connection"

// shared are the chains that all denials of a hook have in common: those that list flows,
// and where invalid packets end.
func (d *denial) shared(r *backend.Rules, bound bool) (chains []chain) {
	for _, k := range d.kinds(bound) {
		chains = append(chains, flowChains(k, r)...)
		if !k.Invalid {
			continue
		}
		end := drop // to a forged packet there is nothing to say
		if k.Audited {
			end = accept
		}
		chains = append(chains, chain{name: k.String(), rules: []rule{flowByFlow(k), {unconnected, nil, end}}})
	}
	return chains
}

// counters are what counts all packets of the hook. They stay, so that a reload loses
// none.
func (d *denial) counters() []counter {
	return []counter{
		{backend.Kind{Hook: d.hook}.String(), "all that was refused"},
		{backend.Kind{Hook: d.hook, Audited: true}.String(), "all that would have been refused, but for audit"},
		{counterUnlisted + "-" + d.hook.String(), "of all that, what there was no room for in the sets of flows"},
	}
}

// countedBy counts a packet by a counter with a name.
func countedBy(name string) match {
	return match{text: fmt.Sprintf("counter name %q", name), exprs: []expr.Any{
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name},
	}}
}

// atMost ends the rule for packets that come faster.
func atMost(perSecond uint64, atOnce uint32) match {
	return match{text: fmt.Sprintf("limit rate %d/second burst %d packets", perSecond, atOnce), exprs: []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: atOnce},
	}}
}

// shownTo shows the packet's beginning to an NFLOG group, if anybody listens to it.
func shownTo(group uint16, prefix string) match {
	return match{text: fmt.Sprintf("log prefix %q group %d snaplen %d", prefix, group, shownBytes), exprs: []expr.Any{&expr.Log{
		Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN, Group: group, Data: []byte(prefix), Snaplen: shownBytes,
	}}}
}
