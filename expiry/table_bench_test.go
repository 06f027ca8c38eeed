package expiry

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"
)

// benchKey is as long as backend.Key.
type benchKey [34]byte

func benchKeyOf(n int) (k benchKey) {
	binary.BigEndian.PutUint64(k[8:], uint64(n))
	return k
}

// benchAccounts are one holder's, who has each key because of another name. Numbers
// are hashes.
func benchAccounts(n int) Accounts {
	return Accounts{Holder: 1, Name: uint32(n+1) * 2654435761}
}

func benchTable(n int) (*Table[benchKey], time.Time) {
	epoch := time.Now()
	t := NewTable[benchKey](epoch)
	for i := range n {
		t.Set(benchKeyOf(i), epoch.Add(time.Hour+time.Duration(i)*time.Millisecond), benchAccounts(i))
	}
	return t, epoch
}

// What every answer asks, whatever is stored.
func BenchmarkCovers(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		t, epoch := benchTable(n)
		until := epoch.Add(time.Minute)
		b.Run(fmt.Sprintf("of=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !t.Covers(benchKeyOf(i*7919%n), until) {
					b.Fatal("not covered")
				}
			}
		})
		b.Run(fmt.Sprintf("of=%d/parallel", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if !t.Covers(benchKeyOf(i*7919%n), until) {
						b.Error("not covered")
						return
					}
				}
			})
		})
	}
}

func BenchmarkSet(b *testing.B) {
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		t, epoch := benchTable(0)
		for i := 0; b.Loop(); i++ {
			t.Set(benchKeyOf(i), epoch.Add(time.Hour), benchAccounts(i))
		}
	})
	b.Run("renew", func(b *testing.B) {
		b.ReportAllocs()
		const n = 100_000
		t, epoch := benchTable(n)
		for i := 0; b.Loop(); i++ {
			t.Set(benchKeyOf(i%n), epoch.Add(2*time.Hour), benchAccounts(i%n))
		}
	})
}

// One grant made and one run out in each step, beside many that live.
func BenchmarkDue(b *testing.B) {
	for _, n := range []int{0, 1_000_000} {
		b.Run(fmt.Sprintf("beside=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			t, now := benchTable(n)
			now = now.Add(time.Second)
			var buf []Ended[benchKey]
			ended := 0
			for i := n; b.Loop(); i++ {
				t.Set(benchKeyOf(i), now.Add(time.Second), benchAccounts(i))
				now = now.Add(time.Millisecond)
				buf = t.Due(now, 100, buf[:0])
				ended += len(buf)
			}
			b.ReportMetric(float64(ended)/float64(b.N), "ended/op")
		})
	}
}

// User-space memory a live grant, which the issue wants at 120 bytes at most.
func BenchmarkMemory(b *testing.B) {
	const n = 1_000_000
	for range b.N {
		before := heapInUse()
		t, _ := benchTable(n)
		b.ReportMetric(float64(heapInUse()-before)/n, "B/grant")
		runtime.KeepAlive(t)
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
