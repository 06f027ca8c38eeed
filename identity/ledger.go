package identity

import "iter"

// A ledger keeps which entries (S) of a table of the kernel's are known, and what to
// believe when the table is read anew while it changes. It is for one goroutine.
//
// The kernel fills a part of a dump first, and puts it into the socket's queue
// afterwards, behind events that came meanwhile. So an event is news to what a dump
// says after it; what is not in the dump, and no event, is gone.
type ledger[S comparable] struct {
	heard      map[S]uint32 // the generation in which it was last heard of
	generation uint32
	limit      int
	events     map[S]struct{} // entries with events since begin; nil when nothing is being read
}

// source is how something was heard of.
type source int

const (
	event source = iota
	dump
)

func (l *ledger[S]) init(limit int) {
	l.limit = limit
	l.heard = make(map[S]uint32)
}

// begin is called when the table is asked for.
func (l *ledger[S]) begin() {
	l.generation++
	l.events = make(map[S]struct{})
}

// end is called when the table has been read, after what is unheard was removed.
func (l *ledger[S]) end() { l.events = nil }

// believes reports whether what was heard of an entry is news.
func (l *ledger[S]) believes(s S, from source) bool {
	if from == dump {
		_, later := l.events[s]
		return !later && len(l.events) < l.limit // beyond which nobody knows
	}
	if l.events != nil && len(l.events) < l.limit {
		l.events[s] = struct{}{}
	}
	return true
}

// enter makes an entry known, and reports whether there was room for it.
func (l *ledger[S]) enter(s S) bool {
	if _, known := l.heard[s]; !known && len(l.heard) >= l.limit {
		return false
	}
	l.heard[s] = l.generation
	return true
}

// strike makes an entry unknown, and reports whether it was known.
func (l *ledger[S]) strike(s S) bool {
	_, known := l.heard[s]
	delete(l.heard, s)
	return known
}

// unheard yields what has not been heard of since begin. It may be struck meanwhile.
func (l *ledger[S]) unheard() iter.Seq[S] {
	return func(yield func(S) bool) {
		for s, generation := range l.heard {
			if generation != l.generation && !yield(s) {
				return
			}
		}
	}
}
