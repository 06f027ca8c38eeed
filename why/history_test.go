package why

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var start = time.Unix(1e9, 0)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// names of answers, in order.
func names(answers []Answer) string {
	var all []string
	for _, a := range answers {
		all = append(all, a.Name)
	}
	return strings.Join(all, " ")
}

func TestHistoryKeepsTheLatest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		most    int
		answers []Answer // each a second after the one before
		of      string
		want    string
	}{
		{"nothing", 4, nil, "192.0.2.1", ""},
		{"one", 4, []Answer{{Name: "a", Addr: addr("192.0.2.1")}}, "192.0.2.1", "a"},
		{"another's", 4, []Answer{{Name: "a", Addr: addr("192.0.2.1")}}, "192.0.2.2", ""},
		{"two names, the latest first", 4, []Answer{{Name: "a", Addr: addr("192.0.2.1")}, {Name: "b", Addr: addr("192.0.2.1")}}, "192.0.2.1", "b a"},
		{"again", 4, []Answer{{Name: "a", Addr: addr("192.0.2.1")}, {Name: "b", Addr: addr("192.0.2.1")}, {Name: "a", Addr: addr("192.0.2.1")}}, "192.0.2.1", "a b"},
		{"to two", 4, []Answer{{Name: "a", Addr: addr("192.0.2.1")}, {Name: "a", Addr: addr("192.0.2.1"), Scope: backend.UserScope(7)}}, "192.0.2.1", "a a"},
		{"opened and stripped", 4, []Answer{{Name: "a", Addr: addr("192.0.2.1")}, {Name: "a", Addr: addr("192.0.2.1"), Stripped: "private"}}, "192.0.2.1", "a a"},
		{"the oldest goes", 2, []Answer{{Name: "a", Addr: addr("192.0.2.1")}, {Name: "b", Addr: addr("192.0.2.2")}, {Name: "c", Addr: addr("192.0.2.1")}}, "192.0.2.1", "c"},
		{"but not what was asked again", 2, []Answer{
			{Name: "a", Addr: addr("192.0.2.1")}, {Name: "b", Addr: addr("192.0.2.2")}, {Name: "a", Addr: addr("192.0.2.1")}, {Name: "c", Addr: addr("192.0.2.3")}}, "192.0.2.1", "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHistory(tt.most)
			for i, a := range tt.answers {
				a.At = start.Add(time.Duration(i) * time.Second)
				h.Record(a)
			}
			if got := names(h.Of(addr(tt.of))); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestHistoryIsBounded(t *testing.T) {
	const most = 100
	h := NewHistory(most)
	for i := range 10 * most {
		h.Record(Answer{Name: fmt.Sprint(i), Addr: addr("192.0.2.1"), At: start.Add(time.Duration(i) * time.Second)})
	}
	if got, want := names(h.Of(addr("192.0.2.1"))), "999 998 997 996 995 994 993 992"; got != want {
		t.Errorf("of one address are kept %s, want %s", got, want)
	}
	for i := range 10 * most {
		h.Record(Answer{Name: "n", Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), At: start})
	}
	if h.Len() != most || len(h.byAddr) != most || len(h.Of(addr("192.0.2.1"))) != 0 {
		t.Errorf("%d answers of %d addresses are kept, want %d", h.Len(), len(h.byAddr), most)
	}
}

// Against a list that is searched one by one.
func TestHistoryIsAList(t *testing.T) {
	const most = 40
	h := NewHistory(most)
	var list []Answer // the latest first
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		a := Answer{
			Name: fmt.Sprint(random.IntN(4)), Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(30))}),
			Scope: backend.UserScope(random.Uint32N(3)), At: start.Add(time.Duration(i) * time.Second),
		}
		if random.IntN(4) == 0 {
			a.Stripped = "private"
		}
		h.Record(a)
		same := func(b Answer) bool {
			return b.Name == a.Name && b.Addr == a.Addr && b.Scope == a.Scope && b.Stripped == a.Stripped
		}
		of := func(b Answer) bool { return b.Addr == a.Addr }
		if at := slices.IndexFunc(list, same); at >= 0 {
			list = slices.Delete(list, at, at+1)
		} else if kept := filter(list, of); len(kept) == PerAddress {
			at := slices.Index(list, kept[PerAddress-1])
			list = slices.Delete(list, at, at+1)
		} else if len(list) == most {
			list = list[:most-1]
		}
		list = slices.Insert(list, 0, a)
		if got := h.Of(a.Addr); !slices.Equal(got, filter(list, of)) {
			t.Fatalf("after %d: %v, want %v", i, got, filter(list, of))
		}
	}
	if got := slices.Collect(h.All()); !slices.Equal(got, list) {
		t.Errorf("all are %v, want %v", got, list)
	}
}

func filter(list []Answer, keep func(Answer) bool) (kept []Answer) {
	for _, a := range list {
		if keep(a) {
			kept = append(kept, a)
		}
	}
	return kept
}

func TestNewsOnce(t *testing.T) {
	h := NewHistory(1)
	const other = 1<<15 + 7 // in the same place as 7
	for i, tt := range []struct {
		hash uint64
		news bool
	}{{7, true}, {7, false}, {8, true}, {other, true}, {7, true}, {8, false}} {
		if got := h.News(tt.hash); got != tt.news {
			t.Errorf("%d: %d is news: %v", i, tt.hash, got)
		}
	}
	h.Forget(7)
	h.Forget(8 + 1<<15) // which is not there
	if h.News(8) || !h.News(7) {
		t.Error("what is forgotten is no news, or what is not")
	}
	if n := testing.AllocsPerRun(100, func() { h.News(9) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNews(b *testing.B) {
	h := NewHistory(1)
	for i := range b.N {
		h.News(uint64(i % 1000))
	}
}

func BenchmarkRecord(b *testing.B) {
	h := NewHistory(Size)
	for i := range b.N {
		h.Record(Answer{Name: "www.example.com", Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), At: start})
	}
}
