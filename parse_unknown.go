package ipdestinationguard

import (
	"maps"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/spelling"
)

// The blocks that have options, as they are written.
const (
	inGuard      = name + " { }"
	inRoute      = "route PATTERN... { }"
	inValidation = "dnssec validate { }"
)

type optionBlock struct {
	text    string
	options []string
}

func optionBlocks() []optionBlock {
	return []optionBlock{
		{inGuard, optionNames(false)},
		{inRoute, slices.Sorted(maps.Keys(routeOptions))},
		{inValidation, []string{"anchor", "negative_anchor", "state"}},
	}
}

// unknown is the error for an option that is none of the block that it stands in.
func (p *parser) unknown(word, in, begins string) error {
	var own, elsewhere []string
	for _, b := range p.blocks {
		switch {
		case b.text == in:
			own = b.options
		case slices.Contains(b.options, word):
			elsewhere = append(elsewhere, b.text)
		}
	}
	hint := spelling.Hint(word, own, dnsserver.Directives, begins)
	if len(elsewhere) > 0 {
		hint = "it belongs in " + strings.Join(elsewhere, " or ")
		if in != inGuard {
			hint += ", behind the } of the block which begins at " + begins
		}
	}
	return p.Errf("unknown option %q in %s: %s", word, in, hint)
}
