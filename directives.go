package ipdestinationguard

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"unicode"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// Directives implements [admin.Guard].
func (a *administration) Directives(context.Context) (admin.Directives, error) {
	return admin.Directives{Directives: a.guard.settings.Load().found.directives}, nil
}

// directives are ours of a Corefile that has been read.
func directives(corefile caddy.Input) []admin.Directive {
	all := []admin.Directive{}
	for _, b := range serverBlocks(corefile) {
		if tokens := b.Tokens[name]; len(tokens) > 0 {
			file := cmp.Or(tokens[0].File, corefile.Path()) // of what is not imported
			all = append(all, admin.Directive{Place: fmt.Sprintf("%s:%d", file, tokens[0].Line), Lines: spelled(tokens)})
		}
	}
	return all
}

// spelled are lines that would be read as these tokens.
func spelled(tokens []caddyfile.Token) (lines []string) {
	depth := 0
	for i, token := range tokens {
		if token.Text == "}" {
			depth--
		}
		if i > 0 && goesOn(tokens[i-1], token) {
			lines[len(lines)-1] += " " + quoted(token.Text)
		} else {
			lines = append(lines, strings.Repeat("    ", depth)+quoted(token.Text))
		}
		if token.Text == "{" {
			depth++
		}
	}
	return lines
}

// goesOn reports whether a token is on the line of the one before, which may have line breaks itself.
func goesOn(before, token caddyfile.Token) bool {
	return before.File == token.File && before.Line+strings.Count(before.Text, "\n") == token.Line
}

// quoted is a token as it has to be written.
func quoted(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == '#' || r == '"' }) {
		return text
	}
	return `"` + strings.ReplaceAll(text, `"`, `\"`) + `"`
}
