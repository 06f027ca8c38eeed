package ipdestinationguard

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/reach"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// What answers have opened and stripped is remembered for people: see why.History. An
// answer that has opened nothing new, as nearly all from the cache, costs a hash and a
// look.

// remember notes what q's answer lets the asker reach.
func (g *guard) remember(q *query, scope backend.Scope, targets []target) {
	if len(targets) == 0 || !g.history.News(g.hash(q.question.Name, targets)) {
		return
	}
	name, asker, now := strings.ToLower(q.question.Name), g.wherefrom(q, scope), g.now()
	for i := range targets {
		key := targets[i].key
		until, _ := g.inForce.Lookup(key)
		g.history.Record(why.Answer{Name: name, Addr: key.Addr(), Scope: scope, Asker: asker, At: now, Until: until})
	}
}

// renewed lets remember note an answer although it is none of a new name.
func (g *guard) renewed(name string, targets []target) { g.history.Forget(g.hash(name, targets)) }

// rememberStripped notes what was taken out of q's answer.
func (g *guard) rememberStripped(q *query, scope backend.Scope, s *stripping) {
	targets := [1]target{{key: scope.Key(s.first)}}
	if !g.history.News(^g.hash(q.question.Name, targets[:])) {
		return
	}
	name, asker, now := strings.ToLower(q.question.Name), g.wherefrom(q, scope), g.now()
	for _, w := range s.withheld {
		g.history.Record(why.Answer{Name: name, Addr: w.addr, Scope: scope, Asker: asker, At: now, Stripped: w.why.Why})
	}
}

// withheld is an address that was taken out.
type withheld struct {
	addr netip.Addr
	why  *reach.Block
}

// maxWithheld bounds what is remembered of one answer.
const maxWithheld = 16

// wherefrom is where the question came from, if that says more than the holder does.
func (g *guard) wherefrom(q *query, scope backend.Scope) netip.Addr {
	if scope.Holder != backend.Link {
		return netip.Addr{}
	}
	addr := addrOf(q.RemoteAddr())
	if contains(g.settings.Load().forwarders, addr) {
		return netip.Addr{}
	}
	return addr.WithZone("")
}

// hash is of a name, of those who may use what its answer opens, and of the addresses,
// in whatever order.
func (g *guard) hash(name string, targets []target) uint64 {
	k := &targets[0].key
	h := maphash.String(g.seed, name) ^
		mix(binary.NativeEndian.Uint64(k.ID[:8])+uint64(k.Holder), binary.NativeEndian.Uint64(k.ID[8:])+uint64(k.Class)<<8)
	for i := range targets {
		ip := &targets[i].key.IP
		h += mix(binary.NativeEndian.Uint64(ip[:8])+1, binary.NativeEndian.Uint64(ip[8:]))
	}
	return h
}

func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xd1b54a32d192ed03)
	return high ^ low
}
