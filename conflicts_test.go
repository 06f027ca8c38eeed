package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

// What cannot be together is told before anything is touched, with both places.
func TestRouteConflicts(t *testing.T) {
	block := func(options ...string) string {
		return "ipdestinationguard {\nmode nft-both\n" + strings.Join(options, "\n") + "\n}"
	}
	for _, tt := range []struct{ name, first, second, want string }{
		{"one route", block("route a.test"), "", ""},
		{"two with the same pools", block("route a.test"), block("route b.test {\negress 192.0.2.7\n}"), ""},
		{"the same in other words", block("route a.test {\npool 10.9.0.0/16 10.8.0.0/16\n}"), block("route b.test {\npool 10.8.0.0/16\npool 10.9.0.0/16\n}"), ""},
		{"two of one block", block("route a.test {\npool 10.9.0.0/16\n}\nroute b.test {\npool 10.9.1.0/24\n}"), "",
			"Testfile:6: pool 10.9.1.0/24 overlaps pool 10.9.0.0/16 of the route at Testfile:3: routes have the same pool, or none in common"},
		{"two of two blocks", block("route a.test {\npool 10.9.0.0/16\n}"), block("canary on\nroute b.test {\npool 10.9.1.0/24\n}"),
			"Testfile:4: pool 10.9.1.0/24 overlaps pool 10.9.0.0/16 of the route at Testfile:3"},
		{"one pool of two", block("route a.test {\npool 10.9.0.0/16 10.8.0.0/16\n}"), block("canary on\nroute b.test {\npool 10.9.0.0/16\n}"),
			"Testfile:4: pool 10.9.0.0/16 is that of the route at Testfile:3 too, and one of them has more"},
		{"two books of one pool", block("route a.test {\nstate /x/a.db\n}"), block("canary on\nroute b.test {\nstate /x/b.db\n}"),
			"Testfile:4: pool 100.96.0.0/11 is that of the route at Testfile:3 too, and their states are two files, /x/b.db and /x/a.db"},
		{"a book of its own and the default one", block("route a.test {\nstate /x/a.db\n}"), block("canary on\nroute b.test"),
			"Testfile:4: pool 100.96.0.0/11 is that of the route at Testfile:3 too, and their states are two files, /state/mappings.db and /x/a.db"},
		{"two books of two pools", block("route a.test {\nfamily ipv4\nstate /x/a.db\n}"), block("route b.test {\nfamily ipv4\npool 10.9.0.0/16\nstate /x/b.db\n}"), ""},
		{"open to everybody", block("allowedIPs 9.9.9.9 100.64.0.0/10", "route a.test"), "",
			"Testfile:4: pool 100.96.0.0/11 overlaps allowedIPs 100.64.0.0/10 of Testfile:1: mapped addresses are open to those only who have asked. Give the route another pool, or take it out of allowedIPs"},
		{"open to clients", block("allowedGatewayIPs fd00::/8", "route a.test"), "", "Testfile:4: pool fd00:2021:1111:8000::/107 overlaps allowedGatewayIPs fd00::/8"},
		{"open to this machine", block("allowedLocalIPs 100.96.0.1", "route a.test"), "", "Testfile:4: pool 100.96.0.0/11 overlaps allowedLocalIPs 100.96.0.1/32"},
		{"an upstream", block("upstream 100.100.2.136", "route a.test"), "", "Testfile:4: upstream 100.100.2.136 of Testfile:1 is in pool 100.96.0.0/11: give the route another pool"},
		{"an address of the machine", block("route a.test {\npool 192.0.0.0/16\n}"), "",
			"Testfile:3: pool 192.0.0.0/16 overlaps 192.0.2.0/24, where this machine has its address 192.0.2.7: give the route another pool, that nobody uses here"},
		{"a network of the machine", block("route a.test {\npool 192.0.2.64/26\n}"), "", "Testfile:3: pool 192.0.2.64/26 overlaps 192.0.2.0/24, where"},
		{"an egress from a pool", block("route a.test {\negress 10.9.0.7\n}\nroute b.test {\npool 10.9.0.0/16\n}"), "",
			"Testfile:3: egress 10.9.0.7 is in the pool of the route at Testfile:6, and packets to it would be refused: take an address of this machine"},
		{"an egress that is not there", block("route a.test {\negress 192.0.2.8\n}"), "",
			"warning: Testfile:3: egress 192.0.2.8 is no address of this machine now: replies find back only if it is routed here"},
		{"an interface that is not there", block("route a.test {\nout wg7\n}"), "",
			"warning: Testfile:3: out wg7: there is no such interface now, and what this route's names lead to is refused until there is one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("STATE_DIRECTORY", "/state:/other")
			s, p, err := parse(caddy.NewTestController("dns", tt.first))
			if err != nil {
				t.Fatal(err)
			}
			routes := p.routes
			if tt.second != "" {
				_, p, err := parse(caddy.NewTestController("dns", tt.second))
				if err != nil {
					t.Fatal(err)
				}
				routes = append(routes, p.routes...)
			}
			got := ""
			err = s.settleRoutes(routes, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("192.0.2.7/24")}, func(format string, args ...any) {
				got = "warning: " + fmt.Sprintf(format, args...)
			})
			if err != nil {
				got = err.Error()
			}
			if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// To the kernel, routes differ in how traffic leaves, and in nothing else.
func TestKernelRoutes(t *testing.T) {
	const egress = "egress 192.0.2.7"
	for _, tt := range []struct {
		name, first, second string
		same                bool
	}{
		{"other names", "route a.test", "route b.test", true},
		{"other slots, TTLs, ports", "route a.test", "route a.test {\nslots 2\nttl 2s 3s\nports tcp/1\non_change cut\n}", true},
		{"masquerading spelled out", "route a.test", "route a.test {\negress masquerade\n}", true},
		{"another pool", "route a.test", "route a.test {\npool 10.9.0.0/16\n}", false},
		{"another egress", "route a.test", "route a.test {\n" + egress + "\n}", false},
		{"another way", "route a.test", "route a.test {\nout wg0\n}", false},
		{"another mark", "route a.test {\nfwmark 1\n}", "route a.test {\nfwmark 2\n}", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var names []string
			for _, text := range []string{tt.first, tt.second} {
				s, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nmode nft-gateway\n"+text+"\n}"))
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, s.kernelRoute(p.routes[0]).Name)
			}
			if (names[0] == names[1]) != tt.same {
				t.Error(names)
			}
		})
	}
	for mode, transparent := range map[string]bool{modeLocal: true, modeGateway: false, modeBoth: false} {
		for options, never := range map[string]bool{"": false, "{\negress masquerade\n}": true, "{\n" + egress + "\n}": true} {
			s, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nmode "+mode+"\nroute a.test "+options+"\n}"))
			if err != nil {
				t.Fatal(err)
			}
			if got := s.kernelRoute(p.routes[0]).Transparent; got != (transparent && !never) {
				t.Errorf("%s %q: transparent is %v", mode, options, got)
			}
		}
	}
}

func TestStatePath(t *testing.T) {
	s := settings{table: "tab"}
	t.Setenv("STATE_DIRECTORY", "")
	if got := s.statePath(); got != "/var/lib/ipdestinationguard/tab.db" {
		t.Error(got)
	}
	t.Setenv("STATE_DIRECTORY", "/var/lib/coredns:/var/lib/other")
	if got := s.statePath(); got != "/var/lib/coredns/mappings.db" {
		t.Error(got)
	}
}

func TestBooksThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ name, path, want string }{
		{"a folder", dir, "is a directory: name a file, as in: state " + dir + "/mappings.db"},
		{"below a file", "/dev/null/x.db", "not a directory"},
		{"where nobody can write", "/proc/x/y.db", "CoreDNS needs a place to write: StateDirectory= in its systemd unit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			err := r.guard.openBooks([]*namedRoute{{place: "Corefile:7", state: tt.path}})
			if err == nil || !strings.HasPrefix(err.Error(), "Corefile:7: mapped addresses cannot be kept: ") || !strings.Contains(err.Error(), tt.want) {
				t.Error(err)
			}
		})
	}
	// Another process has it.
	path := filepath.Join(dir, "x.db")
	first, second := newRig(t, "ipdestinationguard nft-local"), newRig(t, "ipdestinationguard nft-local")
	if err := first.guard.openBooks([]*namedRoute{{state: path}}); err != nil {
		t.Fatal(err)
	}
	if err := second.guard.openBooks([]*namedRoute{{state: path}}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Error(err)
	}
	first.guard.closeBooks(nil)
	if err := second.guard.openBooks([]*namedRoute{{state: path}}); err != nil {
		t.Error(err)
	}
	second.guard.closeBooks(nil)
}

// Routes of all server blocks are one firewall's; a reload that cannot be leaves them.
func TestRoutesOfAWholeCorefile(t *testing.T) {
	dir := t.TempDir()
	routed := func(name, pool, state string) string {
		return "route **." + name + ".test {\n  family ipv4\n  pool " + pool + "\n  state " + filepath.Join(dir, state) + "\n }"
	}
	c := newCoreDNS(t)
	first := "ipdestinationguard nft-both {\n " + routed("a", "10.203.0.0/16", "a.db") + "\n }"
	second := "ipdestinationguard {\n " + routed("b", "10.203.0.0/16", "a.db") + "\n " + routed("c", "10.204.0.0/16", "c.db") + "\n }"
	c.mustLoad(corefile(first, second))
	rules := func() (pools []string) {
		for _, k := range running().rules.Routes {
			pools = append(pools, k.Pools[0].String())
		}
		return pools
	}
	if got := rules(); len(got) != 2 || running().rules.MaxMappings != defaultLimits.mappings || running().rules.Book == "" {
		t.Errorf("in force: %v", running().rules)
	}
	book := running().rules.Book
	for name, second := range map[string]string{
		"pools that overlap":      "ipdestinationguard {\n " + routed("b", "10.203.1.0/24", "b.db") + "\n }",
		"a book that cannot open": "ipdestinationguard {\n " + routed("b", "10.205.0.0/16", "a.db/x.db") + "\n }",
	} {
		if err := c.load(corefile(first, second)); err == nil || !strings.Contains(err.Error(), "Corefile:") {
			t.Errorf("%s: %v", name, err)
		}
		if running().rules.Book != book || len(rules()) != 2 || len(running().books.list()) != 2 {
			t.Errorf("%s: in force: %v", name, running().rules)
		}
	}
	c.mustLoad(corefile(first))
	if len(rules()) != 1 || running().rules.Book == book || len(running().books.list()) != 1 {
		t.Errorf("in force: %v", running().rules)
	}
	c.mustLoad(corefile("ipdestinationguard nft-both"))
	if len(rules()) != 0 || running().rules.MaxMappings != 0 || len(running().books.list()) != 0 {
		t.Errorf("in force: %v", running().rules)
	}
}
