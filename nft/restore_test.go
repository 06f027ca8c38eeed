package nft

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// snapshot is a diary that looks at the grants when it hears that rules are in force.
type snapshot struct {
	diary
	live []int
}

func (s *snapshot) Enforcing(on bool) {
	s.diary.Enforcing(on)
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.live = append(s.live, s.ipv4+s.ipv6)
	}
}

// After a flush, as many grants as fit come back in one step with the rules, and
// it is not said that all is well before the last one has.
func TestRulesComeBackWithGrants(t *testing.T) {
	for _, n := range []int{mostCarried - 10, 3 * mostCarried} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := &snapshot{}
			g := &guarded{t, ownerless(t, s), &s.diary}
			if err := g.Open(backendtest.Rules()); err != nil {
				t.Fatal(err)
			}
			until := time.Now().Add(time.Hour)
			g.grant(until, 0, n)
			foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
			backendtest.Eventually(t, "the table is back", func() bool {
				p, err := readTable(backendtest.Rules().Table)
				return err == nil && p.exists
			})
			if got, least := len(g.inKernel()), min(n, mostCarried); got < least {
				t.Errorf("%d grants came with the rules, want %d", got, least)
			}
			backendtest.Eventually(t, "it is in force", func() bool { return g.count("enforcing: true") == 2 })
			if !g.keeps(until, 0, n) || s.live[1] != n {
				t.Errorf("%d grants when it was in force again, want %d", s.live[1], n)
			}
			g.accounts()
		})
	}
}

// Grants that cannot come back with the rules do not keep these away.
func TestRulesComeBackWithoutGrants(t *testing.T) {
	g := openOwnerless(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 100)
	rules := backendtest.Rules()
	rules.MaxGrants = 10
	if err := g.Open(rules); err != nil {
		t.Fatal(err)
	}
	foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	backendtest.Eventually(t, "it is in force", func() bool { return g.count("enforcing: true") == 2 })
	if n := len(g.inKernel()); n > 20 {
		t.Errorf("%d grants", n)
	}
}
