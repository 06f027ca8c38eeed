package identity

import (
	"hash/maphash"
	"net/netip"
	"sync"
)

// A spot is an address on an interface. It holds no pointer, unlike netip.Addr, that
// the garbage collector would follow.
type spot struct {
	addr  [16]byte // IPv4 mapped into IPv6, without a zone
	index uint32   // of the interface
}

func spotOf(addr netip.Addr, index uint32) spot { return spot{addr.As16(), index} }

// A mirror is the kernel's table of neighbours: their Ethernet addresses. Many
// goroutines may ask it (get); only one, which hears the kernel, may change it.
type mirror struct {
	seed         maphash.Seed
	shards       [shards]shard
	ledger[spot] // the writer's alone
}

const shards = 64

type shard struct {
	mu sync.RWMutex
	m  map[spot]hardware
	_  [32]byte // a cache line each
}

// hardware is an Ethernet address.
type hardware = [6]byte

func newMirror(limit int) *mirror {
	m := &mirror{seed: maphash.MakeSeed()}
	m.ledger.init(limit)
	for i := range m.shards {
		m.shards[i].m = make(map[spot]hardware)
	}
	return m
}

func (m *mirror) shard(at spot) *shard {
	return &m.shards[maphash.Comparable(m.seed, at)%shards]
}

func (m *mirror) get(at spot) (hw hardware, ok bool) {
	s := m.shard(at)
	s.mu.RLock()
	hw, ok = s.m[at]
	s.mu.RUnlock()
	return hw, ok
}

// set enters a neighbour, and reports whether there was room. Writer only.
func (m *mirror) set(at spot, hw hardware, from source) bool {
	if !m.believes(at, from) {
		return true
	}
	if !m.enter(at) {
		return false
	}
	s := m.shard(at)
	s.mu.Lock()
	s.m[at] = hw
	s.mu.Unlock()
	return true
}

// remove takes a neighbour out, if it is there. Writer only.
func (m *mirror) remove(at spot, from source) {
	if m.believes(at, from) {
		m.drop(at)
	}
}

func (m *mirror) drop(at spot) {
	if !m.strike(at) {
		return
	}
	s := m.shard(at)
	s.mu.Lock()
	delete(s.m, at)
	s.mu.Unlock()
}

// sweep removes what was not heard of since begin. Writer only.
func (m *mirror) sweep() {
	for at := range m.unheard() {
		m.drop(at)
	}
}
