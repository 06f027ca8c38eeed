package names

import (
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	// Three of 63, one of 61 and their lengths, and the root: 255 bytes.
	name255 := strings.Repeat(label63+".", 3) + label63[:61] + "."
	deepest := strings.Repeat("a.", 127)

	for _, test := range []struct {
		name     string
		pattern  string
		matches  []string
		unlikely []string
	}{
		{"a plain name matches itself only", "example.org",
			[]string{"example.org.", "example.org"},
			[]string{"a.example.org.", "org.", "xexample.org.", "example.orgx.", "example.or.", ".", "example.", "example.org.org."}},
		{"the final dot may be left out or not", "example.org.",
			[]string{"example.org.", "example.org"}, []string{"a.example.org."}},
		{"the case of ASCII letters is nothing", "ExAmple.oRG",
			[]string{"example.org.", "EXAMPLE.ORG.", "eXaMpLe.OrG."}, nil},
		{"also where they are escaped", `\069x\097mple.org`,
			[]string{"example.org.", `\101XA\077PLE.o\rg.`}, nil},
		{"the case of other bytes counts", `a\195\164.org`,
			[]string{`A\195\164.org.`, "a\xc3\xa4.org."}, []string{`a\195\132.org.`, `a\227\164.org.`}},
		{"characters around the letters are not folded", `a\[\@\{\096`,
			[]string{`a[@{\096.`}, []string{`a{@{\096.`, "a[`{\\096.", `a[@[\096.`, `a[@{@.`}},
		{"an open label is just one", "*.example.org",
			[]string{"a.example.org.", "*.example.org.", `\000.example.org.`, `\..example.org.`, label63 + ".example.org."},
			[]string{"example.org.", "a.b.example.org.", "a.example.com.", "a.xexample.org.", "."}},
		{"an open label in the middle", "a.*.example.org",
			[]string{"a.b.example.org.", "A.*.example.org."},
			[]string{"a.example.org.", "b.b.example.org.", "a.b.c.example.org.", `a\.b.example.org.`, `a\.b.c.example.org.`}},
		{"an open label at the end", "example.*", []string{"example.org.", "example.com"}, []string{"example.", "a.example.org."}},
		{"open labels only", "*.*", []string{"example.org."}, []string{"org.", "a.example.org.", "."}},
		{"one open label", "*", []string{"org.", `a\.b.`}, []string{".", "a.b."}},
		{"any depth, with the apex", "**.example.org",
			[]string{"example.org.", "a.example.org.", "a.b.example.org.", `evil\.x.example.org.`},
			[]string{"org.", "xexample.org.", "example.com.", "example.org.com.", "."}},
		{"any depth of the root", "**", []string{".", "org.", "a.b.c.", deepest, name255}, nil},
		{"any depth and an open label", "**.*.org",
			[]string{"example.org.", "a.b.org.", "a.b.c.org."}, []string{"org.", "org.com.", "."}},
		{"an open character is one, and one only", "ns?.example.org",
			[]string{"ns1.example.org.", "NSx.example.org.", `ns\..example.org.`, `ns\255.example.org.`, `ns\000.example.org.`, `ns?.example.org.`},
			[]string{"ns.example.org.", "ns10.example.org.", "n1.example.org.", "ns1.a.example.org.", "mx1.example.org.", ".", `ns\.a.example.org.`}},
		{"open characters in many places", "?a?.b?.org",
			[]string{"xay.bz.org."}, []string{"xby.bz.org.", "xay.cz.org.", "xay.b.org.", "a.b.org."}},
		{"an open character alone", "?.org", []string{"a.org."}, []string{"ab.org.", "org."}},
		{"an open character, an open label, any depth", "**.a?.*.org",
			[]string{"ab.c.org.", "x.y.ab.c.org."}, []string{"ab.org.", "a.c.org.", "b.c.org.", "ab.c.com."}},
		{"a whole label of open characters", strings.Repeat("?", 63), []string{label63 + "."}, []string{label63[1:] + "."}},
		{"the root", ".", []string{"."}, []string{"org.", `\..`, `\000.`}},
		{"an escaped asterisk", `\*.example.org`, []string{"*.example.org.", `\042.example.org.`}, []string{"a.example.org."}},
		{"an escaped question mark", `ns\?.example.org`, []string{"ns?.example.org.", `ns\063.example.org.`}, []string{"ns1.example.org."}},
		{"an escaped dot in a pattern", `a\.b.org`, []string{`a\.b.org.`, `A\046B.org.`}, []string{"a.b.org.", `a.b\.org.`, "axb.org."}},
		{"an escaped backslash in a pattern", `a\\.org`, []string{`a\\.org.`, `a\092.org.`}, []string{`a\.org.`, "a.org."}},
		{"a space", `a\032b.org`, []string{`a\032b.org.`, `a\ b.org.`}, []string{"ab.org."}},
		{"what few names have has to be escaped", `a\@b.org`, []string{`a\@b.org.`, "a@b.org."}, nil},
		{"underscores and slashes need not be", "_443._tcp.0/25.example.org", []string{"_443._TCP.0/25.example.org."}, nil},
		{"an escaped dot is no separator", "evil.example.org",
			[]string{"evil.example.org."}, []string{`evil\.example.org.`, `evil.example\.org.`, `evil\046example.org.`, `evil\.example\.org.`}},
		{"an escaped dot makes no subdomain", "**.example.org",
			[]string{`evil\..example.org.`}, []string{`evil\.example.org.`, `a.evil\046example.org.`, `a.example\.org.`}},
		{"an escaped dot makes no label of its own", "*.example.org", nil, []string{`evil\.example.org.`, `a.b\.example.org.`}},
		{"an escaped backslash ends before the dot", `**.example.org`,
			[]string{`evil\\.example.org.`}, []string{`evil\\\.example.org.`}},
		{"bytes that look like a label's length", `**.b.org`, nil, []string{`a\001b.org.`, `a\001b\003org.`, `\001a\001b.org.`}},
		{"what stands for openness inside", `*.b`, nil, []string{`a\000.c.b.`, `\000.\000.b.`}},
		{"the longest", name255, []string{name255}, []string{"a" + name255[1:len(name255)-2] + "b."}},
		{"the deepest", deepest, []string{deepest}, []string{deepest[2:]}},
		{"the deepest with open labels", strings.Repeat("*.", 127), []string{deepest}, []string{deepest[2:]}},
		{"what is no name matches nothing", "**", nil,
			[]string{"", "..", "a..b.", ".a.", "a..", `a\`, `a\1.`, `a\12.`, `a\1x2.`, `a\256.`, `a\999.`,
				label63 + "a.", name255[:len(name255)-1] + "a.", "a" + name255, "a." + name255, deepest + "a.", strings.Repeat("a.", 1000)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := Parse(test.pattern)
			if err != nil {
				t.Fatal(err)
			}
			if l.Len() != 1 {
				t.Errorf("Len is %d", l.Len())
			}
			for _, name := range test.matches {
				if !l.Match(name) {
					t.Errorf("%s does not match %s", test.pattern, name)
				}
			}
			for _, name := range test.unlikely {
				if l.Match(name) {
					t.Errorf("%s matches %s", test.pattern, name)
				}
			}
		})
	}
}

func TestMany(t *testing.T) {
	l, err := Parse("a.org", "**.b.org", "*.c.org", "d?.org", "**.e?.*.org", "A.ORG.", `\097.org`, "**.B.org", "*.c.org", "dd.org")
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 6 {
		t.Errorf("Len is %d, want 6 different ones", l.Len())
	}
	for name, want := range map[string]bool{
		"a.org.": true, "b.org.": true, "x.b.org.": true, "x.c.org.": true, "d1.org.": true, "dd.org.": true, "x.ee.f.org.": true,
		"c.org.": false, "d.org.": false, "x.a.org.": false, "org.": false, ".": false, "e.f.org.": false,
	} {
		if got := l.Match(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestNothing(t *testing.T) {
	empty, err := Parse()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*List{nil, empty, {}} {
		if l.Len() != 0 || l.Match("example.org.") || l.Match(".") || l.Match("") {
			t.Errorf("%v is not empty", l)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	l, err := Parse("example.org", "**.example.com", "*.c.*.org", "**.d?.org", "e?.org")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"example.org.", "WWW.example.com.", "a.c.b.org.", "x.dd.org.", `e\046.org.`, "miss.d.e.org.", ".", "..", strings.Repeat("a.", 127)} {
		if n := testing.AllocsPerRun(100, func() { l.Match(name) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
