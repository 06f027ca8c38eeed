package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// TestSize500k: half a million mapped addresses, of as many names at worst, fit into memory
// and file.
func TestSize500k(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("it takes some seconds")
	}
	for _, tt := range []struct {
		name         string
		names, slots int
		memory, file uint64 // MB at most
	}{
		{"4 a name", 125_000, 4, 70, 100},
		{"1 a name", 500_000, 1, 140, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			refill(t, d.Book, tt.names, tt.slots)
			d.Book.Close()
			d.Book, d.router = nil, newRouter()
			before := heap()
			began := time.Now()
			d.open()
			took := time.Since(began)
			memory := heap() - before
			info, err := os.Stat(d.path)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d MB of memory, %d MB of file, opened in %v", memory>>20, info.Size()>>20, took.Round(time.Millisecond))
			if memory>>20 > tt.memory {
				t.Errorf("%d MB of memory, want %d at most", memory>>20, tt.memory)
			}
			if uint64(info.Size())>>20 > tt.file {
				t.Errorf("%d MB of file, want %d at most", info.Size()>>20, tt.file)
			}
			if ipv4, _ := d.Len(); ipv4.Mapped != 500_000 {
				t.Errorf("%v addresses", ipv4)
			}
			if name, _ := d.NameOf(netip.MustParseAddr("100.96.0.1")); name == "" {
				t.Error("the first address is nobody's")
			}
			runtime.KeepAlive(d.Book)
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// refill gives names their addresses, as if they had been asked for.
func refill(t testing.TB, b *Book, names, slots int) {
	t.Helper()
	a := netip.MustParseAddr("100.96.0.0")
	err := b.store.do(context.Background(), func(tx *bolt.Tx) error {
		for i := range names {
			for k, real := range realsOf(i, slots) {
				for a = a.Next(); contains(reserved, a); {
					a = a.Next()
				}
				err := putOwned(tx, 0, a.As16(), uint16(k+1), "a1b2c3d4e5\x00"+nameOf(i))
				if err := errors.Join(err, putUse(tx, 0, a.As16(), b.now(), real.As16(), "")); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func nameOf(i int) string { return fmt.Sprintf("host-%d.of.some.example.org.", i) }

func realsOf(i, n int) []netip.Addr {
	var reals []netip.Addr
	for k := range n {
		reals = append(reals, netip.AddrFrom4([4]byte{198, 51, byte(i), byte(k)}))
	}
	return reals
}

// Whatever is asked, the book keeps no more than there are names with addresses.
func TestNothingGrows(t *testing.T) {
	d := newDesk(t)
	r := routed("r", 4, "10.0.0.0/26", "fd00::/64")
	r.Slots = 4
	for i := range 1000 { // one name, many addresses
		d.ask(r, "rotates.org", fmt.Sprintf("192.0.2.%d 198.51.100.%d", i%256, i%253))
	}
	d.want(d.kernel(), "10.0.0.1>192.0.2.231 10.0.0.2>198.51.100.240")
	for i := range 1000 { // many names, few addresses
		d.ask(r, fmt.Sprint(i), "192.0.2.1")
	}
	d.sound()
	ended, end := context.WithCancel(context.Background())
	end()
	release := d.blockDisk()
	for i := range 3 * mostJobs { // nobody waits
		d.Assign(ended, r, fmt.Sprint("gone", i), "", 0, addrs("2001:db8::1"), time.Minute)
	}
	d.waiting(mostJobs)
	release()
	d.waiting(0)
	d.flush()
	entries := 0
	for i := range d.shards {
		entries += len(d.shards[i].entries)
	}
	if entries != 61+mostJobs {
		t.Errorf("%d entries", entries)
	}
	d.sound()
}

// Close ends what Open has begun, however it ends.
func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	d := newDesk(t)
	r := routed("r", 4, "10.0.0.0/8")
	d.wait = time.Nanosecond
	for i := range 100 {
		d.ask(r, fmt.Sprint(i), four)
	}
	for range 2 {
		if err := d.Book.Close(); err != nil {
			t.Error(err)
		}
	}
	d.wait = time.Minute
	d.want(d.ask(r, "new.org", four), ErrClosed.Error())
	if _, err := d.Tidy(context.Background(), long); err != nil && err != ErrClosed {
		t.Error(err)
	}
	if _, err := Open(os.DevNull, d.router, time.Now); err == nil {
		t.Error("that is a book")
	}
	for range 20_000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Errorf("%d goroutines, there were %d:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
}
