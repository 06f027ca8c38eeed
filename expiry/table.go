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
// node; hashes lead to nodes, the wheel lists them by when they end, and accounts by
// when they were renewed. Nothing in them is a pointer that the garbage collector
// would follow, if K has none.
type Table[K comparable] struct {
	epoch  time.Time
	seed   maphash.Seed
	trust  atomic.Uint32 // entries of an older trust are not in force until confirmed
	shards [shards]shard
	nodes  nodes[K]

	// These are the writer's alone.
	wheel    wheel[K]
	accounts accounts[K]

	sameHash uint64 // bits that tests take from all hashes
}

const shards = 64

// A shard finds nodes by the hash of their keys. Its lock guards what readers read of
// those nodes.
type shard struct {
	mu    sync.RWMutex
	index index
	_     [8]byte // a cache line each
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
	t.wheel.nodes, t.accounts.nodes = &t.nodes, &t.nodes
	t.trust.Store(1)
	t.empty()
	return t
}

// empty forgets all keys, and gives back their memory.
func (t *Table[K]) empty() {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		s.index = index{heads: make([]uint32, 1)}
		s.mu.Unlock()
	}
	// No reader has the number of a node any more.
	t.nodes, t.wheel.slots = nodes[K]{}, [turn]uint32{}
	t.accounts.empty()
}

// shard returns where k is found, and by what hash.
func (t *Table[K]) shard(k *K) (s *shard, hash uint32) {
	h := maphash.Comparable(t.seed, *k) &^ t.sameHash
	return &t.shards[h%shards], uint32(h >> 32)
}

// find returns the node of k, or 0. The caller holds the shard's lock, for reading at
// least, or is the writer.
func (t *Table[K]) find(s *shard, hash uint32, k *K) uint32 {
	i := *s.index.head(hash)
	for i != 0 {
		n := t.nodes.at(i)
		if n.key == *k {
			break
		}
		i = n.same
	}
	return i
}

func (t *Table[K]) get(k *K) (e entry, ok bool) {
	s, hash := t.shard(k)
	s.mu.RLock()
	if i := t.find(s, hash, k); i != 0 {
		e, ok = t.nodes.at(i).entry, true
	}
	s.mu.RUnlock()
	return e, ok
}

// Covers reports whether k is in force and may be relied upon until the given
// moment: the writer will not take it out of the kernel before, unless there are too
// many.
func (t *Table[K]) Covers(k K, until time.Time) bool {
	e, ok := t.get(&k)
	return ok && e.trusted(t.trust.Load()) && e.dueAt() >= until.Sub(t.epoch)
}

// Lookup returns when the kernel ends k, and whether that is confirmed. An
// unconfirmed entry was there when last heard of: the kernel may have ended it
// or somebody may have taken it away. Without an entry it returns the zero time.
func (t *Table[K]) Lookup(k K) (until time.Time, confirmed bool) {
	e, ok := t.get(&k)
	if !ok {
		return time.Time{}, false
	}
	return t.epoch.Add(e.until()), e.trusted(t.trust.Load())
}

// Distrust makes every entry unconfirmed, at once.
func (t *Table[K]) Distrust() { t.trust.Add(1) }

// Set enters that the kernel ends k at the given moment, and reports whether k
// is new. It counts for these accounts, and is renewed in them. What has been set for
// another account before counts for none of that kind any more. Writer only.
func (t *Table[K]) Set(k K, until time.Time, of Accounts) (added bool) {
	return t.set(&k, until, t.trust.Load(), of, false)
}

// Restore is Set for what Clear has returned: it renews nothing. A new key becomes the
// one of its accounts that was renewed least recently. Writer only.
func (t *Table[K]) Restore(e Ended[K]) (added bool) {
	return t.set(&e.Key, e.Until, t.trust.Load(), e.Of, true)
}

// Adopt enters what was read back from the kernel and may be out of date by now: the
// entry is unconfirmed, and that which was renewed least recently. It changes nothing
// where there is an entry, and reports whether k is new. Writer only.
func (t *Table[K]) Adopt(k K, until time.Time, of Accounts) (added bool) {
	if s, hash := t.shard(&k); t.find(s, hash, &k) != 0 {
		return false
	}
	return t.set(&k, until, 0, of, true)
}

func (t *Table[K]) set(k *K, until time.Time, trust uint32, of Accounts, old bool) (added bool) {
	e := newEntry(until.Sub(t.epoch), trust)
	s, hash := t.shard(k)
	i := t.find(s, hash, k)
	if i != 0 {
		s.mu.Lock()
		t.nodes.at(i).entry = e
		s.mu.Unlock()
		if !old {
			t.accounts.renew(i, of)
		}
		return false
	}
	i = t.nodes.take()
	n := t.nodes.at(i) // which no reader finds yet
	n.key, n.entry = *k, e
	t.wheel.push(i, e.dueAt())
	t.accounts.enter(i, of, old)
	s.mu.Lock()
	t.linkLocked(s, i, hash)
	s.mu.Unlock()
	return true
}

// Delete takes k out and reports whether it was there. Writer only.
func (t *Table[K]) Delete(k K) bool {
	s, hash := t.shard(&k)
	i := t.find(s, hash, &k)
	if i == 0 {
		return false
	}
	t.wheel.remove(i)
	t.drop(s, hash, i)
	return true
}

// drop forgets a node that the wheel has let go of.
func (t *Table[K]) drop(s *shard, hash, i uint32) {
	s.mu.Lock()
	t.unlinkLocked(s, i, hash)
	s.mu.Unlock()
	t.accounts.leave(i)
	t.nodes.release(i)
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
		if due := n.entry.dueAt(); due > at { // renewed since
			t.wheel.push(i, due)
			continue
		}
		buf = append(buf, t.ended(i))
		s, hash := t.shard(&n.key)
		t.drop(s, hash, i)
	}
	return buf
}

// Clear empties the table and returns what was in it, of each holder what was renewed
// most recently first. Writer only.
func (t *Table[K]) Clear() []Ended[K] {
	var all []Ended[K]
	for i := range t.accounts.all(Holder) {
		all = append(all, t.ended(i))
	}
	for i := range t.shards {
		for _, i := range t.shards[i].index.heads {
			for ; i != 0; i = t.nodes.at(i).same {
				if t.accounts.at(i, Holder).account == 0 {
					all = append(all, t.ended(i))
				}
			}
		}
	}
	t.empty()
	return all
}

// Ended is a key that ends or has ended: when the kernel ends it by itself, and what
// it counted for.
type Ended[K comparable] struct {
	Key   K
	Until time.Time
	Of    Accounts
}

// ended is a node to the writer.
func (t *Table[K]) ended(i uint32) Ended[K] {
	n := t.nodes.at(i)
	return Ended[K]{n.key, t.epoch.Add(n.entry.until()), t.accounts.of(i)}
}

// All yields every key and when the kernel ends it. It holds one lock at a time
// and sees each change made meanwhile or not.
func (t *Table[K]) All() iter.Seq2[K, time.Time] {
	return func(yield func(K, time.Time) bool) {
		for i := range t.shards {
			s := &t.shards[i]
			s.mu.RLock()
			part := make([]Ended[K], 0, s.index.count)
			for _, i := range s.index.heads {
				for ; i != 0; i = t.nodes.at(i).same {
					n := t.nodes.at(i)
					part = append(part, Ended[K]{Key: n.key, Until: t.epoch.Add(n.entry.until())})
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
