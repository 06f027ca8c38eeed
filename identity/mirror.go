package identity

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
)

// A key is an address in 16 bytes, IPv4 mapped into IPv6, without its zone. It
// holds no pointer, unlike netip.Addr, that the garbage collector would follow.
type key [16]byte

func keyOf(addr netip.Addr) key { return addr.As16() }

// keyOfBytes takes an address as netlink has it.
func keyOfBytes(b []byte) (k key, ok bool) {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return key{}, false
	}
	return keyOf(addr), true
}

// A mirror is a table of the kernel's: what it has of each address, by the place
// where it has it (P) and with a value (V). Many goroutines may ask it (get);
// only one, which hears the kernel, may change it.
type mirror[P comparable, V comparable] struct {
	seed            maphash.Seed
	shards          [shards]shard[P, V]
	ledger[spot[P]] // the writer's alone
}

const shards = 64

type shard[P comparable, V comparable] struct {
	mu sync.RWMutex
	m  map[key][]item[P, V] // a list is never changed, but replaced
	_  [32]byte             // a cache line each
}

type item[P comparable, V comparable] struct {
	place P
	value V
}

type spot[P comparable] struct {
	key   key
	place P
}

func newMirror[P comparable, V comparable](limit int) *mirror[P, V] {
	m := &mirror[P, V]{seed: maphash.MakeSeed()}
	m.ledger.init(limit)
	for i := range m.shards {
		m.shards[i].m = make(map[key][]item[P, V])
	}
	return m
}

func (m *mirror[P, V]) shard(k key) *shard[P, V] {
	return &m.shards[maphash.Comparable(m.seed, k)%shards]
}

// get returns all that there is of an address. The list is not to be changed.
func (m *mirror[P, V]) get(k key) []item[P, V] {
	s := m.shard(k)
	s.mu.RLock()
	list := s.m[k]
	s.mu.RUnlock()
	return list
}

// set enters a value, and reports whether there was room for it. Writer only.
func (m *mirror[P, V]) set(k key, place P, value V, from source) bool {
	at := spot[P]{k, place}
	if !m.believes(at, from) {
		return true
	}
	if !m.enter(at) {
		return false
	}
	list := m.shard(k).m[k] // nobody else writes
	i := slices.IndexFunc(list, func(it item[P, V]) bool { return it.place == place })
	switch {
	case i < 0:
		list = append(slices.Clip(list), item[P, V]{place, value})
	case list[i].value == value:
		return true
	default:
		list = slices.Clone(list)
		list[i].value = value
	}
	m.replace(k, list)
	return true
}

// remove takes an entry out, if there is one. Writer only.
func (m *mirror[P, V]) remove(k key, place P, from source) {
	at := spot[P]{k, place}
	if m.believes(at, from) {
		m.drop(at)
	}
}

func (m *mirror[P, V]) drop(at spot[P]) {
	if !m.strike(at) {
		return
	}
	k, place := at.key, at.place
	var rest []item[P, V]
	for _, it := range m.shard(k).m[k] {
		if it.place != place {
			rest = append(rest, it)
		}
	}
	m.replace(k, rest)
}

// sweep removes what was not heard of since begin. Writer only.
func (m *mirror[P, V]) sweep() {
	for at := range m.unheard() {
		m.drop(at)
	}
}

func (m *mirror[P, V]) replace(k key, list []item[P, V]) {
	s := m.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(list) == 0 {
		delete(s.m, k)
	} else {
		s.m[k] = list
	}
}
