package expiry

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
	tick  int64        // the first slot that may hold something
}

const (
	tickNanos = int64(125e6)
	turn      = 4096 // slots: 512 seconds
)

type node[K comparable] struct {
	key  K
	next uint32
}

// push puts k in the slot of its deadline, in nanoseconds after the epoch; a
// deadline beyond this turn comes up for a push once a turn.
func (w *wheel[K]) push(k K, deadline int64) {
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
	slot := &w.slots[min(max(deadline/tickNanos, w.tick), w.tick+turn-1)%turn]
	w.nodes[i] = node[K]{key: k, next: *slot}
	*slot = i
}

// pop takes out a key whose slot had passed at the given time, if there is one.
func (w *wheel[K]) pop(now int64) (k K, ok bool) {
	for end := now / tickNanos; w.tick < end; w.tick++ {
		slot := &w.slots[w.tick%turn]
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
