package nft

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Packets that are denied list their flow in a set, each with a counter. What there is no
// room for is counted all the same, but not by itself.

const chainFlows = "flows"

// flowsListed is how many flows there may be, of one kind and IP version.
const flowsListed = 1 << 14

// sets are those of flows.
func (d *denial) sets(bound bool) (sets []set) {
	for _, k := range d.kinds(bound) {
		comment := "flows lately refused"
		if k.Audited {
			comment = "flows that would lately have been refused, but for audit"
		}
		if k.Invalid {
			comment += ": invalid packets"
		}
		if k.Bound {
			comment += ": to mapped addresses, whose way is not that of their route"
		}
		for _, ipv4 := range []bool{true, false} {
			sets = append(sets, set{
				name: forVersion(k.String(), ipv4), comment: comment, key: flowKeys(k, ipv4, k.Bound)[0],
				timeout: true, dynamic: true, size: flowsListed, gc: lingerGC,
			})
		}
	}
	return sets
}

// flowKeys are the ways to make a flow's key out of a packet, in the order of what they
// say of it: where it has ports or none, and was sent by a program or by the kernel.
// Packets lack what they have nothing of, and then the rule ends.
func flowKeys(k backend.Kind, ipv4, translated bool) (keys []selector) {
	to := destination(ipv4)
	if translated {
		to = originally(ipv4)[0]
	}
	for _, port := range []field{toPort, noPort} {
		if k.Hook == backend.Forward {
			keys = append(keys, selector{fromIndex, source(ipv4), to, transport, port})
			continue
		}
		for _, user := range []field{bySocketOf, noUser} {
			keys = append(keys, selector{user, to, transport, port})
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

// flowByFlow has a packet listed.
func flowByFlow(k backend.Kind) rule {
	return rule{"flow by flow", nil, jump(chainFlows + "-" + k.String())}
}

// flowChains list a packet's flow, or count it as one there is no room for, and show some
// packets. What is translated is listed by its mapped address, whatever it is refused for, and
// not shown: by now the packet has the real one, which nobody has asked for.
func flowChains(k backend.Kind, r *backend.Rules) []chain {
	name := chainFlows + "-" + k.String()
	switch {
	case k.Bound:
		return []chain{{name: name, rules: listFlow(k, true)}}
	case k.Invalid || len(r.Routes) == 0: // what is translated is of a connection
		return []chain{{name: name, rules: append(showSome(k, r.LogGroup), listFlow(k, false)...)}}
	}
	mapped := chain{name: name + "-" + setMapped, rules: listFlow(k, true)}
	return []chain{mapped, {name: name, rules: slices.Concat(translated(r, fromMapped, goTo(mapped.name)), showSome(k, r.LogGroup), listFlow(k, false))}}
}

// showSome shows some packets to an NFLOG group, unless that is 0.
func showSome(k backend.Kind, group uint16) []rule {
	if group == 0 {
		return nil
	}
	return []rule{{"some packets are shown", []match{atMost(shownPerSecond, shownAtOnce), shownTo(group, k.String())}, verdict{}}}
}

// listFlow lists a packet's flow.
func listFlow(k backend.Kind, translated bool) (rules []rule) {
	for i := range flowKeys(k, true, translated) {
		for _, ipv4 := range versions {
			key := flowKeys(k, ipv4, translated)[i]
			list := countEach(forVersion(k.String(), ipv4), key, backend.ListedFor)
			r := rule{commentOf(key), []match{list}, goBack}
			if key[len(key)-1].text == toPort.text {
				r.match = []match{withPorts, list}
			}
			rules = append(rules, r)
		}
	}
	return append(rules, rule{"no room for more flows", []match{countedBy(counterUnlisted + "-" + k.Hook.String())}, verdict{}})
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
