package ipdestinationguard

import (
	"errors"
	stdlog "log"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/fake"
)

const (
	wwwAnswer = "www.routed.test. 30 A 9.9.9.9"
	wwwMapped = "www.routed.test. 30 IN A 100.96.0.1\n"
)

// ask asks for www.routed.test from the machine itself.
func (r *rig) ask() string { r.Helper(); return r.at("127.0.0.1").ask("www.routed.test. A", wwwAnswer) }

// A name keeps its addresses, and who connects to them is translated all the time.
func TestReloadKeepsMappedAddresses(t *testing.T) {
	block := func(options ...string) string {
		return "ipdestinationguard {\nmode nft-both\n" + strings.Join(options, "\n") + "\n}"
	}
	for _, tt := range []struct{ name, before, after string }{
		{"nothing changes", routedBoth, routedBoth},
		{"another TTL", routedBoth, block("route **.routed.test {\nttl 1s 50s\n}")},
		{"another pattern", routedBoth, block("route *.routed.test")},
		{"another egress", routedBoth, block("route **.routed.test {\negress 9.9.9.7 2620:fe::7\n}")},
		{"IPv4 only", routedBoth, block("route **.routed.test {\negress 9.9.9.7\n}")},
		{"IPv6 as well", block("route **.routed.test {\nfamily ipv4\n}"), routedBoth},
		{"a pool that has the addresses of before", routedBoth, block("route **.routed.test {\npool 100.96.0.0/16\n}")},
		{"another way", routedBoth, block("route **.routed.test {\nfwmark 7\n}", "route b.test")},
		{"another route beside it", routedBoth, block("route **.routed.test", "route **.b.test {\nfwmark 7\n}")},
		{"a more specific pattern", routedBoth, block("route **.routed.test", "route www.routed.test {\nfwmark 7\n}")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.before)
			r.wantText(r.ask(), wwwMapped)
			mapped := netip.MustParseAddr("100.96.0.1")
			r.kernel.Connect(mapped)
			r.arm(tt.after)
			r.wantMapped("100.96.0.1 > 9.9.9.9")
			r.wantText(r.ask(), wwwMapped)
			r.wantMapped("100.96.0.1 > 9.9.9.9")
			if real := r.kernel.Connect(mapped); real.String() != "9.9.9.9" {
				t.Errorf("connected to %v", real)
			}
			if got := r.kernel.Connected(mapped); len(got) != 2 {
				t.Errorf("a live connection has ended: %v", got)
			}
		})
	}
}

// Before the old rules go, names are where they are in the new ones: nobody is refused in
// between.
func TestReloadGoesOverABridge(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	old := r.guard.rules.Routes[0].Name
	r.arm("ipdestinationguard {\nmode nft-both\nroute **.routed.test {\nfwmark 7\n}\n}")
	if now := r.guard.rules.Routes; len(now) != 1 || now[0].Name == old || r.kernel.Mappings()[0].Route != now[0].Name {
		t.Errorf("in force: %v, mapped: %v", now, r.kernel.Mappings())
	}
}

// A route that goes takes its addresses along.
func TestReloadWithoutRoutes(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	had := r.policy
	r.arm("ipdestinationguard nft-both")
	r.wantMapped()
	r.wantText(r.ask(), "www.routed.test. 30 IN A 9.9.9.9\n")
	if len(r.guard.books.list()) != 0 {
		t.Error("the book is open still")
	}
	// A late answer of the old Corefile.
	r.policy = had
	r.guard.settings.Load().hold = 10 * time.Millisecond
	r.wantText(r.ask(), "SERVFAIL\nOther: the firewall has no such route now\n")
	r.arm(routedBoth)
	r.wantText(r.ask(), wwwMapped)
}

// The handlers of a new Corefile answer before it is in force: with the route that the name
// has by then, or else when it has one.
func TestAnswersBeforeTheirRouteIsInForce(t *testing.T) {
	r := newRig(t, routedBoth)
	r.wantText(r.ask(), wwwMapped)
	policyOf := func(directive string) *policy {
		p := r.policyOf(directive)
		s := *r.guard.settings.Load()
		for _, of := range p.routes {
			of.state = r.book
		}
		s.found.policies = []*policy{p}
		if err := r.guard.prepareRoutes(&s); err != nil {
			t.Fatal(err)
		}
		p.private = append(p.private, examples)
		return p
	}
	// As before, by the old egress.
	r.policy = policyOf("ipdestinationguard {\nroute **.routed.test {\nfwmark 7\n}\n}")
	r.wantText(r.ask(), wwwMapped)
	r.wantMapped("100.96.0.1 > 9.9.9.9")

	// New: it has to wait.
	const directive = "ipdestinationguard {\nmode nft-both\nroute **.new.test {\nfwmark 8\n}\n}"
	r.policy = policyOf(directive)
	done := make(chan string)
	c := r.at("127.0.0.1")
	go func() { done <- c.ask("www.new.test. A", "www.new.test. 30 A 9.9.9.10") }()
	select {
	case text := <-done:
		t.Errorf("answered too early: %s", text)
	case <-time.After(20 * time.Millisecond):
	}
	r.arm(directive)
	r.wantText(<-done, "www.new.test. 30 IN A 100.96.0.2\n")
}

// A late answer of an old Corefile goes by the new one.
func TestAnswersAfterTheirRoute(t *testing.T) {
	r := newRig(t, routedBoth)
	r.wantText(r.ask(), wwwMapped)
	had := r.policy
	r.arm("ipdestinationguard {\nmode nft-both\nroute **.routed.test {\nfwmark 7\nstate " + filepath.Join(t.TempDir(), "other.db") + "\n}\n}")
	r.wantText(r.at("127.0.0.1").ask("b.routed.test. A", "b.routed.test. 30 A 9.9.9.10"), "b.routed.test. 30 IN A 100.96.0.2\n") // the first is open to who asked for www
	r.policy = had
	r.wantText(r.ask(), strings.Replace(wwwMapped, "0.1", "0.3", 1))
}

// An alias has the route of the name that it leads to, also after that has become another.
func TestReloadKeepsAddressesOfAliases(t *testing.T) {
	block := func(options ...string) string {
		return "ipdestinationguard {\nmode nft-both\n" + strings.Join(options, "\n") + "\n}"
	}
	const direct, seven = "route **.routed.test", "route **.routed.test {\nfwmark 7\n}"
	for _, tt := range []struct {
		name     string
		restarts bool
		after    []string
		mark     uint32 // of the route of the alias's address
	}{
		{"another route", false, []string{seven}, 7},
		{"another route after a restart", true, []string{seven}, 7},
		{"another route that only some names have", false, []string{direct, "route www.routed.test {\nfwmark 7\n}"}, 7},
		{"another route of others", false, []string{direct, "route b.routed.test {\nfwmark 7\n}"}, 0},
		{"a route of its own", false, []string{direct, "route alias.test {\nfwmark 7\n}"}, 7},
		{"two at once", false, []string{seven, "route alias.test {\nfwmark 8\n}"}, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, block(direct))
			alias := func(to string) string {
				return r.at("127.0.0.1").ask("alias.test. A", "alias.test. 30 CNAME "+to+"\n"+to+" 30 A 9.9.9.9")
			}
			r.wantText(r.ask(), wwwMapped)
			alias("b.routed.test.")
			const answer = "alias.test. 30 IN A 100.96.0.2\n"
			r.wantText(alias("WWW.routed.test."), answer) // the last one counts
			if tt.restarts {
				r.restart(block(direct))
				r.wantText(alias("www.routed.test."), answer)
			}
			r.arm(block(tt.after...))
			for _, m := range r.kernel.Mappings() {
				if route := r.guard.rules.Route(m.Route); m.Mapped.String() == "100.96.0.2" && (route == nil || route.Mark != tt.mark) {
					t.Errorf("%v is of %v", m, route)
				}
			}
			if real := r.kernel.Connect(netip.MustParseAddr("100.96.0.2")); real.String() != "9.9.9.9" {
				t.Errorf("connected to %v", real)
			}
			r.wantText(alias("www.routed.test."), answer)
			r.wantText(r.ask(), wwwMapped)
		})
	}
}

// Who answers for an alias does not say which route other names have.
func TestAliasesMoveNobodyElse(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-both\nroute **.routed.test\nroute **.b.test {\nfwmark 7\n}\n}")
	r.wantText(r.ask(), wwwMapped)
	r.at("127.0.0.1").ask("www.routed.test. A", "www.routed.test. 30 CNAME x.b.test.\nx.b.test. 30 A 9.9.9.9")
	r.at("127.0.0.1").ask("alias.test. A", "alias.test. 30 CNAME www.routed.test.\nwww.routed.test. 30 CNAME x.b.test.\nx.b.test. 30 A 9.9.9.9")
	r.arm("ipdestinationguard {\nmode nft-both\nroute **.routed.test\nroute **.b.test {\nfwmark 8\n}\n}")
	for _, m := range r.kernel.Mappings() {
		if route := r.guard.rules.Route(m.Route); route == nil || route.Mark != 0 {
			t.Errorf("%v is of %v", m, route)
		}
	}
	r.wantText(r.ask(), wwwMapped)
}

// Where no name can have another route, a reload visits none.
func TestReloadVisitsNamesOnlyIfItMust(t *testing.T) {
	block := func(ttl, pattern, mark string) string {
		return "ipdestinationguard {\nmode nft-both\nroute " + pattern + " {\n" + ttl + "\n}\nroute **.b.test {\nfwmark " + mark + "\n}\n}"
	}
	first := block("ttl 1s 60s", "**.routed.test", "7")
	for _, tt := range []struct {
		name, after string
		visits      bool
	}{
		{"nothing changes", first, false},
		{"another TTL", block("ttl 1s 50s", "**.routed.test", "7"), false},
		{"another pattern", block("ttl 1s 60s", "*.routed.test", "7"), true},
		{"another mark", block("ttl 1s 60s", "**.routed.test", "8"), true},
		{"others in their place", block("ttl 1s 60s", "**.c.test", "7"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, first)
			// Astray, as no answer leaves it: a visit finds it.
			of := r.policy.routes[1]
			if _, err := of.book.Assign(t.Context(), &of.listed, "www.routed.test.", "", 0, []netip.Addr{netip.MustParseAddr("9.9.9.9")}, time.Minute); err != nil {
				t.Fatal(err)
			}
			r.arm(tt.after)
			if tt.name == "others in their place" {
				r.arm(first)
			}
			visited := len(r.kernel.Mappings()) > 0 && r.kernel.Mappings()[0].Route == r.policy.routes[0].kernel.Name
			if visited != tt.visits {
				t.Errorf("visited: %v, want %v", visited, tt.visits)
			}
		})
	}
}

// A second book makes the kernel forget what it knew of the first; it is told again.
func TestSecondBookKeepsMappedAddresses(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	r.kernel.Connect(netip.MustParseAddr("100.96.0.1"))
	r.arm("ipdestinationguard {\nmode nft-both\nroute **.routed.test\nroute **.b.test {\npool 10.9.0.0/16 fd09::/64\nstate " + filepath.Join(t.TempDir(), "other.db") + "\n}\n}")
	r.wantMapped("100.96.0.1 > 9.9.9.9")
	transactions := r.kernel.Transactions()
	r.wantText(r.ask(), wwwMapped)
	r.wantTransactions(transactions)
	if got := r.kernel.Connected(netip.MustParseAddr("100.96.0.1")); len(got) != 1 {
		t.Errorf("a live connection has ended")
	}
}

// A name keeps its addresses for as long as somebody may have a grant for them.
func TestUnusedOutlastsGrants(t *testing.T) {
	for directive, want := range map[string]time.Duration{
		"ipdestinationguard nft-local": 48 * time.Hour,
		"ipdestinationguard {\nmode nft-local\nttl 1s 100h\nmargin 10h\nlinger 1h\n}": 112 * time.Hour,
	} {
		s, _, err := parse(caddy.NewTestController("dns", directive))
		if err != nil || s.unused() != want {
			t.Error(s.unused(), err)
		}
	}
}

// A restart finds the names' addresses in the file.
func TestRestartKeepsMappedAddresses(t *testing.T) {
	r := newRig(t, routedBoth)
	r.at("127.0.0.1").ask("a.routed.test. A", "a.routed.test. 30 A 9.9.9.1")
	r.ask()
	if err := r.guard.close(); err != nil {
		t.Fatal(err)
	}
	again := newRig(t, "ipdestinationguard nft-both")
	again.book = r.book
	again.arm("ipdestinationguard {\nmode nft-both\nroute www.routed.test {\nfwmark 7\n}\n}")
	again.wantText(again.ask(), strings.Replace(wwwMapped, "0.1", "0.2", 1))
	again.wantMapped("100.96.0.2 > 9.9.9.9")
}

// When the kernel has lost what it knew, it is told again by the next answer.
func TestLostMappingsComeBack(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	r.kernel.Lose()
	r.wantText(r.ask(), wwwMapped)
	r.wantMapped("100.96.0.1 > 9.9.9.9")
}

// A name that nobody asks for gives its addresses back, once nothing is connected.
func TestUnusedNames(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	r.clock.advance(tidyUnused)
	r.guard.tidyOnce(t.Context())
	r.wantMapped()
	r.clock.advance(2 * tidyInterval)
	r.guard.tidyOnce(t.Context())
	r.wantText(r.at("127.0.0.1").ask("b.routed.test. A", "b.routed.test. 30 A 9.9.9.10"), strings.Replace(strings.Replace(wwwMapped, "www", "b", 1), "0.1", "0.2", 1))
}

// A running process takes them by itself.
func TestUnusedAddressesGoByThemselves(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-both")
	r.guard.interval = time.Millisecond
	r.arm(routedBoth)
	r.ask()
	r.clock.advance(tidyUnused)
	r.eventually("nothing is mapped", func() bool { return len(r.kernel.Mappings()) == 0 })
	before := metrics(t)["mappings_freed_total"]
	r.clock.advance(2 * tidyInterval)
	r.eventually("somebody else may have the address", func() bool { return metrics(t)["mappings_freed_total"] > before })
}

// The book and its folder are nobody else's.
func TestBookIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "mappings.db")
	r := newRig(t, "ipdestinationguard nft-local")
	r.book = path
	r.arm(routedBoth)
	for _, p := range []string{filepath.Dir(path), path} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v", p, info.Mode())
		}
	}
}

// A backend that cannot translate is told apart at the start.
func TestRoutesNeedARouter(t *testing.T) {
	type bare struct{ backend.Backend } // and nothing else
	g := newGuard(func(*backend.InForce, backend.Observer) backend.Backend { return bare{} }, alone, time.Now)
	err := g.prepareRoutes(&settings{found: found{policies: []*policy{{routes: []*namedRoute{{place: "Corefile:3"}}}}}})
	if err == nil || err.Error() != "Corefile:3: this kind of firewall cannot translate addresses, which routes need: leave them out" {
		t.Error(err)
	}
}

// What the guard has opened is closed, and nothing is answered any more.
func TestCloseWithRoutes(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	if err := r.guard.close(); err != nil {
		t.Fatal(err)
	}
	if text := r.ask(); !strings.HasPrefix(text, dns.RcodeToString[dns.RcodeServerFailure]) {
		t.Error(text)
	}
	removing := newRig(t, "ipdestinationguard {\nmode nft-both\non_exit remove\nroute **.routed.test\n}")
	if err := removing.guard.close(); err != nil {
		t.Fatal(err)
	}
	removing.wantText(removing.ask(), "www.routed.test. 30 IN A 9.9.9.9\n")
}

func TestFreeAddressesAreCountedFromTheStart(t *testing.T) {
	r := newRig(t, routedBoth)
	if v4, v6 := r.routing.Load().books()[0].Len(); v4.Free == 0 || v6.Free == 0 {
		t.Errorf("free are %d of IPv4, %d of IPv6", v4.Free, v6.Free)
	}
}

// stubborn refuses to change the rules once more than so many times.
type stubborn struct {
	*fake.Backend
	opens int
}

func (b *stubborn) Open(r backend.Rules) error {
	if b.opens--; b.opens < 0 {
		return errors.New("no")
	}
	return b.Backend.Open(r)
}

// The new routes are in force although those of before cannot go; they go by the next change.
func TestRoutesOfBeforeThatCannotGo(t *testing.T) {
	r := newRig(t, routedBoth)
	r.wantText(r.ask(), wwwMapped)
	kernel := &stubborn{r.kernel, 1}
	r.guard.backend = kernel
	r.arm("ipdestinationguard {\nmode nft-both\nroute **.routed.test {\nfwmark 7\n}\nroute **.new.test {\nfwmark 8\n}\n}")
	r.wantText(r.ask(), wwwMapped)
	r.wantText(r.at("127.0.0.1").ask("www.new.test. A", "www.new.test. 30 A 9.9.9.10"), "www.new.test. 30 IN A 100.96.0.2\n")
	r.wantMapped("100.96.0.1 > 9.9.9.9", "100.96.0.2 > 9.9.9.10")
	if n := len(r.guard.rules.Routes); n != 3 {
		t.Fatalf("%d routes", n)
	}
	kernel.opens = 1
	r.guard.arming.Lock()
	err := r.guard.enforce(r.guard.settings.Load(), nil)
	r.guard.arming.Unlock()
	if n := len(r.guard.rules.Routes); err != nil || n != 2 {
		t.Errorf("%v, %d routes", err, n)
	}
	r.wantText(r.ask(), wwwMapped)
}

// It is counted what names have, and what is left for others.
func TestMappingsAreCounted(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-both\nroute **.routed.test {\npool 10.9.0.0/29 fd09::/64\n}\n}")
	process.Lock()
	was := process.guard
	process.guard = r.guard
	process.Unlock()
	defer func() {
		process.Lock()
		process.guard = was
		process.Unlock()
	}()
	r.ask()
	now := metrics(t)
	for key, want := range map[string]float64{"mappings{ipv4}": 1, "mappings{ipv6}": 0, "mappings_free{ipv4}": 5} {
		if now[key] != want {
			t.Errorf("%s is %v, want %v", key, now[key], want)
		}
	}
}

// Who gives the machine an address in a pool, while it runs, is told so.
func TestOverlapIsLogged(t *testing.T) {
	var lines strings.Builder
	stdlog.SetOutput(&lines)
	defer stdlog.SetOutput(os.Stderr)
	r := newRig(t, routedBoth)
	addrs := []string{"192.0.2.1/24", "100.100.7.7/10"}
	for i, want := range []string{"", "pool 100.96.0.0/11 overlaps 100.64.0.0/10, where this machine now has the address 100.100.7.7: one of the two does not work. Give the route another pool\n"} {
		r.guard.host.addresses = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(addrs[i])} }
		changed := make(chan struct{}, 1)
		changed <- struct{}{}
		close(changed)
		r.guard.follow(changed)
		if got := lines.String(); !strings.HasSuffix(got, want) || want == "" && got != "" {
			t.Errorf("with %s: %q, want %q", addrs[i], got, want)
		}
	}
}
