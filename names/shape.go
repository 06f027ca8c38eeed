package names

import (
	"fmt"
	"math/bits"
)

// maxShapes bounds what a look may cost. Lists need a handful: all patterns of
// the form *.NAME.TLD are of one shape, all of the form ns?.NAME.TLD of another.
const maxShapes = 1024

// A shape is where patterns have open labels and characters. All patterns of
// one shape are looked up at once: what is open is taken out of the name, and
// the rest is looked for among the patterns' rests. The rest is a wire without
// the open labels, and with a zero for every open character; that is
// unambiguous within one shape.
type shape struct {
	labels int
	open   []label // from the left
	rests  set
}

// A label of a pattern, open as a whole, or of some length with open characters
// in it, or literal.
type label struct {
	at   int // counted from the left
	any  bool
	size uint8
	mask uint64 // bit i: character i is open
}

func (l label) literal() bool { return !l.any && l.mask == 0 }

// match compares a name's last labels. The buffer is the caller's.
func (s *shape) match(w *wire, buffer *[maxWire]byte) bool {
	first := w.labels - s.labels
	size, from := 0, int(w.at[first]) // of the rest, and where it goes on in the name
	for i := range s.open {
		l := &s.open[i]
		start := int(w.at[first+l.at])
		end := start + 1 + int(w.bytes[start])
		if l.any {
			size += copy(buffer[size:], w.bytes[from:start])
			from = end
			continue
		}
		if l.size != w.bytes[start] {
			return false
		}
		characters := size + start + 1 - from
		size += copy(buffer[size:], w.bytes[from:end])
		from = end
		for mask := l.mask; mask != 0; mask &= mask - 1 {
			buffer[characters+bits.TrailingZeros64(mask)] = 0
		}
	}
	if size == 0 { // only the labels in front are open
		return s.rests.has(w.bytes[from:w.size])
	}
	size += copy(buffer[size:], w.bytes[from:w.size])
	return s.rests.has(buffer[:size])
}

// A builder collects patterns.
type builder struct {
	pattern
	exact, below setBuilder
	depths       [2]uint64
	shapes       map[string]*shapeBuilder
	name         []byte // of a shape; kept for its memory
}

type shapeBuilder struct {
	shape
	deep  bool
	rests setBuilder
}

func (b *builder) add(text []byte) error {
	if err := b.parse(text); err != nil {
		return err
	}
	switch {
	case b.open:
		return b.addShape()
	case b.deep:
		b.below.add(b.rest)
		depth := len(b.labels)
		b.depths[depth/64] |= 1 << (depth % 64)
	default:
		b.exact.add(b.rest)
	}
	return nil
}

func (b *builder) addShape() error {
	b.name = b.shape(b.name[:0])
	s := b.shapes[string(b.name)]
	if s == nil {
		if len(b.shapes) == maxShapes {
			return fmt.Errorf("there are %d different arrangements of * and ? already, and every query would be compared "+
				"with more: write some of the patterns with * for a whole label, or ** in front", maxShapes)
		}
		if b.shapes == nil {
			b.shapes = make(map[string]*shapeBuilder)
		}
		s = &shapeBuilder{deep: b.deep, shape: shape{labels: len(b.labels)}}
		for _, l := range b.labels {
			if !l.literal() {
				s.open = append(s.open, l)
			}
		}
		b.shapes[string(b.name)] = s
	}
	s.rests.add(b.rest)
	return nil
}

func (b *builder) list() *List {
	l := &List{depths: b.depths}
	finish := func(b *setBuilder) set {
		s, different := b.set()
		*b = setBuilder{}
		l.patterns += different
		return s
	}
	l.exact, l.below = finish(&b.exact), finish(&b.below)
	for _, s := range b.shapes {
		of := &l.fixed
		if s.deep {
			of = &l.deep
		}
		for len(*of) <= s.labels {
			*of = append(*of, nil)
		}
		s.shape.rests = finish(&s.rests)
		(*of)[s.labels] = append((*of)[s.labels], s.shape)
	}
	return l
}
