package nft

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

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
	chainFlows   = "flows"

	setEnforced = "enforced"

	counterUnlisted = "unlisted"
)

const (
	// flowsListed is how many flows are counted by themselves, of one kind and IP version.
	flowsListed = 1 << 14

	// listedFor is how long a flow is listed after a packet. Who reads the lists every now
	// and then misses nothing.
	listedFor = 2 * time.Minute

	// shownPerSecond and shownAtOnce bound what a flood costs who looks at packets, and
	// shownBytes is enough of one for the headers of IP and transport.
	shownPerSecond, shownAtOnce, shownBytes = 100, 200, 128
)

// A denial is what becomes of the packets that a chain refuses.
type denial struct {
	chain string       // whose rules refuse them
	hook  backend.Hook // that the packets are counted for
	audit bool
	shown uint16 // NFLOG group that some are shown to; 0 is none
	how   []rule // what becomes of them in the end; the last one is for all
}

// newDenial is the one of a hook's guarded chain.
func newDenial(r backend.Rules, hook backend.Hook) denial {
	d := denial{chain: hook.String(), hook: hook, audit: r.AuditLocal, shown: r.LogGroup, how: prohibited}
	if hook == backend.Forward {
		d.audit = r.AuditGateway
	}
	return d
}

// prohibited is how guarded chains refuse.
var prohibited = []rule{
	{laidDown, []match{lsrr}, drop},
	{laidDown, []match{ssrr}, drop},
	{"refused, and the sender hears of it", nil, rejectProhibited},
}

const laidDown = "no route that the sender has laid down"

// addDenials adds what the guarded chains send to the packets that they refuse.
func (rs *ruleset) addDenials(r backend.Rules) {
	if r.AuditLocal && r.Local || r.AuditGateway && r.Gateway {
		rs.sets = append(rs.sets, set{
			name: setEnforced, key: selector{ipProtocol}, timeout: true,
			comment: "holds ipv4 and ipv6 while a trial refuses what passes in audit",
		})
	}
	for _, hook := range guardedHooks(r) {
		d := newDenial(r, hook)
		rs.counters = append(rs.counters, d.counters()...)
		rs.sets = append(rs.sets, d.sets()...)
		rs.chains = slices.Concat(rs.chains, d.shared(), d.chains())
	}
}

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

// kinds are those of the hook that there can be.
func (d *denial) kinds() []backend.Kind {
	return slices.DeleteFunc(slices.Clone(backend.Kinds), func(k backend.Kind) bool {
		return k.Hook != d.hook || k.Audited && !d.audit
	})
}

// chains are those that the packets are sent to, each after those that its rules send
// packets to.
func (d *denial) chains() []chain {
	denied := d.begin(backend.Kind{Hook: d.hook})
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
	name, invalid := chainDenied, k
	if k.Audited {
		name = chainAudited
	}
	invalid.Invalid = true
	return chain{name: name + "-" + d.chain, rules: append([]rule{
		{"all packets", []match{countedBy(k.String())}, verdict{}},
		{unconnected, []match{ctState("invalid")}, goTo(invalid.String())},
	}, d.account(k)...)}
}

const unconnected = "belongs to no connection"

// account lists the packet's flow, and shows some packets.
func (d *denial) account(k backend.Kind) []rule {
	rules := []rule{{"flow by flow", nil, jump(chainFlows + "-" + k.String())}}
	if d.shown != 0 {
		rules = append(rules, rule{"some packets are shown", []match{atMost(shownPerSecond, shownAtOnce), shownTo(d.shown, k.String())}, verdict{}})
	}
	return rules
}

// shared are the chains that all denials of a hook have in common: those that list flows,
// and where invalid packets end.
func (d *denial) shared() (chains []chain) {
	for _, k := range d.kinds() {
		chains = append(chains, flowChain(k))
		if !k.Invalid {
			continue
		}
		end := drop // to a forged packet there is nothing to say
		if k.Audited {
			end = accept
		}
		chains = append(chains, chain{name: k.String(), rules: append(d.account(k), rule{unconnected, nil, end})})
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

// sets are those of flows.
func (d *denial) sets() (sets []set) {
	for _, k := range d.kinds() {
		comment := "flows lately refused"
		if k.Audited {
			comment = "flows that would lately have been refused, but for audit"
		}
		if k.Invalid {
			comment += ": invalid packets"
		}
		for _, ipv4 := range []bool{true, false} {
			sets = append(sets, set{
				name: forVersion(k.String(), ipv4), comment: comment, key: flowKeys(k.Hook, ipv4)[0],
				timeout: true, dynamic: true, size: flowsListed, gc: lingerGC,
			})
		}
	}
	return sets
}

// flowKeys are the ways to make a flow's key out of a packet, in the order of what they
// say of it: where it has ports or none, and was sent by a program or by the kernel.
// Packets lack what they have nothing of, and then the rule ends.
func flowKeys(h backend.Hook, ipv4 bool) (keys []selector) {
	for _, port := range []field{toPort, noPort} {
		if h == backend.Forward {
			keys = append(keys, selector{fromIndex, source(ipv4), destination(ipv4), transport, port})
			continue
		}
		for _, user := range []field{bySocketOf, noUser} {
			keys = append(keys, selector{user, destination(ipv4), transport, port})
		}
	}
	return keys
}

var (
	noPort = constant(toPort, []byte{0, 0})
	noUser = constant(bySocketOf, binary.NativeEndian.AppendUint32(nil, backend.NoUser))
)

// constant is a field that has one value in every packet.
func constant(f field, value []byte) field {
	f.text = f.print(value)
	f.load = func(r uint32) expr.Any { return &expr.Immediate{Register: r, Data: value} }
	return f
}

// withPorts are the protocols of backend.Protocols.
var withPorts = protocols("tcp, udp, dccp, sctp, udplite", unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_DCCP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE)

// flowChain lists a packet's flow, or counts it as one there is no room for.
func flowChain(k backend.Kind) chain {
	c := chain{name: chainFlows + "-" + k.String()}
	for i := range flowKeys(k.Hook, true) {
		for _, ipv4 := range []bool{true, false} {
			key := flowKeys(k.Hook, ipv4)[i]
			list := countEach(forVersion(k.String(), ipv4), key, listedFor)
			r := rule{commentOf(key), []match{list}, goBack}
			if key[len(key)-1].text == toPort.text {
				r.match = []match{withPorts, list}
			}
			c.rules = append(c.rules, r)
		}
	}
	c.rules = append(c.rules, rule{"no room for more flows", []match{countedBy(counterUnlisted + "-" + k.Hook.String())}, verdict{}})
	return c
}

// commentOf says whose flows a key is for.
func commentOf(key selector) string {
	comment := "by a program"
	switch key[0].text {
	case fromIndex.text:
		comment = "by a client"
	case noUser.text:
		comment = "by the kernel itself"
	}
	if key[len(key)-1].text == noPort.text {
		comment += ", without ports"
	}
	return comment
}

// countEach enters the packet's key into a set, and counts what comes with that key. If
// the set is full, it ends the rule.
func countEach(name string, key selector, last time.Duration) match {
	m := refresh(name, key, last)
	m.text = strings.TrimSuffix(m.text, " }") + " counter }"
	m.exprs[len(m.exprs)-1].(*expr.Dynset).Exprs = []expr.Any{&expr.Counter{}}
	for _, f := range key {
		if f.ip != nil {
			m.ip = f.ip
		}
	}
	return m
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
