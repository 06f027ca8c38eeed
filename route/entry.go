package route

import (
	"hash/maphash"
	"math"
	"net/netip"
	"strings"
	"sync"
)

// ip is an address of either version; IPv4 in mapped form.
type ip = [16]byte

// slot is a mapped address of a name.
type slot struct {
	mapped ip
	real   ip // where it leads; zero if that is not known
}

// entry is a name of a route, in one IP version.
type entry struct {
	key string // version, route, name: see appendKey

	mu    sync.Mutex
	turn  *turn  // nil if nobody has it or wants it
	slots []slot // the first ones are answered; whoever changes them has the turn
	by    string // the name that has the route, if that is not the entry's own: the last answer led there
	force uint64 // the router's epoch, and one, in which all slots that lead somewhere are in force; or one of those below
	used  int32  // when it was last answered: see Book.since
	saved int32  // used, as it is on disk
	asker uint32 // whose share the addresses count for; 0 is nobody's. Under the book's lock
	last  uint16 // the place of the last slot on disk
	dirty bool   // the real addresses on disk are others
	dead  bool   // not in the book any more: look again
}

// What force is where there is no such epoch.
const (
	unforced = 0              // all is to be mapped
	vague    = math.MaxUint64 // and slots may have led elsewhere than they say
)

// Marks in place of the entry of an address that nobody has.
var (
	isFree    = &entry{dead: true}
	isResting = &entry{dead: true}
)

// real reports whether e is an entry, and neither nil nor a mark.
func (e *entry) real() bool { return e != nil && e != isFree && e != isResting }

// Versions as keys have them.
const versions = "46"

// maxKey is more than any name needs, in whatever form: 255 octets, each as \DDD.
const maxKey = 1200

// appendKey appends what an entry is found by.
func appendKey(to []byte, version int, route, name string) ([]byte, error) {
	if len(route)+len(name) > maxKey || strings.IndexByte(route, 0) >= 0 {
		return nil, ErrName
	}
	to = append(to, versions[version])
	to = append(to, route...)
	to = append(to, 0)
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		to = append(to, c)
	}
	return to, nil
}

// names returns the parts of the key.
func (e *entry) names() (route, name string) {
	route, name, _ = strings.Cut(e.key[1:], "\x00")
	return route, name
}

// version is the index of the IP version.
func (e *entry) version() int {
	if e.key[0] == versions[0] {
		return 0
	}
	return 1
}

// addr is an address of the entry's IP version.
func (e *entry) addr(a ip) netip.Addr { return addrOf(e.version(), a) }

func addrOf(version int, a ip) netip.Addr {
	if version != 0 {
		return netip.AddrFrom16(a) // an IPv4-mapped one is real enough for an attacker to send it
	}
	return netip.AddrFrom16(a).Unmap()
}

// versionOf is the index of a mapped address's IP version: pools have none that only look
// like IPv6.
func versionOf(mapped ip) int { return version(netip.AddrFrom16(mapped).Unmap()) }

// unchanged returns the answer, if it is as in force, or nil.
func (e *entry) unchanged(r *Route, by string, reals []netip.Addr, force uint64, now int32) []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead || e.force != force {
		return nil
	}
	mapped := e.answerLocked(r, reals)
	if mapped != nil {
		e.used = now
		e.ledLocked(by)
	}
	return mapped
}

// ledLocked notes which name an answer had its route by.
func (e *entry) ledLocked(by string) {
	if !strings.EqualFold(e.by, by) {
		e.by, e.dirty = strings.Clone(strings.ToLower(by)), true
	}
}

// answerLocked returns the answer that the slots give as they are, or nil.
func (e *entry) answerLocked(r *Route, reals []netip.Addr) []netip.Addr {
	k := min(r.Slots, len(reals))
	if k > len(e.slots) || len(e.slots) > MaxSlots {
		return nil
	}
	mapped := make([]netip.Addr, 0, k)
	var taken uint64
	for _, real := range reals {
		if len(mapped) == k {
			break
		}
		to := real.As16()
		for i := range e.slots[:k] {
			if e.slots[i].real == to && taken>>i&1 == 0 {
				taken |= 1 << i
				mapped = append(mapped, e.addr(e.slots[i].mapped))
				break
			}
		}
	}
	if len(mapped) < k {
		return nil
	}
	for i := range e.slots {
		if !contains(r.Pools, e.addr(e.slots[i].mapped)) || i >= k && !leads(reals, e.slots[i].real) {
			return nil
		}
	}
	return mapped
}

func contains(pools []netip.Prefix, a netip.Addr) bool {
	for i := range pools {
		if pools[i].Contains(a) {
			return true
		}
	}
	return false
}

func leads(reals []netip.Addr, to ip) bool {
	for i := range reals {
		if reals[i].As16() == to {
			return true
		}
	}
	return false
}

// shard is a part of all entries.
type shard struct {
	mu      sync.RWMutex
	entries map[string]*entry
}

const shards = 64

func (b *Book) shard(key []byte) *shard { return &b.shards[maphash.Bytes(b.seed, key)%shards] }

func (s *shard) find(key []byte) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[string(key)]
}

// enter finds or makes an entry.
func (b *Book) enter(key []byte) *entry {
	s := b.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[string(key)]
	if e == nil {
		e = &entry{key: string(key)}
		s.entries[e.key] = e
	}
	return e
}

// dropIdle takes an entry that has come to nothing out of the book: it has no address, and
// nobody is about to give it one.
func (b *Book) dropIdle(e *entry) {
	s := b.shard([]byte(e.key))
	s.mu.Lock()
	defer s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.slots) == 0 && e.turn == nil && !e.dead {
		e.dead = true
		delete(s.entries, e.key)
	}
}
