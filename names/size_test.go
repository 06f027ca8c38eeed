package names

import (
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
)

const million = 1_000_000

// nth is a name of about 35 bytes, as in the lists that people use.
func nth(i int) string {
	return "host" + strconv.Itoa(i) + ".customer" + strconv.Itoa(i%9973) + ".example" + strconv.Itoa(i%97) + ".org"
}

// lines is the text of many names, made as it is read.
func lines(n int, prefix string) io.Reader {
	r, w := io.Pipe()
	go func() {
		var b strings.Builder
		for i := range n {
			b.WriteString(prefix + nth(i) + "\n")
			if b.Len() > 1<<16 || i == n-1 {
				io.WriteString(w, b.String())
				b.Reset()
			}
		}
		w.Close()
	}()
	return r
}

func many(t testing.TB, n int, prefix string) *List {
	t.Helper()
	l, err := Read(lines(n, prefix))
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != n {
		t.Fatalf("Len is %d, want %d", l.Len(), n)
	}
	return l
}

func heap() uint64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func TestMillion(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	for _, prefix := range []string{"", "h?."} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			before := heap()
			l := many(t, million, prefix)
			if held := heap() - before; held > 100_000_000 {
				t.Errorf("%d bytes are held, at most 100 MB may be", held)
			} else {
				t.Logf("%.1f MB", float64(held)/1e6)
			}
			front := strings.ReplaceAll(prefix, "?", "x")
			for i := 0; i < million; i += 97 {
				if name := front + nth(i) + "."; !l.Match(name) {
					t.Fatalf("%s does not match", name)
				}
				if name := front + nth(million+i) + "."; l.Match(name) {
					t.Fatalf("%s matches", name)
				}
			}
		})
	}
}

// The same name a million times is one name, and not one long bucket.
func TestMillionTimesTheSame(t *testing.T) {
	r := io.LimitReader(repeat("EXAMPLE.org\n**.example.org\n"), 27*million)
	before := heap()
	l, err := Read(r)
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 2 || !l.Match("example.org.") || !l.Match("a.example.org.") || l.Match("org.") {
		t.Errorf("Len is %d", l.Len())
	}
	if held := heap() - before; held > 10_000_000 {
		t.Errorf("%d bytes are held", held)
	}
	runtime.KeepAlive(l)
}

type repeat string

func (s repeat) Read(p []byte) (int, error) {
	n := 0
	for len(p)-n >= len(s) {
		n += copy(p[n:], s)
	}
	return n, nil
}

func BenchmarkMatch(b *testing.B) {
	const queries = 1 << 18 // more than caches hold of the list, and they come in order as to be in the cache themselves
	names := func(front string, from int) []string {
		var text strings.Builder
		for i := range queries {
			text.WriteString(front + nth(from+i*7919%million) + ".\n")
		}
		return strings.Split(strings.TrimSpace(text.String()), "\n")
	}
	deepest := strings.Repeat("a.", 127)
	hostile := make([]string, 127)
	for i := range hostile {
		hostile[i] = "**.b." + deepest[:2*i]
	}
	var wild []string
	for i := range maxShapes {
		wild = append(wild, strings.NewReplacer("0", "?", "1", "b").Replace(fmt.Sprintf("%012b", i))+".a.c")
	}
	deep, err := Parse(hostile[:125]...)
	if err != nil {
		b.Fatal(err)
	}
	shapes, err := Parse(wild...)
	if err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name  string
		list  func() *List
		asked []string
		want  bool
	}{
		{"exact/hot", func() *List { return many(b, million, "") }, names("", 0)[:64], true},
		{"exact/hit", func() *List { return many(b, million, "") }, names("", 0), true},
		{"exact/miss", func() *List { return many(b, million, "") }, names("", million), false},
		{"below/hit", func() *List { return many(b, million, "**.") }, names("www.", 0), true},
		{"below/miss", func() *List { return many(b, million, "**.") }, names("www.", million), false},
		{"label/hit", func() *List { return many(b, million, "*.") }, names("www.", 0), true},
		{"label/miss", func() *List { return many(b, million, "*.") }, names("www.", million), false},
		{"character/hit", func() *List { return many(b, million, "ww?.") }, names("www.", 0), true},
		{"character/miss", func() *List { return many(b, million, "ww?.") }, names("www.", million), false},
		{"hostile/depths", func() *List { return deep }, []string{deepest}, false},
		{"hostile/shapes", func() *List { return shapes }, []string{"bbbbbbbbbbbb.a.b."}, false},
	} {
		b.Run(bench.name, func(b *testing.B) {
			l := bench.list()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if l.Match(bench.asked[i]) != bench.want {
					b.Fatalf("%s: %v", bench.asked[i], !bench.want)
				}
				if i++; i == len(bench.asked) {
					i = 0
				}
			}
		})
	}
}
