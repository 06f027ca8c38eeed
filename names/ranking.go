package names

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// A Ranking says to which of several groups of patterns a name belongs: to that of the
// most specific pattern that it matches. Patterns are compared label by label from the
// right: a label that is written out goes before one with ?, that before *, and that
// before **. Between two that do not differ in this, the group that comes first has it.
type Ranking struct {
	all   *List // so that a name that is in no group is not looked for in each
	ranks []ranked
}

// ranked are the patterns of one group that are equally specific.
type ranked struct {
	ranking
	list *List
}

type ranking struct {
	rank  string // see pattern.rank
	group int
}

// TwiceError says that a pattern stands in two groups.
type TwiceError struct {
	Pattern       string
	First, Second int // the groups
}

func (e *TwiceError) Error() string {
	return fmt.Sprintf("%s stands in two groups, %d and %d", quote([]byte(e.Pattern)), e.First, e.Second)
}

var errTop = errors.New("the last label has to be written out, as in **.example.org: without, the names of half the world would be meant")

// Rank makes a ranking of groups of patterns, which say which top-level domain they are
// for. Its error names the first pattern that is none, and what to write instead; it is a
// [TwiceError] if one stands in two groups.
func Rank(groups ...[]string) (*Ranking, error) {
	type exact struct{ shape, rest string }
	var p pattern
	var all []string
	first := map[exact]int{}
	patterns := map[ranking][]string{}
	for group, texts := range groups {
		for _, text := range texts {
			err := p.parse([]byte(text))
			if err == nil && (len(p.labels) == 0 || !p.labels[len(p.labels)-1].literal()) {
				err = errTop
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", quote([]byte(text)), err)
			}
			this := exact{string(p.shape(nil)), string(p.rest)}
			if other, had := first[this]; had && other != group {
				return nil, &TwiceError{text, other, group}
			}
			first[this] = group
			of := ranking{p.rank(), group}
			patterns[of] = append(patterns[of], text)
			all = append(all, text)
		}
	}
	list, err := Parse(all...)
	if err != nil {
		return nil, err
	}
	r := &Ranking{all: list}
	for of, texts := range patterns {
		if list, err = Parse(texts...); err != nil {
			return nil, err
		}
		r.ranks = append(r.ranks, ranked{of, list})
	}
	slices.SortFunc(r.ranks, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.group, b.group))
	})
	return r, nil
}

// Match returns the group that a name belongs to, if it belongs to one.
func (r *Ranking) Match(name string) (group int, ok bool) {
	if r == nil || !r.all.Match(name) {
		return 0, false
	}
	for i := range r.ranks {
		if r.ranks[i].list.Match(name) {
			return r.ranks[i].group, true
		}
	}
	return 0, false
}
