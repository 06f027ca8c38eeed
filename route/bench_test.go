package route

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// filled is a book in which so many names have so many addresses each.
func filled(b *testing.B, names, slots int) *Book {
	path := filepath.Join(b.TempDir(), "book")
	var book *Book
	for range 2 {
		var err error
		if book, err = Open(path, newRouter(), time.Now); err != nil {
			b.Fatal(err)
		}
		if names == 0 {
			break
		}
		if ipv4, _ := book.Len(); ipv4.Mapped == 0 {
			refill(b, book, names, slots)
			book.Close()
		}
	}
	b.Cleanup(func() { book.Close() })
	return book
}

// An answer as the one before: nothing is written, nobody is asked.
func BenchmarkUnchanged(b *testing.B) {
	r := routed("a1b2c3d4e5", 4, "100.96.0.0/11")
	for _, names := range []int{1, 125_000} {
		book := filled(b, names, 4)
		asked := make([]string, 1<<14)
		reals := make([][]netip.Addr, len(asked))
		for i := range asked {
			n := rand.IntN(names)
			asked[i], reals[i] = nameOf(n), realsOf(n, 4)
		}
		assign := func(i int) {
			i %= len(asked)
			if _, err := book.Assign(context.Background(), r, asked[i], "", 0, reals[i], time.Minute); err != nil {
				b.Error(err)
			}
		}
		for i := range asked {
			assign(i)
		}
		b.Run(fmt.Sprintf("names=%d", names), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				assign(i)
			}
		})
		b.Run(fmt.Sprintf("names=%d/parallel", names), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(len(asked)); pb.Next(); i++ {
					assign(i)
				}
			})
		})
	}
}

// A name that leads elsewhere: the kernel is asked (here, a map in memory).
func BenchmarkRepointed(b *testing.B) {
	book := filled(b, 0, 0)
	r := routed("a1b2c3d4e5", 4, "100.96.0.0/11")
	reals := [2][]netip.Addr{realsOf(0, 2), realsOf(1, 2)}
	b.ReportAllocs()
	for i := range b.N {
		if _, err := book.Assign(context.Background(), r, "a.org.", "", 0, reals[i%2], time.Minute); err != nil {
			b.Fatal(err)
		}
	}
}

// A new name waits for the disk, alone and with 63 others.
func BenchmarkNewName(b *testing.B) {
	r := routed("a1b2c3d4e5", 4, "fd00::/64")
	reals := addrs("2001:db8::1 2001:db8::2")
	for _, askers := range []int{1, 64} {
		b.Run(fmt.Sprintf("askers=%d", askers), func(b *testing.B) {
			book := filled(b, 0, 0)
			var n atomic.Int64
			b.SetParallelism(askers)
			b.ResetTimer()
			assign := func() {
				if _, err := book.Assign(context.Background(), r, nameOf(int(n.Add(1))), "", 0, reals, time.Minute); err != nil {
					b.Error(err)
				}
			}
			if askers == 1 {
				for range b.N {
					assign()
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					assign()
				}
			})
		})
	}
}

func BenchmarkNameOf(b *testing.B) {
	book := filled(b, 125_000, 4)
	asked := make([]netip.Addr, 1<<14)
	for i := range asked {
		asked[i] = netip.AddrFrom4([4]byte{100, 96, byte(rand.IntN(1000)), byte(rand.IntN(256))})
	}
	for i := 0; b.Loop(); i++ {
		book.NameOf(asked[i%len(asked)])
	}
}
