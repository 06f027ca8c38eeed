package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A class is what the grants of a class are for. What its predicates compare with
// stands in sets that keep their names and elements for as long as the class is the
// same: whatever else is changed, the packets of the class never find a set empty.
// (A set of ranges of ports written in the rule would be made anew with it, and the
// kernel, 6.18, shows the rule a moment before it shows the ranges.)
type class struct {
	number     backend.Class
	words      string // its predicates
	suffix     string // of the names of its sets
	predicates backend.Predicates
}

// classesOf returns the classes of rules. The first one is that of any packet.
func classesOf(r backend.Rules) []*class {
	all := []*class{{}}
	for _, n := range slices.Sorted(maps.Keys(r.Classes)) {
		p := r.Classes[n]
		words := inWords(p)
		all = append(all, &class{n, words, fmt.Sprintf(".%.4x", sha256.Sum256([]byte(words))), p})
	}
	return all
}

// inWords spells predicates. A unit that has two cgroups, since it is restarted, is
// one.
func inWords(p backend.Predicates) string {
	var units []backend.Cgroup
	for _, u := range p.Units {
		if !slices.ContainsFunc(units, func(v backend.Cgroup) bool { return v.Path == u.Path }) {
			units = append(units, u)
		}
	}
	p.Units = units
	return p.String()
}

// comment is what is said of a set: what it is, or what packets it is for.
func (c *class) comment(what string) string {
	if c.words == "" {
		return what
	}
	return "for " + c.words
}

// sets are what the predicates compare with.
func (c *class) sets() (sets []set) {
	p := &c.predicates
	if len(p.Ports) > 0 {
		ports := set{name: setPorts + c.suffix, comment: c.comment(""), key: toPorts, interval: true}
		// The kernel does not take ranges that overlap.
		for _, r := range backend.JoinPorts(p.Ports) {
			ports.holds = append(ports.holds, span{protocolPort(r.Protocol, r.First), protocolPort(r.Protocol, r.Last)})
		}
		sets = append(sets, ports)
	}
	if len(p.Users) > 0 {
		users := set{name: setUsers + c.suffix, comment: c.comment(""), key: selector{bySocketOf}}
		var uids [][]byte
		for _, uid := range p.Users {
			uids = append(uids, binary.NativeEndian.AppendUint32(nil, uid))
		}
		users.hold(uids...)
		sets = append(sets, users)
	}
	if len(p.Units) > 0 {
		units := set{name: setUnits + c.suffix, comment: c.comment(""), key: cgroups[0]}
		var ids [][]byte
		for _, u := range p.Units {
			if u.ID != 0 {
				ids = append(ids, binary.NativeEndian.AppendUint64(nil, u.ID))
			}
		}
		units.hold(ids...)
		sets = append(sets, units)
	}
	return sets
}

// toPorts is the key of sets of ports.
var toPorts = selector{transport, toPort}

func protocolPort(protocol uint8, port uint16) []byte {
	return toPorts.join([]byte{protocol}, binary.BigEndian.AppendUint16(nil, port))
}

// matches are the conditions of the predicates: all of those of one list. There is
// one for each level at which units lie.
func (c *class) matches() [][]match {
	var all []match
	if len(c.predicates.Ports) > 0 {
		all = append(all, toPorts.in(setPorts+c.suffix))
	}
	if len(c.predicates.Users) > 0 {
		all = append(all, selector{bySocketOf}.in(setUsers+c.suffix))
	}
	if len(c.predicates.Units) == 0 {
		return [][]match{all}
	}
	var lists [][]match
	for level := backend.MaxLevel; level > 0; level-- {
		if slices.ContainsFunc(c.predicates.Units, func(u backend.Cgroup) bool { return u.Level == level }) {
			lists = append(lists, append(all[:len(all):len(all)], selector{bySocketIn(level)}.in(setUnits+c.suffix)))
		}
	}
	return lists
}
