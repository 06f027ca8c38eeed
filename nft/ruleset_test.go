package nft

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var update = flag.Bool("update", false, "write the goldens anew")

func prefixes(t testing.TB, texts ...string) (p []netip.Prefix) {
	t.Helper()
	for _, s := range texts {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		p = append(p, prefix)
	}
	return p
}

func goldenRules(t testing.TB) map[string]backend.Rules {
	base := backend.Rules{Table: "ipdestinationguard", MaxGrants: 1 << 20}
	local, gateway, both, everything := base, base, base, base

	local.Local = true
	local.AllowedLocal = prefixes(t, "9.9.9.9/32", "149.112.112.112/32", "2620:fe::fe/128")

	gateway.Gateway = true
	gateway.Interfaces = []string{"lan0", "lan1"}
	gateway.AllowedGateway = prefixes(t, "192.0.2.0/24")

	both.Local, both.Gateway = true, true
	both.Allowed = prefixes(t,
		"10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", // one inside the other, and twice
		"192.0.2.0/25", "192.0.2.128/25", // adjacent
		"198.51.100.1/32", "198.51.100.2/32", // adjacent, no prefix
		"255.255.255.0/24", "0.0.0.0/8", // at the ends
		"2001:db8::/32", "2001:db8:1::/48", "ffff::/16", "fe80::1/128")
	both.AllowedLocal = prefixes(t, "9.9.9.9/32")
	both.AllowedGateway = prefixes(t, "2001:db8:ffff::/48")

	everything.Local = true
	everything.Allowed = prefixes(t, "0.0.0.0/0", "::/0", "10.0.0.0/8", "2001:db8::/32")
	return map[string]backend.Rules{"local": local, "gateway": gateway, "both": both, "everything": everything}
}

// Each mode's ruleset stands in testdata as an administrator would see it.
func TestRulesetGoldens(t *testing.T) {
	for name, rules := range goldenRules(t) {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			newRuleset(rules).print(&got, nil)
			file := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("the ruleset is no longer that of %s (go test -update writes it anew):\n%s", file, got.Bytes())
			}
		})
	}
}

// What our printer says of a ruleset is what nft reads back from the kernel: so
// the text and the expressions beside it mean the same.
func TestRulesetIsWhatNftPrints(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("nft is not installed")
		}
		t.Skip("nft is not installed")
	}
	for name, rules := range goldenRules(t) {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t)
			if err := b.Open(rules); err != nil {
				t.Fatal(err)
			}
			got, err := exec.Command(nft, "list", "table", "inet", rules.Table).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, got)
			}
			got = armingElements.ReplaceAll(got, nil)
			want, err := os.ReadFile(filepath.Join("testdata", name+".nft"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("nft prints\n%s\nand we\n%s", got, want)
			}
		})
	}
}

var armingElements = regexp.MustCompile(`\t\telements = \{ ipv4 timeout 30s[^}]*\}\n`)
