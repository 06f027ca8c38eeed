package nft

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
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

var everyone = []backend.Holder{backend.Everyone}

func goldenRules(t testing.TB) map[string]backend.Rules {
	base := backend.Rules{Table: "ipdestinationguard", MaxGrants: 1 << 20, LocalHolders: everyone, GatewayHolders: everyone}
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

	both.OnLink = prefixes(t, "192.168.0.0/24", "fd00::/64")
	both.LocalHolders, both.GatewayHolders = []backend.Holder{backend.Machine}, []backend.Holder{backend.Client, backend.Link}

	everything.Local, everything.DNSPorts = true, true
	everything.Allowed = prefixes(t, "0.0.0.0/0", "::/0", "10.0.0.0/8", "2001:db8::/32")

	applications := local
	applications.LocalHolders = []backend.Holder{backend.Everyone, backend.User, backend.Unit}
	applications.Upstream = upstreams(t, "9.9.9.9:53", "149.112.112.112:853", "[2620:fe::fe]:53", "9.9.9.9:853", "9.9.9.9:53")
	applications.Self = backend.Program{User: 53}

	classes := both
	classes.Upstream = upstreams(t, "9.9.9.9:853")
	classes.Self = backend.Program{Cgroup: backend.Cgroup{Path: "/system.slice/coredns.service", ID: 1<<40 + 1, Level: 2}}
	classes.Classes = map[backend.Class]backend.Predicates{
		1: {Ports: []backend.Ports{{Protocol: 17, First: 443, Last: 443}, {Protocol: 6, First: 443, Last: 443}, {Protocol: 6, First: 8000, Last: 8010},
			{Protocol: 6, First: 8005, Last: 8020}, {Protocol: 6, First: 65535, Last: 65535}, {Protocol: 132, First: 1, Last: 65535}}},
		7: {Users: []uint32{1000, 1001, 0, 65534, 3, 4, 5}},
		255: {
			Ports: []backend.Ports{{Protocol: 6, First: 443, Last: 443}},
			Users: []uint32{1000},
			Units: []backend.Cgroup{
				{Path: "/system.slice/" + strings.Repeat("very", 30) + "long.service", ID: 1<<40 + 2, Level: 2},
				{Path: "/system.slice/gone.service", Level: 2},
				{Path: "/system.slice/dev-disk-by\\x2duuid.swap", ID: 1<<40 + 0x300, Level: 2},
				{Path: "/user.slice", ID: 1<<41 + 1, Level: 1},
			},
		},
	}

	capture := gateway
	capture.Capture = 53

	linger := both
	linger.Capture, linger.Linger = 5353, 10*time.Minute+30*time.Second
	linger.LocalHolders = []backend.Holder{backend.Everyone, backend.Unit}
	linger.Classes = map[backend.Class]backend.Predicates{1: {Ports: []backend.Ports{{Protocol: 6, First: 443, Last: 443}}}}

	audit := linger
	audit.Capture, audit.AuditLocal, audit.AuditGateway, audit.LogGroup = 0, true, true, 5300
	auditGateway := both
	auditGateway.AuditGateway, auditGateway.LogGroup = true, 1

	routes := capture
	routes.MaxMappings, routes.Book = 1<<20, "0123abcd"
	routes.Origins = []backend.Origin{{Book: "0123abcd", Pool: prefixes(t, "100.96.0.0/11")[0]}, {Book: "4567", Pool: prefixes(t, "fd00:2021:1111:8000::/107")[0]}}
	routes.Routes = []backend.Route{
		{Name: "aa", Pools: prefixes(t, "100.96.0.0/11", "fd00:2021:1111:8000::/107"), Egress: addresses("192.0.2.7", "2001:db8::7")},
		{Name: "bb", Pools: prefixes(t, "100.96.0.0/11", "198.18.0.0/15", "fd01::/16"), Out: "tun0", Mark: 100},
		{Name: "cc", Pools: prefixes(t, "100.64.1.0/24", "100.64.2.1/32", "fd02::/64"), Egress: addresses("192.0.2.8"), Transparent: true},
	}
	routesPlain := both
	routesPlain.Book, routesPlain.Routes = "89ab", []backend.Route{routes.Routes[0], routes.Routes[2]}
	routesOut := gateway
	routesOut.AuditGateway = true
	routesOut.Book, routesOut.Routes = "cdef", []backend.Route{{Name: "dd", Pools: routes.Routes[0].Pools, Out: "wan0"}}
	routesLocal := local
	routesLocal.Book, routesLocal.Routes = "cdef", []backend.Route{{Name: "ee", Pools: routes.Routes[0].Pools, Transparent: true}}
	routesBoth := linger
	routesBoth.LocalHolders = []backend.Holder{backend.Machine, backend.User}
	routesBoth.Upstream, routesBoth.Self = applications.Upstream, applications.Self
	routesBoth.Book, routesBoth.Routes = "4567", routes.Routes[1:]
	routesAudit := routesBoth
	routesAudit.AuditLocal, routesAudit.AuditGateway, routesAudit.LogGroup = true, true, 5300

	return map[string]backend.Rules{
		"audit": audit, "audit-gateway": auditGateway, "routes": routes, "routes-plain": routesPlain, "routes-out": routesOut, "routes-local": routesLocal, "routes-both": routesBoth, "routes-audit": routesAudit,
		"local": local, "gateway": gateway, "both": both, "everything": everything,
		"applications": applications, "classes": classes, "capture": capture, "linger": linger,
	}
}

func addresses(texts ...string) (all []netip.Addr) {
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func upstreams(t testing.TB, texts ...string) (all []netip.AddrPort) {
	t.Helper()
	for _, s := range texts {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// Each mode's ruleset stands in testdata as an administrator would see it.
func TestRulesetGoldens(t *testing.T) {
	for name, rules := range goldenRules(t) {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			newRuleset(rules).print(&got, contents{})
			file := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got.String() != golden(t, name) {
				t.Errorf("the ruleset is no longer that of %s (go test -update writes it anew):\n%s", file, got.Bytes())
			}
		})
	}
}

// What our printer says of a ruleset is what nft reads back from the kernel: so
// the text and the expressions beside it mean the same.
func TestRulesetIsWhatNftPrints(t *testing.T) {
	for name, rules := range goldenRules(t) {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t)
			if err := b.Open(rules); err != nil {
				t.Fatal(err)
			}
			nftPrints(t, rules.Table, name)
		})
	}
}

// What nft prints, it can load, but for the numbers of cgroups that are not there.
func TestGoldensLoad(t *testing.T) {
	for name := range goldenRules(t) {
		if name != "classes" {
			nft(t, "-c", "-f", filepath.Join("testdata", name+".nft"))
		}
	}
}

// A ruleset that was loaded when the machine came up is taken over whole.
func TestBootRulesetIsTakenOver(t *testing.T) {
	for name, rules := range goldenRules(t) {
		t.Run(name, func(t *testing.T) {
			nft(t, "-f", "../deployment/boot-gateway.nft")
			b := newBackend(t)
			if err := b.Check(rules); err != nil {
				t.Error(err)
			}
			if err := b.Open(rules); err != nil {
				t.Fatal(err)
			}
			nftPrints(t, rules.Table, name)
		})
	}
}

// Every mode can become every other, and nothing of it is left.
func TestReloadToAnyOtherRuleset(t *testing.T) {
	b := newBackend(t)
	for range 2 {
		for name, rules := range goldenRules(t) { // in random order
			if err := b.Open(rules); err != nil {
				t.Fatal(err)
			}
			nftPrints(t, rules.Table, name)
		}
	}
}

// Print shows what nft shows, but for the moment.
func TestPrint(t *testing.T) {
	rules := backendtest.ScopedRules()
	b := newBackend(t)
	if err := b.Open(rules); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour)
	if err := b.Grant(t.Context(), backendtest.ScopedGrants(until, backendtest.Addrs(0, 4)...), time.Minute); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := Print(&text, rules); err != nil {
		t.Fatal(err)
	}
	timeless := func(s string) string { return moment.ReplaceAllString(asIfPersistWereKnown(s), "$1 some") }
	want, got := timeless(nft(t, "list", "table", "inet", rules.Table)), timeless(text.String())
	if got != want {
		t.Errorf("nft prints\n%s\nand we\n%s", want, got)
	}
	if err := Print(&text, backend.Rules{Table: "none"}); err == nil {
		t.Error("printed a table that is not there")
	}
}

func TestDurationText(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"1d2h3m4s5ms": 26*time.Hour + 3*time.Minute + 4*time.Second + 5*time.Millisecond,
		"59s984ms":    59984*time.Millisecond + 999,
		"1h":          time.Hour,
	} {
		if got := duration(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

var moment = regexp.MustCompile(`(timeout|expires|packets|bytes) [0-9a-z]+`)

func golden(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".nft"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// nftPrints fails the test unless the kernel holds the golden's ruleset. Its sets
// and chains stand there in the order in which they came.
func nftPrints(t *testing.T, table, name string) {
	t.Helper()
	parts := func(text string) []string {
		text = strings.TrimSuffix(strings.TrimPrefix(text, "table inet "+table+" {\n"), "\t}\n}\n")
		text = strings.TrimPrefix(text, "\tflags owner,persist\n\n") // the goldens say what the rules are, not whose
		return slices.Sorted(slices.Values(strings.Split(text, "\t}\n\n")))
	}
	got := armingElements.ReplaceAllString(asIfPersistWereKnown(nft(t, "list", "table", "inet", table)), "")
	ours, theirs := parts(golden(t, name)), parts(got)
	for _, part := range theirs {
		if !slices.Contains(ours, part) {
			t.Errorf("nft prints\n%s", part)
		}
	}
	for _, part := range ours {
		if !slices.Contains(theirs, part) {
			t.Errorf("we print\n%s", part)
		}
	}
}

// asIfPersistWereKnown turns what nft prints of an owner into what ours prints: it
// names the owner's program, and before 1.1 knows nothing of persist.
func asIfPersistWereKnown(text string) string {
	return strings.ReplaceAll(progname.ReplaceAllString(text, ""), "\tflags owner\n", "\tflags owner,persist\n")
}

var progname = regexp.MustCompile(` # progname \S+`)

var armingElements = regexp.MustCompile(`\t\telements = \{ ipv4 timeout (30s|3m)[^}]*\}\n`)

// nft runs the program, which only tests do.
func nft(t *testing.T, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/nft") // not in the PATH of an ordinary user
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("nft is not installed")
		}
		t.Skip("nft is not installed")
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, out)
	}
	return string(out)
}
