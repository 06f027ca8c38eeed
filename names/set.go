package names

import (
	"hash/maphash"
	"math/bits"
)

// A set knows its strings by two hashes under seeds of their own: one says in
// which line a string is, the other is what stands there for it. The string
// itself is not kept. To compare with it would be a second visit to memory that
// waits for the first, and such a visit, when no cache of the processor holds
// what is looked for, takes longer than all the rest of a look together.
//
// So a set may have a string by chance that nobody gave it: less than once in
// 2^60 looks, which take tens of thousands of years at a million a second. That
// is accepted, although a name is let through then that should not be, since
// nothing but such looks leads there. The seeds are random, new for each set and
// never leave the process, so nobody can find a name elsewhere that will do; and
// all he is told of the hashes is whether there is a match. The hash is not a
// cryptographic one, but is meant to resist those who choose what is hashed
// and do not know the seed, and it would have to fail under two at once.
type set struct {
	where, what maphash.Seed
	lines       []line
	classes     []uint64 // of each line: which of 64 classes of hashes belong there
}

// A line is one of the caches', so that a look is one visit to memory. It is
// filled from the front, and what finds it full goes to the next.
type line [8]uint64

// perLine is how many belong to a line on average. With six, 94 of 100 find room
// in it, and of a million none is more than some 30 lines away.
const perLine = 6

func (s *set) has(key []byte) bool {
	if len(s.lines) == 0 {
		return false
	}
	where := maphash.Bytes(s.where, key)
	i := s.home(where)
	// The classes are an eighth of the lines, so caches rather hold them, and answer
	// for 97 of 100 strings that are not there. For those that are, they cost little:
	// the processor does not wait for them before it asks for the line.
	a, b := classes(where)
	if s.classes[i]>>a&(s.classes[i]>>b)&1 == 0 {
		return false
	}
	mark := marked(maphash.Bytes(s.what, key))
	for {
		for _, m := range &s.lines[i] {
			if m == mark {
				return true
			}
		}
		if !s.lines[i].full() {
			return false
		}
		i = s.after(i)
	}
}

// home is the line that a hash belongs to, from its upper bits.
func (s *set) home(where uint64) uint64 {
	line, _ := bits.Mul64(where, uint64(len(s.lines)))
	return line
}

// classes are the two that a hash is of, from its lower bits.
func classes(where uint64) (a, b uint64) { return where % 64, where >> 6 % 64 }

// after is the line that takes what finds line i full.
func (s *set) after(i uint64) uint64 {
	if i++; i < uint64(len(s.lines)) {
		return i
	}
	return 0
}

func (l *line) full() bool { return l[len(l)-1] != 0 }

// marked is a hash as it stands in a line, where zero is nothing.
func marked(what uint64) uint64 { return what | 1 }

// A setBuilder takes keys in, the same ones repeatedly if need be.
type setBuilder struct {
	where, what maphash.Seed
	keys        []hashes
}

type hashes struct{ where, mark uint64 }

func (b *setBuilder) add(key []byte) {
	if b.keys == nil {
		b.where, b.what = maphash.MakeSeed(), maphash.MakeSeed()
	}
	b.keys = append(b.keys, hashes{maphash.Bytes(b.where, key), marked(maphash.Bytes(b.what, key))})
}

// set says how many different keys there are, too.
func (b *setBuilder) set() (s set, different int) {
	if len(b.keys) == 0 {
		return set{}, 0
	}
	s, different = b.fill(len(b.keys))
	if different < len(b.keys) {
		return b.fill(different)
	}
	return s, different
}

// fill makes a set with room for that many keys.
func (b *setBuilder) fill(keys int) (s set, different int) {
	n := 1 + keys/perLine // so there is always one that is not full
	s = set{where: b.where, what: b.what, lines: make([]line, n), classes: make([]uint64, n)}
	for _, k := range b.keys {
		if s.add(k) {
			different++
		}
	}
	return s, different
}

// add reports whether the key is new.
func (s *set) add(k hashes) bool {
	i := s.home(k.where)
	a, b := classes(k.where)
	s.classes[i] |= 1<<a | 1<<b
	for {
		for j, m := range &s.lines[i] {
			switch m {
			case k.mark:
				return false
			case 0:
				s.lines[i][j] = k.mark
				return true
			}
		}
		i = s.after(i)
	}
}
