package expiry

import "time"

// wheel orders nodes by deadline in slots of an eighth of a second. A node stands
// in one slot from when it is pushed until it is popped. That a deadline has
// moved is seen only then: whoever pops pushes the node back or lets it go. So
// renewing costs nothing here, and a node is touched once a turn.
//
// It belongs to one goroutine.
type wheel[K comparable] struct {
	nodes *nodes[K]
	slots [turn]uint32 // heads of the lists
	next  int64        // the first slot that may hold something
}

const (
	tick = 125 * time.Millisecond
	turn = 4096 // slots: 512 seconds
)

// push puts a node in the slot of its deadline, counted from the epoch; a
// deadline beyond this turn comes up for a push once a turn.
func (w *wheel[K]) push(i uint32, deadline time.Duration) {
	slot := &w.slots[min(max(int64(deadline/tick), w.next), w.next+turn-1)%turn]
	w.nodes.at(i).next = *slot
	*slot = i
}

// pop takes out a node whose slot had passed at the given time; 0 is none.
func (w *wheel[K]) pop(now time.Duration) uint32 {
	for end := int64(now / tick); w.next < end; w.next++ {
		slot := &w.slots[w.next%turn]
		if i := *slot; i != 0 {
			*slot = w.nodes.at(i).next
			return i
		}
	}
	return 0
}

// node is a key's place.
type node[K comparable] struct {
	entry entry
	same  uint32 // the next node whose key has the same hash

	// These two are the writer's alone.
	next    uint32 // in its slot of the wheel, or in the list of unused ones
	deleted bool   // it only waits for its slot

	key K
}

// nodes are numbered from 1. They come in blocks, so that few are made that are
// not in use, and none ever moves: a reader that has a number from an index may
// look, while the writer makes more. Blocks are not given back but by clearing.
type nodes[K comparable] struct {
	blocks [maxBlocks]*[perBlock]node[K]
	made   uint32
	unused uint32 // head of a list
}

const (
	perBlock  = 1024
	maxBlocks = 1 << 14 // 16 million nodes
)

func (n *nodes[K]) at(i uint32) *node[K] { return &n.blocks[i/perBlock%maxBlocks][i%perBlock] }

// take returns a node that is not in use.
func (n *nodes[K]) take() uint32 {
	if i := n.unused; i != 0 {
		n.unused = n.at(i).next
		return i
	}
	n.made++
	if block := &n.blocks[n.made/perBlock]; *block == nil { // the first has no number 0
		*block = new([perBlock]node[K])
	}
	return n.made
}

// release gives a node back.
func (n *nodes[K]) release(i uint32) {
	*n.at(i) = node[K]{next: n.unused}
	n.unused = i
}
