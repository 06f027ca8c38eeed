package names

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// Small ones, so that lines are full and the last goes on at the first; given
// more than once or not.
func TestSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	key := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for range 10_000 {
		var b setBuilder
		want := make(map[uint32]bool)
		for range r.IntN(60) {
			n := r.Uint32N(100)
			want[n] = true
			b.add(key(n))
		}
		s, different := b.set()
		if different != len(want) {
			t.Fatalf("%d are different, want %d", different, len(want))
		}
		for n := range uint32(200) {
			if s.has(key(n)) != want[n] {
				t.Fatalf("%d among %v: %v", n, want, !want[n])
			}
		}
	}
}

// However the hashes fall, some line is not full, so that a look ends.
func TestSetFull(t *testing.T) {
	for keys := 1; keys < 200; keys++ {
		var b setBuilder
		for i := range keys {
			b.add([]byte{byte(i)})
		}
		for i := range b.keys {
			b.keys[i].where = 0 // all belong to the first
		}
		s, _ := b.set()
		last := uint64(len(s.lines) - 1)
		if s.lines[last].full() {
			t.Fatalf("%d keys fill all lines", keys)
		}
		for _, k := range b.keys {
			if s.add(k) {
				t.Fatalf("with %d, one is not found again", keys)
			}
		}
	}
}
