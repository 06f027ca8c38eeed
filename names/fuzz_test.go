package names

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// What patterns mean, said a second time and slowly: every pattern is compared
// with every name, label by label, and nothing is hashed.

const open = -1 // a character that is left open

var (
	// Of text whose bytes have become runes.
	inName    = regexp.MustCompile(`^(?s:\\[0-9]{3}|\\[^0-9]|[^.\\])`)
	openLabel = regexp.MustCompile(`^\*(\.|$)`)
	inPattern = regexp.MustCompile(`^(?s:\\[0-9]{3}|\\[^0-9]|[-0-9A-Za-z_/?])`)
)

// slowLabels reads labels as lists of characters; star says that a label may be
// nothing but asterisks, and then it is nil.
func slowLabels(text string, characters *regexp.Regexp, star bool) (labels [][]int, ok bool) {
	var runes strings.Builder
	for _, b := range []byte(text) {
		runes.WriteRune(rune(b))
	}
	rest := runes.String()
	if rest == "." {
		return nil, true
	}
	size := 1
	for rest != "" || len(labels) == 0 {
		var label []int
		if star && openLabel.MatchString(rest) {
			rest = rest[1:]
			size += 2
		} else {
			label = []int{}
			for rest != "" && rest[0] != '.' {
				character := characters.FindString(rest)
				if character == "" {
					return nil, false
				}
				rest = rest[len(character):]
				value, good := slowCharacter([]rune(character))
				if !good {
					return nil, false
				}
				if star && character == "?" {
					value = open
				}
				label = append(label, value)
			}
			if len(label) == 0 || len(label) > 63 {
				return nil, false
			}
			size += 1 + len(label)
		}
		labels = append(labels, label)
		rest = strings.TrimPrefix(rest, ".")
	}
	return labels, size <= 255
}

func slowCharacter(c []rune) (value int, ok bool) {
	switch len(c) {
	case 1:
		value = int(c[0])
	case 2:
		value = int(c[1])
	default:
		value = int(c[1]-'0')*100 + int(c[2]-'0')*10 + int(c[3]-'0')
	}
	if 'A' <= value && value <= 'Z' {
		value += 'a' - 'A'
	}
	return value, value <= 255
}

func slowMatch(pattern, name string) (matches, valid bool) {
	if pattern == "**" {
		pattern = "**."
	}
	pattern, deep := strings.CutPrefix(pattern, "**.")
	var want [][]int
	if !deep || pattern != "" {
		if deep && strings.HasPrefix(pattern, ".") {
			return false, false
		}
		if want, valid = slowLabels(pattern, inPattern, true); !valid {
			return false, false
		}
	}
	labels, ok := slowLabels(name, inName, false)
	if !ok || len(labels) < len(want) || len(labels) > len(want) && !deep {
		return false, true
	}
	labels = labels[len(labels)-len(want):]
	for i, w := range want {
		if w == nil {
			continue
		}
		if len(w) != len(labels[i]) {
			return false, true
		}
		for j, c := range w {
			if c != open && c != labels[i][j] {
				return false, true
			}
		}
	}
	return true, true
}

func compare(t *testing.T, patterns []string, name string) (matches bool) {
	t.Helper()
	want := false
	for _, p := range patterns {
		matches, valid := slowMatch(p, name)
		if _, err := Parse(p); (err == nil) != valid {
			t.Fatalf("%q: %v, but valid: %v", p, err, valid)
		}
		if !valid {
			return false
		}
		want = want || matches
	}
	l, err := Parse(patterns...)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Match(name); got != want {
		t.Fatalf("%q matches %q: %v, want %v", patterns, name, got, want)
	}
	return want
}

func FuzzMatch(f *testing.F) {
	for _, name := range []string{
		".", "", "org.", "example.org", "A.eXample.ORG.", `evil\.example.org.`, `\032.\\.org.`, `a\046b.org.`, `\000\255.org.`,
		`a\300.org.`, "a..b.", "\xff\xc3.org.", "*.example.org.", "ns1.a.example.org.", strings.Repeat("a.", 127), strings.Repeat("a", 64),
	} {
		for _, patterns := range []string{
			".", "**", "*", "?", "example.org", "**.example.org\n*.example.org.", "ns?.*.EXAMPLE.org", `\*.example.org`, `evil\.example.org`,
			`a?b.org` + "\n" + `\032.*.org`, "**.a.?", "a.**", "a*", strings.Repeat("*.", 127), strings.Repeat("?", 63), "..", "**..", "**.**",
		} {
			f.Add(patterns, name)
		}
	}
	f.Fuzz(func(t *testing.T, patterns, name string) {
		compare(t, strings.Split(patterns, "\n"), name)
	})
}

// Of a handful of characters, so that names and patterns meet often.
func TestAgainstSlow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func(labels, characters []string) string {
		var b strings.Builder
		for range 1 + r.IntN(4) {
			if n := r.IntN(len(labels) + 2); n < len(labels) {
				b.WriteString(labels[n])
			} else {
				for range 1 + r.IntN(3) {
					b.WriteString(characters[r.IntN(len(characters))])
				}
			}
			b.WriteString(".")
		}
		return b.String()
	}
	matched := 0
	const rounds = 10_000
	for range rounds {
		patterns := make([]string, 1+r.IntN(4))
		for i := range patterns {
			patterns[i] = text([]string{"*", "a"}, []string{"a", "B", "?", `\.`, `\098`, `\000`})
			if r.IntN(4) == 0 {
				patterns[i] = "**." + patterns[i]
			}
		}
		if compare(t, patterns, text([]string{"a"}, []string{"a", "b", `\.`, `\001`, `\000`})) {
			matched++
		}
	}
	if matched < rounds/20 || matched > rounds*19/20 {
		t.Errorf("%d of %d matched: that tests little", matched, rounds)
	}
}
