package names

import (
	"fmt"
	"strings"
	"testing"
)

func TestRefused(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	const asterisk = "* stands for a whole label"
	for _, test := range []struct{ pattern, want string }{
		{"", "write a name"},
		{"..", "between two dots"},
		{"a..b", "between two dots"},
		{"a..", "between two dots"},
		{".example.org", "write **.example.org"},
		{"a*.example.org", asterisk},
		{"*a.example.org", asterisk},
		{"a*b.example.org", asterisk},
		{"www.ex*.org", asterisk},
		{"*?.org", asterisk},
		{"***.org", asterisk},
		{"a**.org", asterisk},
		{"a.**.org", "in front only"},
		{"**.**.org", "in front only"},
		{"**.a.**", "in front only"},
		{"*.**.org", "in front only"},
		{`a\`, "after a backslash"},
		{`a\1.org`, "after a backslash"},
		{`a\12x.org`, "after a backslash"},
		{`a\256.org`, "after a backslash"},
		{label63 + "a.org", "63"},
		{strings.Repeat("?", 64), "63"},
		{strings.Repeat("a", 1000), "63"},
		{strings.Repeat(label63+".", 3) + label63[:62], "255"},
		{"**." + strings.Repeat(label63+".", 4), "255"},
		{strings.Repeat("a.", 128), "255"},
		{strings.Repeat("*.", 128), "255"},
		{"example.org:53", `\058`},
		{"https://example.org/", `':'`},
		{"||example.org^", `\124`},
		{"a@b.org", `\064`},
		{"a\x00b.org", `\000`},
		{"a,b", `',' is in no host name: patterns stand apart by blanks (in a file, by lines), without commas. If the name has this character, it is written \044`},
		{"0.0.0.0 example.org", "one pattern at a time"},
		{"example.org\t", "one pattern at a time"},
		{"bücher.example", "xn--bcher-kva.example"},
		{"**.Bücher.Straße.example", "**.xn--bcher-kva.xn--strae-oqa.example"},
		{"b?ü.example", "xn--"},
		{"a\xff.example", "xn--"},
	} {
		t.Run(fmt.Sprintf("%.40q", test.pattern), func(t *testing.T) {
			l, err := Parse("good.example", test.pattern)
			if err == nil || l != nil {
				t.Fatalf("taken as a pattern: %v", l)
			}
			if !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), `"`) || len(err.Error()) > 700 {
				t.Errorf("%v\nwant: %s", err, test.want)
			}
		})
	}
}

func TestTooManyShapes(t *testing.T) {
	patterns := make([]string, 0, maxShapes+1)
	for i := range maxShapes + 1 {
		p := strings.NewReplacer("0", "?", "1", "x").Replace(fmt.Sprintf("%012b", i))
		patterns = append(patterns, p+".example.org")
	}
	l, err := Parse(patterns[:maxShapes]...)
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != maxShapes || !l.Match("xxxxxxxxxxxx.example.org.") || l.Match("xxxxxxxxxxxx.example.com.") {
		t.Error("at the limit it is no list of them")
	}
	if _, err := Parse(append(patterns, "**.example.org")...); err == nil || !strings.Contains(err.Error(), "1024") {
		t.Errorf("past the limit: %v", err)
	}
}

// Patterns that differ in what they leave open have nothing to do with each
// other, even if what is left of them is the same.
func TestShapesApart(t *testing.T) {
	l, err := Parse("?.org", "*.a.org", "?a.com", "**.?.net")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.?.org.", `\000.a.com.`, "a.com.", "aa.net.", `*.\000.org.`, "b?.com.", "org.", "net."} {
		if l.Match(name) {
			t.Errorf("%s matches", name)
		}
	}
}
