package nft

import (
	"encoding/binary"
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
				name: forVersion(k.String(), ipv4), comment: comment, key: flowKeys(k, ipv4)[0],
				timeout: true, dynamic: true, size: flowsListed, gc: lingerGC,
			})
		}
	}
	return sets
}

// flowKeys are the ways to make a flow's key out of a packet, in the order of what they
// say of it: where it has ports or none, and was sent by a program or by the kernel.
// Packets lack what they have nothing of, and then the rule ends.
func flowKeys(k backend.Kind, ipv4 bool) (keys []selector) {
	to := destination(ipv4)
	if k.Bound { // these have been translated
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

// flowChain lists a packet's flow, or counts it as one there is no room for.
func flowChain(k backend.Kind) chain {
	c := chain{name: chainFlows + "-" + k.String()}
	for i := range flowKeys(k, true) {
		for _, ipv4 := range []bool{true, false} {
			key := flowKeys(k, ipv4)[i]
			list := countEach(forVersion(k.String(), ipv4), key, backend.ListedFor)
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
