package names

import (
	"errors"
	"hash/maphash"
	"math"
	"math/bits"
)

// A set holds strings of at most 255 bytes in little more memory than their
// bytes. They lie one after the other, each behind its length, in the order of
// the bucket that their hash falls into, and an index says where each bucket
// begins. So a look costs one miss of the processor's cache in the strings and
// mostly none in the index, which is small; a Go map takes two and a half times the memory.
type set struct {
	seed   maphash.Seed // random, so that nobody can aim names at one bucket
	start  []uint32     // of each bucket in packed, and the end
	packed []byte
}

const perBucket = 2 // on average

func (s *set) has(key []byte) bool {
	if len(s.start) == 0 {
		return false
	}
	b := s.bucket(key)
	return contains(s.packed[s.start[b]:s.start[b+1]], key)
}

func (s *set) bucket(key []byte) uint64 {
	b, _ := bits.Mul64(maphash.Bytes(s.seed, key), uint64(len(s.start)-1))
	return b
}

func contains(bucket, key []byte) bool {
	for len(bucket) > 0 {
		end := 1 + int(bucket[0])
		if string(bucket[1:end]) == string(key) {
			return true
		}
		bucket = bucket[end:]
	}
	return false
}

// A setBuilder takes keys in, the same ones repeatedly if need be, in pieces so
// that nothing is copied as it grows.
type setBuilder struct {
	pieces [][]byte
	bytes  int
	keys   int
}

func (b *setBuilder) add(key []byte) {
	need := 1 + len(key)
	last := len(b.pieces) - 1
	if last < 0 || cap(b.pieces[last])-len(b.pieces[last]) < need {
		b.pieces = append(b.pieces, make([]byte, 0, max(need, min(b.bytes, 1<<20))))
		last++
	}
	b.pieces[last] = append(append(b.pieces[last], byte(len(key))), key...)
	b.bytes += need
	b.keys++
}

// set sorts the keys into their buckets, and says how many different ones there
// are. The builder is empty then.
func (b *setBuilder) set() (s set, different int, err error) {
	if b.bytes > math.MaxUint32 {
		return set{}, 0, errors.New("the patterns take more than 4 GiB")
	}
	if b.keys == 0 {
		return set{}, 0, nil
	}
	s = set{
		seed:   maphash.MakeSeed(),
		start:  make([]uint32, 1+(b.keys+perBucket-1)/perBucket),
		packed: make([]byte, b.bytes),
	}
	for _, piece := range b.pieces {
		eachKey(piece, func(key []byte) { s.start[1+s.bucket(key)] += uint32(1 + len(key)) })
	}
	for i := 1; i < len(s.start); i++ {
		s.start[i] += s.start[i-1]
	}
	end := append([]uint32(nil), s.start[:len(s.start)-1]...) // how far each bucket is filled
	for i, piece := range b.pieces {
		eachKey(piece, func(key []byte) {
			bucket := s.bucket(key)
			at := end[bucket]
			if contains(s.packed[s.start[bucket]:at], key) {
				return
			}
			different++
			s.packed[at] = byte(len(key))
			end[bucket] += 1 + uint32(copy(s.packed[at+1:], key))
		})
		b.pieces[i] = nil
	}
	*b = setBuilder{}
	s.closeGaps(end)
	return s, different, nil
}

// closeGaps takes out the room that keys given twice would have had.
func (s *set) closeGaps(end []uint32) {
	size := uint32(0)
	for b := range end {
		from := s.start[b]
		s.start[b] = size
		size += uint32(copy(s.packed[size:], s.packed[from:end[b]]))
	}
	s.start[len(end)] = size
	if int(size) < len(s.packed) {
		s.packed = append([]byte(nil), s.packed[:size]...)
	}
}

func eachKey(piece []byte, do func(key []byte)) {
	for len(piece) > 0 {
		end := 1 + int(piece[0])
		do(piece[1:end])
		piece = piece[end:]
	}
}
