package main

import (
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// Who asks wrongly is told what to write.
func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"trial":                "write a duration: guardctl trial 5m",
		"trial 5m 6m":          "write a duration: guardctl trial 5m",
		"explain":              "write a name or an address: guardctl explain api.example.com",
		"audit forward":        `audit "forward": write local (what this machine sends), gateway (what it forwards), or nothing for both`,
		"enforce local both":   `enforce "local both": write local`,
		"explain 1.2.3":        `"1.2.3" is neither a name nor an address`,
		"explain 192.0.2.0/24": `"192.0.2.0/24" is neither a name nor an address`,
		"explain fd00::x":      `"fd00::x" is neither a name nor an address`,
		"revoke 1.2.3.":        `"1.2.3." is neither a name nor an address`,
		"revoke":               "write a name, an address, a network or --client CLIENT; guardctl flush ends all grants",
		"explain a --client b": `--client "b" is not an address`,
	} {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"--socket", "/nonexistent"}, strings.Fields(args)...), &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), want) {
			t.Errorf("guardctl %s: %d, %s\nwant %s", args, code, &errs, want)
		}
	}
	for _, name := range []string{"nas", "nas.lan.", "1.2.3.example", "3com", "xn--1-2.test", "."} {
		if got, err := isName(name); got != name || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// On a gateway that does not guard itself it does not matter whom its own programs ask.
func TestDoctorOfUnguardedPrograms(t *testing.T) {
	for mode, hooks := range map[string][]admin.Hook{"nft-gateway": {{Name: "forward"}}, "nft-both": {{Name: "output"}, {Name: "forward"}}, "nft-local": {{Name: "output"}}} {
		d := &doctor{root: t.TempDir(), status: &admin.Status{Mode: mode, Hooks: hooks}}
		d.resolvConf()
		if gateway := mode == "nft-gateway"; (d.findings[0].Level == fine) != gateway || strings.Contains(d.makeReachable(), "upstream") == gateway {
			t.Errorf("%s: %+v; %s", mode, d.findings, d.makeReachable())
		}
	}
}
