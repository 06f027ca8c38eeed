package deployment

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// While the machine boots the same passes as when CoreDNS runs and has answered
// nobody: the rules that are the same in both are word for word the same.
func TestBootRulesAreCoreDNSs(t *testing.T) {
	running := chains(read(t, "../nft/testdata/both.nft"))
	for file, names := range map[string][]string{
		"boot-server.nft":  {"alive", "options-output", "output"},
		"boot-gateway.nft": {"alive", "options-output", "output", "options-forward", "forward"},
	} {
		boot := chains(read(t, file))
		for _, name := range names {
			if len(boot[name]) < 2 || !slices.Equal(boot[name], running[name]) {
				t.Errorf("%s, chain %s:\n%s\nCoreDNS has, apart from its sets:\n%s",
					file, name, strings.Join(boot[name], "\n"), strings.Join(running[name], "\n"))
			}
		}
	}
}

var inSet = regexp.MustCompile(` @[a-z]`)

// chains returns the rules of each chain, without those that look into a set, and
// the last one without what it counts and says. Where CoreDNS counts what it refuses, it
// ends as it does at boot: that is in both.nft as well.
func chains(ruleset string) map[string][]string {
	rules := map[string][]string{}
	var chain string
	for line := range strings.Lines(ruleset) {
		line = strings.TrimSpace(line)
		if before, comment, denied := strings.Cut(line, "goto denied-"); denied {
			end := "reject with icmpx admin-prohibited"
			switch {
			case strings.HasPrefix(before, "ct state invalid"), strings.HasPrefix(before, "exthdr rt"), strings.HasPrefix(chain, "options-"):
				end = "drop"
			}
			_, comment, _ = strings.Cut(comment, " ")
			line = before + end + " " + comment
		}
		if rest, ok := strings.CutPrefix(line, "chain "); ok {
			chain = strings.TrimSuffix(rest, " {")
		}
		switch {
		case inSet.MatchString(line), strings.HasPrefix(line, "#"):
		case strings.Contains(line, "reject with icmpx "):
			rules[chain] = append(rules[chain], "reject")
		case strings.Contains(line, " comment "), strings.HasPrefix(line, "type filter"):
			rules[chain] = append(rules[chain], line)
		}
	}
	for chain, list := range rules {
		rules[chain] = slices.Compact(list) // one that parts sets, and the last
	}
	return rules
}
