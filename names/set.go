package names

import (
	"errors"
	"hash/maphash"
	"math"
	"math/bits"
)

// A set holds strings of at most 255 bytes in little more memory than their
// bytes: a Go map takes more than twice as much. They lie one after the other,
// each behind its length, in the order of the bucket that their hash falls into.
// An index says where each bucket begins, and which of 32 classes of hashes are
// in it. So the index, which is small enough for the processor's caches, answers
// for nearly all strings that are not there; another costs one visit to memory.
type set struct {
	seed   maphash.Seed // random, so that nobody can aim names at one bucket
	index  []entry      // one a bucket, and one for the end
	packed []byte
}

// An entry has a bucket's start in its lower half, and bit n of the upper half
// is set if the bucket has a hash of class n.
type entry uint64

const perBucket = 2 // on average

func (s *set) has(key []byte) bool {
	if len(s.index) == 0 {
		return false
	}
	bucket, class := s.place(key)
	e := s.index[bucket]
	return e&class != 0 && contains(s.packed[uint32(e):uint32(s.index[bucket+1])], key)
}

// place says where a key belongs: the bucket is from the upper bits of its hash,
// the class from the lower ones.
func (s *set) place(key []byte) (bucket uint64, class entry) {
	hash := maphash.Bytes(s.seed, key)
	bucket, _ = bits.Mul64(hash, uint64(len(s.index)-1))
	return bucket, 1 << (32 + hash%32)
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
		index:  make([]entry, 1+(b.keys+perBucket-1)/perBucket),
		packed: make([]byte, b.bytes),
	}
	start := make([]uint32, len(s.index)) // of each bucket, with room for all its keys
	for _, piece := range b.pieces {
		eachKey(piece, func(key []byte) {
			bucket, _ := s.place(key)
			start[1+bucket] += uint32(1 + len(key))
		})
	}
	for i := 1; i < len(start); i++ {
		start[i] += start[i-1]
	}
	end := append([]uint32(nil), start[:len(start)-1]...) // how far each is filled
	for i, piece := range b.pieces {
		eachKey(piece, func(key []byte) {
			bucket, class := s.place(key)
			at := end[bucket]
			if contains(s.packed[start[bucket]:at], key) {
				return
			}
			different++
			s.index[bucket] |= class
			s.packed[at] = byte(len(key))
			end[bucket] += 1 + uint32(copy(s.packed[at+1:], key))
		})
		b.pieces[i] = nil
	}
	*b = setBuilder{}
	s.closeGaps(start, end)
	return s, different, nil
}

// closeGaps takes out the room that keys given twice would have had.
func (s *set) closeGaps(start, end []uint32) {
	size := uint32(0)
	for b := range end {
		s.index[b] |= entry(size)
		size += uint32(copy(s.packed[size:], s.packed[start[b]:end[b]]))
	}
	s.index[len(end)] = entry(size)
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
