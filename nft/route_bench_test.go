package nft

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

func routedBenchRules(table string) backend.Rules {
	r := benchRules(table)
	r.Book = "bench"
	r.Routes = []backend.Route{
		{Name: "plain", Pools: poolsOfTests},
		{Name: "bound", Pools: poolsOfTests, Out: "tun0", Mark: 7},
	}
	return r
}

// What the first answer of a routed name waits for, beside one that is not routed.
func BenchmarkMap(b *testing.B) {
	for _, tt := range []struct {
		name  string
		route string
		grant bool
	}{{"grant", "", true}, {"map", "plain", false}, {"map+grant", "plain", true}, {"bound+grant", "bound", true}} {
		b.Run(tt.name, func(b *testing.B) {
			n := benchBackend(b, "benchmap", &benchObserver{})
			if err := n.Open(routedBenchRules("benchmap")); err != nil {
				b.Fatal(err)
			}
			var number atomic.Uint32
			b.ReportAllocs()
			for b.Loop() {
				k := number.Add(1)
				mapped := netip.AddrFrom4([4]byte{100, 96 | byte(k>>16)&31, byte(k >> 8), byte(k)})
				if tt.route != "" {
					m := []backend.Mapping{{Route: tt.route, Mapped: mapped, Real: benchAddr()}}
					if err := n.Map(context.Background(), m, time.Minute); err != nil {
						b.Fatal(err)
					}
				}
				if tt.grant {
					g := []backend.Grant{{Addr: mapped, Until: time.Now().Add(5 * time.Minute)}}
					if err := n.Grant(context.Background(), g, time.Minute); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// Half a million mapped addresses: how long they take, for the process and the next one, and
// what they need.
func TestManyMappings(t *testing.T) {
	if testing.Short() || os.Getenv("NFT_MANY") == "" {
		t.Skip("set NFT_MANY=1 for half a million mappings")
	}
	const many, chunk = 500_000, 1000
	rules := routedBenchRules("benchmany")
	rules.MaxMappings = many
	b := New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{})
	defer func() { _ = b.Close(backend.Remove) }()
	if err := b.Open(rules); err != nil {
		t.Fatal(err)
	}
	before, heap := slab(t), heapInUse()
	all := backendtest.Mappings("plain", 0, many, 0)
	mapAll := func(what string) {
		t.Helper()
		start := time.Now()
		for i := 0; i < many; i += chunk {
			if err := b.Map(t.Context(), all[i:i+chunk], time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %v", what, time.Since(start))
	}
	mapAll("half a million mappings")
	t.Logf("kernel: %d MB; process: %d MB", (slab(t)-before)>>20, (heapInUse()-heap)>>20)
	mapAll("again")
	start := time.Now()
	if err := b.Open(rules); err != nil {
		t.Fatal(err)
	}
	t.Logf("a reload: %v", time.Since(start))
	if err := b.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	b = New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{})
	start = time.Now()
	if err := b.Open(rules); err != nil {
		t.Fatal(err)
	}
	t.Logf("a start that finds them: %v", time.Since(start))
	mapAll("all of them, by the next process")
	start = time.Now()
	if err := b.Connections(t.Context(), func(netip.Addr, netip.Addr) bool { return false }); err != nil {
		t.Fatal(err)
	}
	t.Logf("connections: %v", time.Since(start))
	start = time.Now()
	var mapped []netip.Addr
	for _, m := range all {
		mapped = append(mapped, m.Mapped)
	}
	for i := 0; i < many; i += chunk {
		if err := b.Unmap(t.Context(), mapped[i:i+chunk]); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("unmapped: %v", time.Since(start))
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// slab is the kernel's memory for objects and tables, as far as /proc/meminfo tells.
func slab(t *testing.T) (bytes int64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kB int64
		if name, rest, _ := strings.Cut(s.Text(), ":"); name == "SUnreclaim" || name == "VmallocUsed" {
			if _, err := fmt.Sscan(rest, &kB); err != nil {
				t.Fatal(err)
			}
			bytes += kB << 10
		}
	}
	return bytes
}
