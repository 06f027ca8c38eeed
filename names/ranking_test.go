package names

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Of several patterns that a name matches, the most specific one has it, in whatever
// order they are written.
func TestRanking(t *testing.T) {
	for _, tt := range []struct {
		name string
		want string   // the pattern that has it
		also []string // others that it matches
	}{
		{"a.example.org", "a.example.org", []string{"?.example.org", "*.example.org", "**.a.example.org", "**.example.org", "**.org"}},
		{"a.example.org", "?.example.org", []string{"*.example.org", "**.example.org", "**.org"}},
		{"a.example.org", "*.example.org", []string{"**.example.org", "**.org", "*.*.org", "a.*.org", "a.?xample.org"}},
		{"a.example.org", "**.a.example.org", []string{"?.example.org", "*.example.org", "**.example.org"}},
		{"a.b.example.org", "*.b.example.org", []string{"a.?.example.org", "a.*.example.org", "**.b.example.org"}},
		{"a.b.example.org", "a.?.example.org", []string{"a.*.example.org", "*.?.example.org", "**.example.org"}},
		{"a.b.example.org", "**.?.example.org", []string{"a.*.example.org", "*.*.example.org", "**.example.org"}},
		{"a.b.example.org", "*.*.example.org", []string{"**.*.example.org", "**.example.org"}},
		{"A.Example.ORG.", "a.example.org", []string{"**.org"}},
		{"example.org", "example.org", []string{"**.example.org", "**.org"}},
		{"example.org", "**.example.org", []string{"*.org", "**.org"}},
	} {
		t.Run(fmt.Sprintf("%s %s", tt.name, tt.want), func(t *testing.T) {
			for at := range len(tt.also) + 1 {
				var groups [][]string
				for _, pattern := range slices.Insert(slices.Clone(tt.also), at, tt.want) {
					if list, err := Parse(pattern); err != nil || !list.Match(tt.name) {
						t.Fatalf("%s does not match at all: %v", pattern, err)
					}
					groups = append(groups, []string{pattern})
				}
				r, err := Rank(groups...)
				if err != nil {
					t.Fatal(err)
				}
				if group, ok := r.Match(tt.name); !ok || group != at {
					t.Errorf("%v, %v, want %d of %q", group, ok, at, groups)
				}
			}
		})
	}
}

func TestRankingOfEquals(t *testing.T) {
	r, err := Rank([]string{"a?.test", "b.test", "b.test"}, []string{"?b.test", "**.c.test"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"ab.test": 0, "bb.test": 1, "b.test": 0, "c.test": 1, "x.c.test": 1, "c.d.test": -1, "test": -1, "": -1} {
		if group, ok := r.Match(name); ok != (want >= 0) || ok && group != want {
			t.Errorf("%s: %d, %v", name, group, ok)
		}
	}
	if _, ok := (*Ranking)(nil).Match("b.test"); ok {
		t.Error("nothing matches")
	}
}

func TestRankRefuses(t *testing.T) {
	for _, tt := range []struct {
		pattern, want string
	}{
		{"**", "the last label has to be written out"},
		{"*", "the last label has to be written out"},
		{"www.*", "the last label has to be written out"},
		{"www.or?", "the last label has to be written out"},
		{".", "the last label has to be written out"},
		{"a..b", "between two dots"},
		{"a*.test", "* stands for a whole label"},
	} {
		if _, err := Rank([]string{"a.test"}, []string{tt.pattern}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.pattern, err)
		}
	}
	var twice *TwiceError
	if _, err := Rank([]string{"a.test"}, []string{"b.?.test", "c.test"}, []string{`B.?.Tes\t.`}); !errors.As(err, &twice) || twice.First != 1 || twice.Second != 2 {
		t.Error(err)
	}
}
