package nft

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// benchObserver adds up what transactions did.
type benchObserver struct {
	backendtest.Quiet
	transactions, changes, took atomic.Int64
}

func (o *benchObserver) Committed(made, renewed, removed int, took time.Duration) {
	o.transactions.Add(1)
	o.changes.Add(int64(made + renewed + removed))
	o.took.Add(int64(took))
}

func benchBackend(b *testing.B, table string, events backend.Observer) *Backend {
	n := New(expiry.NewTable[backend.Key](time.Now()), events)
	b.Cleanup(func() {
		if err := n.Close(backend.Remove); err != nil {
			b.Error(err)
		}
	})
	if err := n.Open(benchRules(table)); err != nil {
		b.Fatal(err)
	}
	return n
}

func benchRules(table string) backend.Rules {
	return backend.Rules{Table: table, Gateway: true, GatewayHolders: []backend.Holder{backend.Everyone, backend.Client}, MaxGrants: 1 << 24, MaxGrantsClient: 1000, MaxGrantsName: 100}
}

var benchNumber atomic.Uint32

func benchAddr() netip.Addr {
	n := benchNumber.Add(1)
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// What one answer waits for, alone and in company.
func BenchmarkGrant(b *testing.B) { benchGrant(b, backend.Scope{}) }

// The same for a client that has as many as it may, and loses one for each.
func BenchmarkGrantAtTheLimit(b *testing.B) {
	benchGrant(b, backend.ClientScope(netip.MustParseAddr("192.168.0.2")))
}

func benchGrant(b *testing.B, scope backend.Scope) {
	for _, waiters := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("waiters=%d", waiters), func(b *testing.B) {
			events := &benchObserver{}
			n := benchBackend(b, fmt.Sprintf("bench%d", waiters), events)
			b.ReportAllocs()
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range waiters {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						addr := benchAddr()
						g := []backend.Grant{{Scope: scope, Addr: addr, Until: time.Now().Add(5 * time.Minute), Name: uint64(binary.BigEndian.Uint32(addr.AsSlice()))}}
						if err := n.Grant(context.Background(), g, time.Minute); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(events.took.Load())/float64(events.changes.Load()), "kernel-ns/grant")
			b.ReportMetric(float64(events.changes.Load())/float64(events.transactions.Load()), "grants/transaction")
		})
	}
}

// The kernel's part with our encoder: what the waiting is for.
func BenchmarkTransaction(b *testing.B) {
	// The backend itself must not stand by and find that somebody changes its table.
	if err := benchBackend(b, "bench", &benchObserver{}).Close(backend.Keep); err != nil {
		b.Fatal(err)
	}
	s, err := openSocket()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.close)
	set := newGrantSets(benchRules("bench"))[0]
	for _, size := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("elements=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			var batch batch
			elements := make([]element, size)
			for b.Loop() {
				for i := range elements {
					elements[i] = element{key: backend.KeyOf(benchAddr()), left: 20 * time.Second}
				}
				batch.begin(0)
				batch.addElements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "bench", set, elements)
				if err := s.transact(&batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/element")
		})
	}
}

// Our own part of a transaction, for holders whose keys are made of more and more.
func BenchmarkEncode(b *testing.B) {
	rules := backendtest.ScopedRules()
	sets := newGrantSets(rules)
	for name, scope := range map[string]backend.Scope{
		"everyone": {}, "client": backend.ClientScope(netip.MustParseAddr("192.0.2.1")), "link": backend.LinkScope(7, [6]byte{2}),
		"unit": backend.UnitScope(1 << 40), "class": {Class: 1},
	} {
		for _, size := range []int{1, 100} {
			b.Run(fmt.Sprintf("holder=%s/elements=%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				var batch batch
				var p plan
				var keys []backend.Key
				for range size {
					keys = append(keys, scope.Key(benchAddr()))
				}
				for b.Loop() {
					p.reset()
					for _, k := range keys {
						p.want(k, expiry.Accounts{}, time.Minute, false)
					}
					p.sort()
					batch.begin(0)
					for _, set := range p.touched {
						batch.addElements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "bench", sets[set], p.changes[set].additions)
					}
					batch.finish(1)
				}
			})
		}
	}
}
