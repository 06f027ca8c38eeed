// Package names is a stand-in, to be dropped when the real one is merged: lists of
// patterns of domain names.
package names

import (
	"fmt"
	"strings"
)

// A List is some patterns: * is one label, ** any number of them or none, ? one
// character.
type List struct{ patterns [][]string }

// Parse reads patterns.
func Parse(patterns ...string) (*List, error) {
	l := &List{}
	for _, p := range patterns {
		if p == "" || strings.Contains(p, "..") && p != "." {
			return nil, fmt.Errorf("%q is no pattern of names", p)
		}
		l.patterns = append(l.patterns, split(p))
	}
	return l, nil
}

// Match reports whether a pattern covers name, with its dot at the end or without.
func (l *List) Match(name string) bool {
	labels := split(name)
	for _, p := range l.patterns {
		if match(p, labels) {
			return true
		}
	}
	return false
}

func split(name string) []string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" {
		return nil
	}
	return strings.Split(name, ".")
}

func match(pattern, labels []string) bool {
	switch {
	case len(pattern) == 0:
		return len(labels) == 0
	case pattern[0] == "**":
		return match(pattern[1:], labels) || len(labels) > 0 && match(pattern, labels[1:])
	case len(labels) == 0:
		return false
	}
	return label(pattern[0], labels[0]) && match(pattern[1:], labels[1:])
}

func label(pattern, text string) bool {
	if pattern == "*" {
		return true
	}
	if len(pattern) != len(text) {
		return false
	}
	for i := range len(pattern) {
		if pattern[i] != '?' && pattern[i] != text[i] {
			return false
		}
	}
	return true
}
