// Package why says why a packet passes or is refused: from what is enforced, what is in
// force, and what the DNS has answered lately.
package why

import (
	"iter"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// An Answer is what the answer for a name has done with an address, for whom, the last
// time.
type Answer struct {
	Name  string // that was asked for, as miekg/dns writes it: all but printable ASCII is escaped
	Addr  netip.Addr
	Scope backend.Scope // to whom it was opened, or would have been
	Asker netip.Addr    // where the question came from; the zero value if that says nothing
	At    time.Time     // when it was given: cached ones that open nothing anew do not count
	Until time.Time     // when the grant ends; zero if there is none

	// Stripped is why the address was taken out of the answer, or empty.
	Stripped string
}

// Limits of a History.
const (
	// Size is how many answers are kept, each for one address: some 20 MB at most.
	Size = 1 << 16

	// PerAddress are kept of one address, so that nobody can push the others' out by
	// having many names for it.
	PerAddress = 8
)

// History remembers Answers. It keeps those of late, whoever asks for how many.
type History struct {
	// seen are hashes of what has been recorded, so that what is asked again and again
	// costs one look, and no lock. One that is pushed out by another is recorded again.
	seen [1 << 15]atomic.Uint64

	mu       sync.Mutex // guards what follows
	most     int
	nodes    []node // 0 is none: its neighbours are the newest and the oldest
	byAddr   map[netip.Addr]uint32
	recorded uint64
}

// node is an answer in two lists: of all, by when they were recorded, and of its
// address, in no order.
type node struct {
	Answer
	older, newer uint32
	same         uint32
}

// NewHistory makes an empty one that keeps so many answers.
func NewHistory(most int) *History {
	return &History{most: most, nodes: make([]node, 1), byAddr: make(map[netip.Addr]uint32)}
}

// News reports whether what hashes to this has not been asked for lately, and remembers
// that it has. It is for every answer: it takes nanoseconds.
func (h *History) News(hash uint64) bool {
	seen := &h.seen[hash%uint64(len(h.seen))]
	if seen.Load() == hash {
		return false
	}
	seen.Store(hash)
	return true
}

// Forget makes what hashes to this news again.
func (h *History) Forget(hash uint64) {
	h.seen[hash%uint64(len(h.seen))].CompareAndSwap(hash, 0)
}

// Record remembers an answer, in the place of an earlier one with the same name,
// address and holder, or of that which has been recorded least recently.
func (h *History) Record(a Answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recorded++
	i := h.placeLocked(&a)
	if i == 0 {
		i = h.addLocked(a.Addr)
	}
	h.unlistLocked(i)
	h.nodes[i].Answer = a
	newest := h.nodes[0].older
	h.nodes[i].older, h.nodes[i].newer = newest, 0
	h.nodes[newest].newer, h.nodes[0].older = i, i
}

// placeLocked returns the node that a takes the place of, or 0: the same answer's, or
// the oldest of an address that has too many.
func (h *History) placeLocked(a *Answer) uint32 {
	count, oldest := 0, uint32(0)
	for i := h.byAddr[a.Addr]; i != 0; i = h.nodes[i].same {
		n := &h.nodes[i]
		if n.Name == a.Name && n.Scope == a.Scope && (n.Stripped == "") == (a.Stripped == "") {
			return i
		}
		if oldest == 0 || n.At.Before(h.nodes[oldest].At) {
			oldest = i
		}
		count++
	}
	if count < PerAddress {
		return 0
	}
	return oldest
}

// addLocked returns a node for one more answer of an address, with itself as neighbours
// in the list of all.
func (h *History) addLocked(addr netip.Addr) (i uint32) {
	if len(h.nodes) <= h.most {
		i = uint32(len(h.nodes))
		h.nodes = append(h.nodes, node{older: i, newer: i})
	} else {
		i = h.nodes[0].newer // the oldest
		h.forgetLocked(i)
	}
	h.nodes[i].same = h.byAddr[addr]
	h.byAddr[addr] = i
	return i
}

// forgetLocked takes a node out of the list of its address.
func (h *History) forgetLocked(i uint32) {
	n := &h.nodes[i]
	first := h.byAddr[n.Addr]
	switch {
	case first != i:
		at := first
		for h.nodes[at].same != i {
			at = h.nodes[at].same
		}
		h.nodes[at].same = n.same
	case n.same == 0:
		delete(h.byAddr, n.Addr)
	default:
		h.byAddr[n.Addr] = n.same
	}
}

// unlistLocked takes a node out of the list of all.
func (h *History) unlistLocked(i uint32) {
	n := &h.nodes[i]
	if n.older == i { // it is new
		return
	}
	h.nodes[n.older].newer, h.nodes[n.newer].older = n.newer, n.older
}

// Of returns what is known of an address, the latest first.
func (h *History) Of(addr netip.Addr) (answers []Answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := h.byAddr[addr]; i != 0; i = h.nodes[i].same {
		answers = append(answers, h.nodes[i].Answer)
	}
	sortLatest(answers)
	return answers
}

// All yields what is known, the latest first. What is recorded meanwhile may be missed,
// or what has just been recorded come twice.
func (h *History) All() iter.Seq[Answer] {
	return func(yield func(Answer) bool) {
		const part = 1024 // others wait no longer than it takes
		h.mu.Lock()
		at := h.nodes[0].older
		for at != 0 {
			some := make([]Answer, 0, part)
			recorded := h.recorded
			for ; at != 0 && len(some) < part; at = h.nodes[at].older {
				some = append(some, h.nodes[at].Answer)
			}
			h.mu.Unlock()
			for _, a := range some {
				if !yield(a) {
					return
				}
			}
			h.mu.Lock()
			if h.recorded-recorded > uint64(h.most) {
				break // all that is left has been replaced
			}
		}
		h.mu.Unlock()
	}
}

// Len returns how many answers are kept.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.nodes) - 1
}

func sortLatest(answers []Answer) {
	slices.SortStableFunc(answers, func(a, b Answer) int { return b.At.Compare(a.At) })
}
