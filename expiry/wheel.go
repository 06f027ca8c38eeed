package expiry

import "time"

// wheel orders nodes by deadline in slots of an eighth of a second. That a deadline
// has moved is seen only when the slot comes up: whoever pops the node pushes it back.
// So renewing costs nothing here, and a node is touched once a turn.
//
// It belongs to the writer.
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
	slot := uint32(min(max(int64(deadline/tick), w.next), w.next+turn-1) % turn)
	p, head := w.nodes.place(i), w.slots[slot]
	p.next, p.before = head, ^slot
	if head != 0 {
		w.nodes.place(head).before = i
	}
	w.slots[slot] = i
}

// remove takes a node out of its slot.
func (w *wheel[K]) remove(i uint32) {
	p := w.nodes.place(i)
	if slot := ^p.before; slot < turn {
		w.slots[slot] = p.next
	} else {
		w.nodes.place(p.before).next = p.next
	}
	if p.next != 0 {
		w.nodes.place(p.next).before = p.before
	}
}

// pop takes out a node whose slot had passed at the given time; 0 is none.
func (w *wheel[K]) pop(now time.Duration) uint32 {
	for end := int64(now / tick); w.next < end; w.next++ {
		if i := w.slots[w.next%turn]; i != 0 {
			w.remove(i)
			return i
		}
	}
	return 0
}
