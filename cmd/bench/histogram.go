package main

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// histogram counts durations with an error of 1 in 64 at most.
type histogram struct {
	count   [60 * 64]uint64
	samples uint64
}

func (h *histogram) add(nanos int64) {
	h.samples++
	h.count[bucket(uint64(max(nanos, 0)))]++
}

func bucket(v uint64) int {
	if v < 64 {
		return int(v)
	}
	shift := bits.Len64(v) - 7
	return shift*64 + int(v>>shift)
}

func bucketValue(i int) float64 {
	if i < 128 {
		return float64(i)
	}
	shift := i/64 - 1
	return (float64(i-shift*64) + 0.5) * float64(uint64(1)<<shift)
}

func (h *histogram) merge(other *histogram) {
	h.samples += other.samples
	for i, n := range other.count {
		h.count[i] += n
	}
}

// quantile returns a duration that the share q of all does not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.samples)))
	for i, n := range h.count {
		if n >= rank {
			return time.Duration(bucketValue(i))
		}
		rank -= n
	}
	return 0
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// mad is the median of the distances from the median.
func mad(v []float64) float64 {
	m := median(v)
	d := make([]float64, len(v))
	for i := range v {
		d[i] = math.Abs(v[i] - m)
	}
	return median(d)
}
