// Package names says whether a DNS name matches one of very many patterns.
//
// A pattern is a name in presentation format (RFC 1035, section 5.1), in which
// whole labels and single characters may be left open:
//
//	example.org       this name only
//	*.example.org     any one label in front: a.example.org
//	a.*.example.org   any one label there: a.b.example.org
//	**.example.org    everything there and below: example.org, a.b.example.org
//	ns?.example.org   any one character there: ns1.example.org
//	**                every name
//	.                 the root only
//
// The * means more here than in a zone file, where it is the leftmost label
// only and covers any depth (RFC 4592, section 2.1.1 and 3.3.1); what it does
// there is what ** does here, save that ** covers the name itself too.
//
// The final dot may be left out. Letters compare without regard to case, in
// ASCII only (RFC 4343). A character is one byte, and whatever has a meaning of
// its own here is written with a backslash: \*, \?, \., \\, or \DDD in decimal.
// Names are compared by their bytes after all of this has been read, label by
// label, so that an escaped dot never parts two labels (RFC 4343, section 2.1).
package names

import (
	"fmt"
	"math/bits"
)

// A List is a set of patterns that does not change any more, so it may be used
// by many goroutines at once. Nil is a list of nothing. It holds 12 bytes a
// pattern, however long that is, as it keeps random hashes and no text; see set
// for why that is good enough.
type List struct {
	exact  set       // names that match themselves
	below  set       // names that match with all below them
	depths [2]uint64 // bit n: below has a name of n labels

	// Patterns with open labels or characters, by the number of their labels.
	fixed [][]shape // the name has just as many labels
	deep  [][]shape // the name has as many or more

	patterns int
}

// Parse makes a list of patterns. Its error names the first pattern that is
// none, and what to write instead.
func Parse(patterns ...string) (*List, error) {
	var b builder
	var text []byte
	for _, p := range patterns {
		text = append(text[:0], p...)
		if err := b.add(text); err != nil {
			return nil, fmt.Errorf("%s: %w", quote(text), err)
		}
	}
	return b.list(), nil
}

// Len is the number of different patterns.
func (l *List) Len() int {
	if l == nil {
		return 0
	}
	return l.patterns
}

// Match reports whether a name in presentation format matches a pattern. It is
// read as fully qualified, with or without its final dot. What is no name at
// all matches nothing, not even **: an empty string or label, a label of more
// than 63 or a name of more than 255 bytes (RFC 1035, section 2.3.4), a
// backslash in front of nothing or of a number that is no byte.
//
// It allocates nothing. What it costs is bounded by the length of the name and
// the variety of the patterns, not by their number: one look for the whole
// name, one for every depth at which some ** stands, and one for every
// arrangement of * and ? that names of this depth may have, of which a list has
// a limited number. Nobody who chooses names can make it slower than that, since
// where a name is looked for depends on random numbers.
func (l *List) Match(name string) bool { return l != nil && l.match(name) }

// match is apart so that no list costs no call: mostly there is none.
func (l *List) match(name string) bool {
	var w wire
	if !w.read(name) {
		return false
	}
	if l.exact.has(w.last(w.labels)) {
		return true
	}
	for i, depths := range l.depths {
		for ; depths != 0; depths &= depths - 1 {
			depth := i*64 + bits.TrailingZeros64(depths)
			if depth > w.labels {
				break
			}
			if l.below.has(w.last(depth)) {
				return true
			}
		}
	}
	return len(l.fixed)+len(l.deep) > 0 && l.matchShapes(&w)
}

// matchShapes is apart so that Match does without its buffer.
func (l *List) matchShapes(w *wire) bool {
	var key [maxWire]byte
	if w.labels < len(l.fixed) {
		for i := range l.fixed[w.labels] {
			if l.fixed[w.labels][i].match(w, &key) {
				return true
			}
		}
	}
	for _, shapes := range l.deep[:min(w.labels+1, len(l.deep))] {
		for i := range shapes {
			if shapes[i].match(w, &key) {
				return true
			}
		}
	}
	return false
}
