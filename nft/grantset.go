package nft

import (
	"net/netip"
	"slices"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A grantSet is a set of grants of one kind of holder, in one class, for one IP
// version.
type grantSet struct {
	name  string
	scope backend.Scope // of all grants in it, but for what says which holder it is
	class *class
	kind  *kind
	ipv4  bool
	who   selector // what says which holder it is; nothing where they are many
}

// A kind is what one kind of holders is called, and what of a packet says which of
// them has sent it. That comes first in a set's keys.
type kind struct {
	name, comment string
	who4, who6    []selector // any of them will do; all have the same keys
	near          bool       // only packets that were not forwarded before say it
	wayBack       bool       // only packets that come in where their sender is say it
}

var kinds = [backend.Holders]kind{
	backend.Everyone: {name: "", comment: "addresses that DNS answers have opened", who4: anybody, who6: anybody},
	backend.Machine:  {name: "-local", comment: "opened by DNS answers to this machine", who4: anybody, who6: anybody},
	backend.User: {name: "-user", comment: "opened by DNS answers to that user's programs",
		who4: []selector{{bySocketOf}}, who6: []selector{{bySocketOf}}},
	backend.Unit: {name: "-unit", comment: "opened by DNS answers to that cgroup's programs", who4: cgroups, who6: cgroups},
	backend.Client: {name: "-client", comment: "opened by a DNS answer to that client",
		who4: []selector{{source4}}, who6: []selector{{source6}}, wayBack: true},
	backend.Link: {name: "-link", comment: "opened by a DNS answer to the client with that Ethernet address at that interface",
		who4: []selector{{fromIndex, fromEther}}, who6: []selector{{fromIndex, fromEther}}, near: true},
}

var anybody = []selector{nil}

// cgroups are one's own and all above it. Numbers of cgroups are never the same at two
// levels. Grants are mostly held deep down, and a level that is deeper than the packet's
// cgroup costs least.
var cgroups = func() (all []selector) {
	for level := backend.MaxLevel; level > 0; level-- {
		all = append(all, selector{bySocketIn(level)})
	}
	return all
}()

func (k *kind) ways(ipv4 bool) []selector {
	if ipv4 {
		return k.who4
	}
	return k.who6
}

// grantSets are the sets of grants that rules have, at their numbers: see setOf.
type grantSets []*grantSet

// setOf is the number of the set that a grant stands in.
func setOf(k *backend.Key) int {
	n := 2 * (int(k.Class)*int(backend.Holders) + int(k.Holder))
	if k.Is4() {
		return n
	}
	return n + 1
}

func newGrantSets(r backend.Rules) (sets grantSets) {
	for _, c := range classesOf(r) {
		for h := range backend.Holders {
			scope := backend.Scope{Holder: h, Class: c.number}
			if !r.Know(scope) {
				continue
			}
			for _, ipv4 := range []bool{true, false} {
				s := &grantSet{scope: scope, class: c, ipv4: ipv4, kind: &kinds[h]}
				s.name, s.who = s.named(setGranted), s.kind.ways(ipv4)[0]
				first := netip.IPv6Unspecified()
				if ipv4 {
					first = netip.IPv4Unspecified()
				}
				if h == backend.Client {
					s.scope.ID = first.As16()
				}
				n := setOf(&backend.Key{Scope: scope, IP: first.As16()})
				sets = append(sets, make(grantSets, max(n+1-len(sets), 0))...)
				sets[n] = s
			}
		}
	}
	return sets
}

// all returns the sets without the gaps between them.
func (sets grantSets) all() []*grantSet {
	return slices.DeleteFunc(slices.Clone(sets), func(s *grantSet) bool { return s == nil })
}

// opening returns the sets with grants that open a chain, to these holders. Only the
// chain of what this machine sends can tell who has sent it.
func (sets grantSets) opening(holders []backend.Holder, local bool) []*grantSet {
	return slices.DeleteFunc(sets.all(), func(s *grantSet) bool {
		return !slices.Contains(holders, s.scope.Holder) || s.class.predicates.Local() && !local
	})
}

// named is the name of a set, of this one's kind, class and IP version.
func (s *grantSet) named(begin string) string {
	return forVersion(begin+s.kind.name, s.ipv4) + s.class.suffix
}

// key is what the set's keys are made of.
func (s *grantSet) key(who selector) selector {
	return append(who[:len(who):len(who)], destination(s.ipv4))
}

// appendKey writes k as the kernel compares it.
func (s *grantSet) appendKey(b []byte, k *backend.Key) []byte {
	for i := range s.who {
		f := &s.who[i]
		b = pad(append(b, k.ID[f.at:f.at+f.size()]...))
	}
	if s.ipv4 {
		return append(b, k.IP[12:]...)
	}
	return append(b, k.IP[:]...)
}

// parseKey reads what appendKey writes.
func (s *grantSet) parseKey(b []byte) (k backend.Key, ok bool) {
	scope := s.scope
	for i := range s.who {
		f := &s.who[i]
		if len(b) < align(f.size()) {
			return k, false
		}
		copy(scope.ID[f.at:], b[:f.size()])
		b = b[align(f.size()):]
	}
	ip, ok := netip.AddrFromSlice(b)
	return scope.Key(ip), ok && ip.Is4() == s.ipv4
}

// rules do something to packets of holders of grants: where a set, this one or another
// with the same keys, has what holder and destination make. That is looked up first,
// since most packets have nothing there.
func (s *grantSet) rules(comment, set string, do func(key selector) ([]match, verdict)) (rules []rule) {
	for _, conditions := range s.class.matches() {
		if s.kind.near {
			conditions = append(conditions, selector{source(s.ipv4)}.in(forVersion(setOnLink, s.ipv4)))
		}
		if s.kind.wayBack {
			conditions = append(conditions, comesFromWhereItIs)
		}
		for _, who := range s.kind.ways(s.ipv4) {
			key := s.key(who)
			also, verdict := do(key)
			rules = append(rules, rule{comment, slices.Concat([]match{key.in(set)}, conditions, also), verdict})
		}
	}
	return rules
}

func letThrough(selector) ([]match, verdict) { return nil, accept }

// gcInterval is how often the kernel looks for expired grants. Its default of a
// second costs 6 % of a core with a million of them; since the writer removes
// what has run out, the kernel only has to be sure to do it some time.
const gcInterval = time.Minute
