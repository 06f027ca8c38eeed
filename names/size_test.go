package names

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
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
func lines(n int, pattern func(int) string) io.Reader {
	r, w := io.Pipe()
	go func() {
		var b strings.Builder
		for i := range n {
			b.WriteString(pattern(i) + "\n")
			if b.Len() > 1<<16 || i == n-1 {
				io.WriteString(w, b.String())
				b.Reset()
			}
		}
		w.Close()
	}()
	return r
}

func many(t testing.TB, n int, pattern func(int) string) *List {
	t.Helper()
	l, err := Read(lines(n, pattern))
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != n {
		t.Fatalf("Len is %d, want %d", l.Len(), n)
	}
	return l
}

func heap() int {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

func TestMillion(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	for _, prefix := range []string{"", "h?."} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			empty := heap()
			l := many(t, million, before(prefix))
			if held := heap() - empty; held > 100_000_000 {
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
	empty := heap()
	l, err := Read(r)
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 2 || !l.Match("example.org.") || !l.Match("a.example.org.") || l.Match("org.") {
		t.Errorf("Len is %d", l.Len())
	}
	if held := heap() - empty; held > 10_000_000 {
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

// Names of three and four labels, and patterns of which a quarter each is a name,
// and the three ways to leave something open in front of one.
func mixedPattern(i int) string { return []string{"", "*.", "**.", "ww?."}[i%4] + mixedName(i) }
func mixedAsked(i int) string   { return []string{"", "www.", "www.", "www."}[i%4] + mixedName(i) }
func mixedName(i int) string {
	return "host" + strconv.Itoa(i) + ".example" + strconv.Itoa(i%97) + ".org"
}

func before(front string) func(int) string {
	return func(i int) string { return front + nth(i) }
}

// Hot is a list of a million of which the same few names are asked for, one is
// a list of which any are, and uncached is what a server sees whose caches are
// full of other work: every lookup is in the next of several lists, which are
// many times the size of the caches together. The names that are asked for come
// in the order of their text, as those of a server have just been read.
func BenchmarkMatch(b *testing.B) {
	for _, bench := range []struct {
		name           string
		pattern, asked func(int) string
	}{
		{"exact", nth, nth},
		{"below", before("**."), before("www.")},
		{"label", before("*."), before("www.")},
		{"character", before("ww?."), before("www.")},
		{"mixed", mixedPattern, mixedAsked},
	} {
		lists := make([]*List, 8)
		for i := range lists {
			lists[i] = many(b, million, bench.pattern)
		}
		for _, caches := range []struct {
			name         string
			lists, names int
		}{{"hot", 1, 64}, {"one", 1, 1 << 20}, {"uncached", len(lists), 1 << 20}} {
			for _, want := range []bool{true, false} {
				name, from := "hit", 0
				if !want {
					name, from = "miss", million
				}
				var text strings.Builder
				for range caches.names {
					text.WriteString(bench.asked(from+rand.IntN(million)) + ".\n")
				}
				asked := strings.Split(strings.TrimSpace(text.String()), "\n")
				b.Run(bench.name+"/"+caches.name+"/"+name, func(b *testing.B) {
					matchAll(b, lists[:caches.lists], asked, want)
				})
			}
		}
	}
}

func matchAll(b *testing.B, lists []*List, names []string, want bool) {
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if lists[i%len(lists)].Match(names[i]) != want {
			b.Fatalf("%s: %v", names[i], !want)
		}
		if i++; i == len(names) {
			i = 0
		}
	}
}

// The most that a list and a name can make a lookup cost.
func BenchmarkHostile(b *testing.B) {
	deepest := strings.Repeat("a.", 127)
	var depths, shapes []string
	for i := range 125 {
		depths = append(depths, "**.b."+deepest[:2*i])
	}
	for i := range maxShapes {
		shapes = append(shapes, strings.NewReplacer("0", "?", "1", "b").Replace(fmt.Sprintf("%012b", i))+".a.c")
	}
	for _, bench := range []struct {
		name     string
		patterns []string
		asked    string
	}{{"depths", depths, deepest}, {"shapes", shapes, "bbbbbbbbbbbb.a.b."}} {
		b.Run(bench.name, func(b *testing.B) {
			l, err := Parse(bench.patterns...)
			if err != nil {
				b.Fatal(err)
			}
			matchAll(b, []*List{l}, []string{bench.asked}, false)
		})
	}
}

func BenchmarkRead(b *testing.B) {
	text, err := io.ReadAll(lines(million, nth))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(bytes.NewReader(text)); err != nil {
			b.Fatal(err)
		}
	}
}
