package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string]int{
		"6.18.5-arch1": 6018, "5.10.0-28-amd64": 5010, "6.9": 6009, "6.9-rc1": 6009, "7": 7000, "": 0, "6.1.0-rpi7-rpi-v8": 6001,
	} {
		if got := kernelVersion(release); got != want {
			t.Errorf("%s: %d, want %d", release, got, want)
		}
	}
}

// No network of a test can have a bound of its own (nf_conntrack_max).
func TestConnectionTrackingIsNearlyFull(t *testing.T) {
	for _, tt := range []struct {
		count, most int
		want        level
	}{{0, 100, fine}, {80, 100, fine}, {81, 100, failure}, {100, 100, failure}} {
		d := &doctor{}
		d.connections(tt.count, tt.most)
		if len(d.findings) != 1 || d.findings[0].Level != tt.want || (d.findings[0].Advice == "") != (tt.want == fine) {
			t.Errorf("%d of %d: %+v", tt.count, tt.most, d.findings)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for status, want := range map[string]level{
		"Name:\tcoredns\nCapPrm:\t0\nCapEff:\t0000000000001400\nCapBnd:\t0\n": fine,
		"Name:\tcoredns\nCapEff:\t0000000000001000\n":                         fine,
		"Name:\tcoredns\nCapEff:\t0000000000000400\n":                         failure,
		"Name:\tcoredns\nCapEff:\t000001ffffffffff\n":                         warning,
		"Name:\tcoredns\n": unknown,
	} {
		d := &doctor{}
		d.judgeCapabilities(7, status)
		if len(d.findings) != 1 || d.findings[0].Level != want {
			t.Errorf("%q: %+v, want %s", status, d.findings, want)
		}
	}
}

// Rules of each kind are tried, and what the kernel refuses is told with what cannot be used then.
func TestFeatures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("who is not root is told to be")
	}
	for _, tt := range []struct {
		text, advice string
		refused      func(backend.Rules) bool
	}{
		{"routed clients", "only clients on the gateway's own wires", func(r backend.Rules) bool { return slices.Contains(r.GatewayHolders, backend.Client) }},
		{"programs by their cgroups", "cannot tell services apart", func(r backend.Rules) bool { return slices.Contains(r.LocalHolders, backend.Unit) }},
		{"capture", "capture cannot be used", func(r backend.Rules) bool { return r.Capture != 0 }},
		{"routes", "route cannot be used", func(r backend.Rules) bool { return len(r.Routes) > 0 }},
		{"what is denied, told of at once", "nflog_group off", func(r backend.Rules) bool { return r.LogGroup != 0 }},
	} {
		d := &doctor{}
		d.tries(func(r backend.Rules) error {
			if tt.refused(r) {
				return errors.New("no such module")
			}
			return nil
		})
		var bad []finding
		for _, f := range d.findings {
			if f.Level != fine {
				bad = append(bad, f)
			}
		}
		if len(bad) != 1 || bad[0].Level != warning || !strings.HasPrefix(bad[0].Text, tt.text) || !strings.Contains(bad[0].Advice, tt.advice) {
			t.Errorf("%s: %+v", tt.text, bad)
		}
	}
}

// Without the first kind nothing works.
func TestNoFeatures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("who is not root is told to be")
	}
	d := &doctor{}
	d.tries(func(backend.Rules) error { return errors.New("no such module") })
	if f := d.findings[0]; f.Level != failure || !strings.HasPrefix(f.Text, "rules and sets: ") || f.Advice == "" {
		t.Errorf("%+v", f)
	}
}

// Old kernels are told of, each kind with what is to be done.
func TestOldKernels(t *testing.T) {
	for release, want := range map[string]level{"5.4.0-150-generic": failure, "5.10.0-28-amd64": warning, "6.8.12": warning, "6.9.0": fine, "6.18.5-arch1": fine} {
		d := &doctor{}
		d.judgeKernel(release)
		if len(d.findings) != 1 || d.findings[0].Level != want || (d.findings[0].Advice == "") != (want == fine) {
			t.Errorf("%s: %+v, want %s", release, d.findings, want)
		}
	}
}

// What iptables has made of its rules is read, too.
func TestVerdictsOfIptables(t *testing.T) {
	comment, reject := &expr.Match{Name: "comment"}, &expr.Target{Name: "REJECT"}
	for _, tt := range []struct {
		name  string
		exprs []expr.Any
		drops bool
	}{
		{"-m comment -j REJECT", []expr.Any{comment, &expr.Counter{}, reject}, true},
		{"-m comment -j DROP", []expr.Any{comment, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}, true},
		{"-m state -j REJECT", []expr.Any{&expr.Match{Name: "state"}, &expr.Counter{}, reject}, false},
		{"-j LOG", []expr.Any{&expr.Counter{}, &expr.Target{Name: "LOG"}}, false},
		{"-m limit -j DROP", []expr.Any{&expr.Limit{}, &expr.Verdict{Kind: expr.VerdictDrop}}, false},
	} {
		if v := always(tt.exprs); (v != nil && v.Kind == expr.VerdictDrop) != tt.drops {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

// ARP has other hooks under the same numbers.
func TestHooksOfARP(t *testing.T) {
	if hook := hookOf(&nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamilyARP}, Hooknum: nftables.ChainHookForward}); hook != "" {
		t.Errorf("a chain of ARP is on the hook %s", hook)
	}
}
