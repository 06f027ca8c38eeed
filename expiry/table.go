package expiry

import (
	"hash/maphash"
	"iter"
	"sync"
	"sync/atomic"
	"time"
)

// Table is the mirror of the grants in the kernel: which keys are in force and
// until when.
//
// Many goroutines may ask it (Covers, Lookup, All); only one at a time, the
// writer to the kernel, may change it. So what the table says was true in the
// kernel first, and no two changes of one key can overtake each other.
//
// Each operation costs the same however many keys there are. A key stands in one
// node, which the wheel lists; hashes lead to nodes. Nothing in them is a pointer
// that the garbage collector would follow, if K has none.
type Table[K comparable] struct {
	epoch  time.Time
	seed   maphash.Seed
	trust  atomic.Uint32 // entries of an older trust are not in force until confirmed
	shards [shards]shard
	nodes  nodes[K]
	wheel  wheel[K] // the writer's alone

	sameHash uint64 // bits that tests take from all hashes
}

const shards = 64

// A shard finds nodes by the hash of their keys; nodes of the same hash are a
// list. Its lock guards what readers read of those nodes.
type shard struct {
	mu    sync.RWMutex
	index map[uint64]uint32
	_     [32]byte // a cache line each
}

// An entry is when the kernel ends a grant, in milliseconds after the table's
// epoch (40 bits: 34 years), and the trust it was entered with (24 bits). Small
// entries are most of what a grant costs in memory.
type entry uint64

const trustBits = 24

// newEntry rounds up: a millisecond is nothing beside Removal, which a grant
// that is relied upon has left.
func newEntry(until time.Duration, trust uint32) entry {
	ms := (max(until, 0) + time.Millisecond - 1) / time.Millisecond
	return entry(ms)<<trustBits | entry(trust&(1<<trustBits-1))
}

func (e entry) until() time.Duration { return time.Duration(e>>trustBits) * time.Millisecond }

func (e entry) dueAt() time.Duration { return e.until() - Removal }

func (e entry) trusted(trust uint32) bool { return (uint32(e)^trust)&(1<<trustBits-1) == 0 }

// NewTable makes an empty table. Times are kept as distances from epoch, with
// its monotonic reading where it has one.
func NewTable[K comparable](epoch time.Time) *Table[K] {
	t := &Table[K]{epoch: epoch, seed: maphash.MakeSeed()}
	t.wheel.nodes = &t.nodes
	t.trust.Store(1)
	for i := range t.shards {
		t.shards[i].index = make(map[uint64]uint32)
	}
	return t
}

func (t *Table[K]) shard(k K) (s *shard, hash uint64) {
	hash = maphash.Comparable(t.seed, k) &^ t.sameHash
	return &t.shards[hash%shards], hash
}

// find returns the node of k, or 0, and the one before it in the list of its hash.
// The caller holds the shard's lock, for reading at least, or is the writer.
func (t *Table[K]) find(s *shard, hash uint64, k K) (i, before uint32) {
	for i = s.index[hash]; i != 0; i, before = t.nodes.at(i).same, i {
		if t.nodes.at(i).key == k {
			break
		}
	}
	return i, before
}

func (t *Table[K]) get(k K) (e entry, ok bool) {
	s, hash := t.shard(k)
	s.mu.RLock()
	if i, _ := t.find(s, hash, k); i != 0 {
		e, ok = t.nodes.at(i).entry, true
	}
	s.mu.RUnlock()
	return e, ok
}

// Covers reports whether k is in force and may be relied upon until the given
// moment: the writer will not take it out of the kernel before.
func (t *Table[K]) Covers(k K, until time.Time) bool {
	e, ok := t.get(k)
	return ok && e.trusted(t.trust.Load()) && e.dueAt() >= until.Sub(t.epoch)
}

// Lookup returns when the kernel ends k, and whether that is confirmed. An
// unconfirmed entry was there when last heard of: the kernel may have ended it
// or somebody may have taken it away. Without an entry it returns the zero time.
func (t *Table[K]) Lookup(k K) (until time.Time, confirmed bool) {
	e, ok := t.get(k)
	if !ok {
		return time.Time{}, false
	}
	return t.epoch.Add(e.until()), e.trusted(t.trust.Load())
}

// Distrust makes every entry unconfirmed, at once.
func (t *Table[K]) Distrust() { t.trust.Add(1) }

// Set enters that the kernel ends k at the given moment, and reports whether k
// is new. Writer only.
func (t *Table[K]) Set(k K, until time.Time) (added bool) {
	return t.set(k, until, t.trust.Load())
}

// Adopt enters what was read back from the kernel and may be out of date by
// now: the entry is unconfirmed. It changes nothing where there is an entry, and
// reports whether k is new. Writer only.
func (t *Table[K]) Adopt(k K, until time.Time) (added bool) {
	if _, ok := t.get(k); ok {
		return false
	}
	return t.set(k, until, 0)
}

func (t *Table[K]) set(k K, until time.Time, trust uint32) (added bool) {
	e := newEntry(until.Sub(t.epoch), trust)
	s, hash := t.shard(k)
	i, _ := t.find(s, hash, k)
	if added = i == 0; added {
		i = t.nodes.take()
		t.wheel.push(i, e.dueAt())
	}
	s.mu.Lock()
	n := t.nodes.at(i)
	if n.entry = e; added {
		n.key, n.same = k, s.index[hash]
		s.index[hash] = i
	}
	s.mu.Unlock()
	return added
}

// Delete takes k out and reports whether it was there. Writer only.
func (t *Table[K]) Delete(k K) bool {
	s, hash := t.shard(k)
	i, before := t.find(s, hash, k)
	if i == 0 {
		return false
	}
	n := t.nodes.at(i)
	s.mu.Lock()
	switch {
	case before != 0:
		t.nodes.at(before).same = n.same
	case n.same != 0:
		s.index[hash] = n.same
	default:
		delete(s.index, hash)
	}
	s.mu.Unlock()
	n.deleted = true // the wheel lets go of it when its slot comes up
	return true
}

// Due takes keys out of the table that have less than Removal left, and appends
// them to buf until it holds limit of them. Keys come up to an eighth of a
// second late. Writer only.
func (t *Table[K]) Due(now time.Time, limit int, buf []Ended[K]) []Ended[K] {
	at := now.Sub(t.epoch)
	for len(buf) < limit {
		i := t.wheel.pop(at)
		if i == 0 {
			break
		}
		n := t.nodes.at(i)
		switch {
		case n.deleted:
			t.nodes.release(i)
		case n.entry.dueAt() > at: // renewed since
			t.wheel.push(i, n.entry.dueAt())
		default:
			buf = append(buf, Ended[K]{n.key, t.epoch.Add(n.entry.until())})
			t.Delete(n.key)
			t.nodes.release(i)
		}
	}
	return buf
}

// Clear empties the table and returns what was in it. Writer only.
func (t *Table[K]) Clear() []Ended[K] {
	var all []Ended[K]
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, i := range s.index {
			for ; i != 0; i = t.nodes.at(i).same {
				n := t.nodes.at(i)
				all = append(all, Ended[K]{n.key, t.epoch.Add(n.entry.until())})
			}
		}
		s.index = make(map[uint64]uint32)
		s.mu.Unlock()
	}
	// No reader has the number of a node any more.
	t.nodes, t.wheel.slots = nodes[K]{}, [turn]uint32{}
	return all
}

// Ended is a key that has run out, and when the kernel ends it by itself.
type Ended[K comparable] struct {
	Key   K
	Until time.Time
}

// All yields every key and when the kernel ends it. It holds one lock at a time
// and sees each change made meanwhile or not.
func (t *Table[K]) All() iter.Seq2[K, time.Time] {
	return func(yield func(K, time.Time) bool) {
		for i := range t.shards {
			s := &t.shards[i]
			s.mu.RLock()
			part := make([]Ended[K], 0, len(s.index))
			for _, i := range s.index {
				for ; i != 0; i = t.nodes.at(i).same {
					n := t.nodes.at(i)
					part = append(part, Ended[K]{n.key, t.epoch.Add(n.entry.until())})
				}
			}
			s.mu.RUnlock()
			for _, p := range part {
				if !yield(p.Key, p.Until) {
					return
				}
			}
		}
	}
}
