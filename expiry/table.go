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
// Many goroutines may ask it (Covers, Lookup, All); only one, the writer to the
// kernel, may change it. So what the table says was true in the kernel first,
// and no two changes of one key can overtake each other.
//
// Each operation costs the same however many keys there are. Keys and values
// hold no pointers that the garbage collector would follow, if K has none.
type Table[K comparable] struct {
	epoch  time.Time
	seed   maphash.Seed
	trust  atomic.Uint32 // entries of an older trust are not in force until confirmed
	shards [shards]shard[K]
	wheel  wheel[K] // the writer's alone
}

const shards = 64

type shard[K comparable] struct {
	mu sync.RWMutex
	m  map[K]entry
	_  [32]byte // a cache line each
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
	t.trust.Store(1)
	for i := range t.shards {
		t.shards[i].m = make(map[K]entry)
	}
	return t
}

func (t *Table[K]) shard(k K) *shard[K] {
	return &t.shards[maphash.Comparable(t.seed, k)%shards]
}

func (t *Table[K]) get(k K) (entry, bool) {
	s := t.shard(k)
	s.mu.RLock()
	e, ok := s.m[k]
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
	s := t.shard(k)
	s.mu.Lock()
	_, had := s.m[k]
	s.m[k] = e
	s.mu.Unlock()
	if !had {
		t.wheel.push(k, e.dueAt())
	}
	return !had
}

// Delete takes k out and reports whether it was there. Writer only.
func (t *Table[K]) Delete(k K) bool {
	s := t.shard(k)
	s.mu.Lock()
	_, had := s.m[k]
	delete(s.m, k)
	s.mu.Unlock()
	return had
}

// Due takes keys out of the table that have less than Removal left, and appends
// them to buf until it holds limit of them. Keys come up to an eighth of a
// second late. Writer only.
func (t *Table[K]) Due(now time.Time, limit int, buf []Ended[K]) []Ended[K] {
	at := now.Sub(t.epoch)
	for len(buf) < limit {
		k, ok := t.wheel.pop(at)
		if !ok {
			break
		}
		e, ok := t.get(k)
		switch {
		case !ok: // deleted since
		case e.dueAt() > at: // renewed since
			t.wheel.push(k, e.dueAt())
		default:
			t.Delete(k)
			buf = append(buf, Ended[K]{k, t.epoch.Add(e.until())})
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
		for k, e := range s.m {
			all = append(all, Ended[K]{k, t.epoch.Add(e.until())})
		}
		s.m = make(map[K]entry)
		s.mu.Unlock()
	}
	t.wheel.clear()
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
			part := make([]Ended[K], 0, len(s.m))
			for k, e := range s.m {
				part = append(part, Ended[K]{k, t.epoch.Add(e.until())})
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
