package expiry

import "time"

// wheel orders keys by deadline in slots of an eighth of a second. A key stands
// in one slot from when it is pushed until it is popped. That a deadline has
// moved is seen only then: whoever pops pushes the key back or lets it go. So
// renewing costs nothing here, and a key is touched once a turn.
//
// It belongs to one goroutine.
type wheel[K comparable] struct {
	nodes []node[K]    // nodes[0] is unused: 0 ends a list
	free  uint32       // head of the list of unused nodes
	slots [turn]uint32 // heads of the lists
	next  int64        // the first slot that may hold something
}

const (
	tick = 125 * time.Millisecond
	turn = 4096 // slots: 512 seconds
)

type node[K comparable] struct {
	key  K
	next uint32
}

// push puts k in the slot of its deadline, counted from the epoch; a
// deadline beyond this turn comes up for a push once a turn.
func (w *wheel[K]) push(k K, deadline time.Duration) {
	i := w.free
	if i != 0 {
		w.free = w.nodes[i].next
	} else {
		if len(w.nodes) == 0 {
			w.nodes = append(w.nodes, node[K]{})
		}
		i = uint32(len(w.nodes))
		w.nodes = append(w.nodes, node[K]{})
	}
	slot := &w.slots[min(max(int64(deadline/tick), w.next), w.next+turn-1)%turn]
	w.nodes[i] = node[K]{key: k, next: *slot}
	*slot = i
}

// pop takes out a key whose slot had passed at the given time, if there is one.
func (w *wheel[K]) pop(now time.Duration) (k K, ok bool) {
	for end := int64(now / tick); w.next < end; w.next++ {
		slot := &w.slots[w.next%turn]
		if i := *slot; i != 0 {
			n := &w.nodes[i]
			k, *slot = n.key, n.next
			*n = node[K]{next: w.free}
			w.free = i
			return k, true
		}
	}
	return k, false
}

// clear empties the wheel.
func (w *wheel[K]) clear() { w.nodes, w.free, w.slots = nil, 0, [turn]uint32{} }
