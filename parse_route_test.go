package ipdestinationguard

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// routeText spells out a route, defaults too.
func routeText(r *namedRoute) string {
	var text strings.Builder
	line := func(values ...any) { fmt.Fprintln(&text, strings.Trim(fmt.Sprint(values...), "[]")) }
	line("route ", strings.Join(r.patterns, " "))
	for _, pool := range r.pools {
		line("pool ", pool)
	}
	line("slots ", r.slots)
	for _, addr := range r.egress {
		line("egress ", addr)
	}
	if r.masquerade {
		line("egress masquerade")
	}
	if r.out != "" {
		line("out ", r.out)
	}
	if r.mark != 0 {
		line("fwmark ", r.mark)
	}
	line("ttl ", r.floor, " ", r.ceiling)
	line("family ", r.family)
	if text := r.predicates.String(); text != "" {
		line("for ", text)
	}
	if r.cut {
		line("cut")
	}
	if r.state != "" {
		line("state ", r.state)
	}
	return text.String()
}

const (
	defaultPoolsText = "pool 100.96.0.0/11\npool fd00:2021:1111:8000::/107\n"
	defaultRoute     = defaultPoolsText + "slots 4\nttl 1 60\nfamily both\n"
)

func TestParseRoute(t *testing.T) {
	for _, tt := range []struct{ name, options, want string }{
		{"defaults", "route a.test", "route a.test\n" + defaultRoute},
		{"an empty block", "route a.test {\n}", "route a.test\n" + defaultRoute},
		{"two", "route a.test *.b.test\nroute c.test", "route a.test *.b.test\n" + defaultRoute + "route c.test\n" + defaultRoute},
		{"one within others' lines", "canary on\nroute a.test {\nslots 4\n}\ncanary off\nroute c.test",
			"given twice"},
		{"every option", `route **.a.test {
			pool 10.9.0.0/16 10.8.0.0/16
			pool fd09::/64
			slots 2
			egress 2001:db8::7 192.0.2.7
			out wg0
			fwmark 0x100
			ttl 500ms 90s
			family both
			ports tcp/443
			ports udp/443
			on_change cut
			state /var/lib/x/a.db
		}`, "route **.a.test\npool 10.8.0.0/16\npool 10.9.0.0/16\npool fd09::/64\nslots 2\negress 192.0.2.7\negress 2001:db8::7\nout wg0\nfwmark 256\nttl 1 90\nfamily both\nfor tcp/443, udp/443\ncut\nstate /var/lib/x/a.db\n"},
		{"the block's ports", "ports tcp/80\nroute a.test\nroute b.test {\nports tcp/443\n}\nusers 7",
			"route a.test\n" + defaultRoute + "for tcp/80, user 7\nroute b.test\n" + defaultRoute + "for tcp/443, user 7\n"},
		{"the family of its egress", "route a.test {\negress 192.0.2.7\n}\nroute b.test {\negress 2001:db8::7\n}",
			"route a.test\npool 100.96.0.0/11\nslots 4\negress 192.0.2.7\nttl 1 60\nfamily ipv4\n" +
				"route b.test\npool fd00:2021:1111:8000::/107\nslots 4\negress 2001:db8::7\nttl 1 60\nfamily ipv6\n"},
		{"a pool of one IP version", "route a.test {\npool 10.9.0.0/16\nttl 0s 1s\n}",
			"route a.test\npool 10.9.0.0/16\npool fd00:2021:1111:8000::/107\nslots 4\nttl 0 1\nfamily both\n"},
		{"a pool of the one IP version", "route a.test {\npool 203.0.113.0/24\nfamily ipv4\negress masquerade\n}",
			"route a.test\npool 203.0.113.0/24\nslots 4\negress masquerade\nttl 1 60\nfamily ipv4\n"},
		{"names that open nothing", "names **.b.test\nexcept c.b.test\nroute a.test b.test *.test\nroute C.b.test. {\nslots 4\n}",
			"route a.test b.test *.test\n" + defaultRoute + "route C.b.test.\n" + defaultRoute +
				"warning: Testfile:4: route a.test: names or except of this server block shut it out: it opens nothing, and has this route only where another name leads to it\n" +
				"warning: Testfile:5: route C.b.test.: names or except of this server block shut it out: it opens nothing, and has this route only where another name leads to it\n"},
		{"host bits", "route a.test {\npool 10.9.0.1/16\n}",
			"route a.test\npool 10.9.0.0/16\npool fd00:2021:1111:8000::/107\nslots 4\nttl 1 60\nfamily both\nwarning: Testfile:3: 10.9.0.1/16 means all of 10.9.0.0/16\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\n"+tt.options+"\n}"))
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) {
					t.Fatal(err)
				}
				return
			}
			var got string
			for _, r := range p.routes {
				got += routeText(r)
			}
			for _, w := range p.warnings {
				got += "warning: " + w + "\n"
			}
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// What stands behind the block of a route is read as before.
func TestParseBehindRoute(t *testing.T) {
	s, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nroute a.test {\nslots 1\n}\nmode nft-local\nmax_mappings 10\ncanary off\n}"))
	if err != nil {
		t.Fatal(err)
	}
	if s.mode != modeLocal || p.canary || s.limits.mappings != 10 || p.routes[0].place != "Testfile:2" {
		t.Errorf("%+v %+v", s, p)
	}
	if s, _, _ := parse(caddy.NewTestController("dns", "ipdestinationguard nft-local")); s.limits.mappings != 262144 {
		t.Error(s.limits)
	}
}

// A path is within the server's root, if it has one.
func TestParseRouteState(t *testing.T) {
	c := caddy.NewTestController("dns", "ipdestinationguard {\nroute a.test {\nstate x/a.db\n}\n}")
	dnsserver.GetConfig(c).Root = "/srv"
	_, p, err := parse(c)
	if err != nil || p.routes[0].state != "/srv/x/a.db" {
		t.Error(p, err)
	}
}

func TestParseRouteMistakes(t *testing.T) {
	for _, tt := range []struct{ name, options, want string }{
		{"no pattern", "route {\n}", `Testfile:2 - Error during parsing: route needs a value`},
		{"no pattern at all", "route", `Testfile:2 - Error during parsing: route needs a value`},
		{"a pattern that is none", "canary on\nroute a*.test", `Testfile:3 - Error during parsing: route: "a*.test": * stands for a whole label`},
		{"every name", "route **", `Testfile:2 - Error during parsing: route: "**": the last label has to be written out, as in **.example.org`},
		{"a top-level domain that is open", "route www.*", `Testfile:2 - Error during parsing: route: "www.*": the last label has to be written out`},
		{"an address", "route 140.82.121.3 {\n}", `Testfile:2 - Error during parsing: route "140.82.121.3" is an address or a network, or part of one, and no name ends like that: write the name that is looked up`},
		{"an IPv6 address", "route a.test 2001:db8::1", `Testfile:2 - Error during parsing: route "2001:db8::1" is an address or a network`},
		{"a network", "route 140.82.121.0/24", `Testfile:2 - Error during parsing: route "140.82.121.0/24" is an address or a network`},
		{"names with commas", "route github.com, **.github.com", `Testfile:2 - Error during parsing: route: "github.com,": ',' is in no host name: patterns stand apart by blanks (in a file, by lines), without commas. If the name has this character, it is written \044`},
		{"a pattern in two routes", "route a.test b.test\nroute B.Test. {\nslots 1\n}",
			`Testfile:3 - Error during parsing: route B.Test. stands at Testfile:2 already: whose is it? Take it out of one of the two`},
		{"in one line", "route a.test { slots 1 }", `Testfile:2 - Error during parsing: slots: the } that ends the route stands on a line of its own`},
		{"unknown option", "route a.test {\npools 10.9.0.0/16\n}", `Testfile:3 - Error during parsing: unknown option "pools" in route PATTERN... { }: did you mean pool?`},
		{"an option like no other", "route a.test {\nsecret 1\n}", `Testfile:3 - Error during parsing: unknown option "secret" in route PATTERN... { }: there are egress, family, fwmark, on_change, out, pool, ports, slots, state, ttl`},
		{"an option of all", "canary on\nroute a.test {\nmode nft-local\n}", `Testfile:4 - Error during parsing: unknown option "mode" in route PATTERN... { }: it belongs in ipdestinationguard { }, behind the } of the block which begins at Testfile:3`},
		{"no end", "route a.test {\nslots 1\nforward . 192.0.2.53", `Testfile:4 - Error during parsing: unknown option "forward" in route PATTERN... { }: that is a directive of CoreDNS: is the } missing that ends the block which begins at Testfile:2?`},
		{"an option twice", "route a.test {\nslots 1\nslots 2\n}", `Testfile:4 - Error during parsing: slots is given twice, first in line 3`},
		{"an option without a value", "route a.test {\npool\n}", `Testfile:3 - Error during parsing: pool needs a value`},

		{"an address for a pool", "route a.test {\npool 10.9.0.1\n}", `Testfile:3 - Error during parsing: pool "10.9.0.1" is no network: write for example 10.9.0.0/16`},
		{"no pool", "route a.test {\npool 10.9/16\n}", `Testfile:3 - Error during parsing: "10.9/16" is not an IP address or a network`},
		{"a pool of loopback addresses", "route a.test {\npool 127.1.0.0/16\n}", `Testfile:3 - Error during parsing: pool 127.1.0.0/16: packets to such addresses are not routed`},
		{"a pool of multicast addresses", "route a.test {\npool ff05::/64\n}", `Testfile:3 - Error during parsing: pool ff05::/64: packets to such addresses are not routed`},
		{"a pool of link-local addresses", "route a.test {\npool 169.254.0.0/16\n}", `Testfile:3 - Error during parsing: pool 169.254.0.0/16: packets`},
		{"a pool of all addresses", "route a.test {\npool ::/0\n}", `Testfile:3 - Error during parsing: pool ::/0: packets`},
		{"pools that overlap", "route a.test {\npool 10.9.0.0/16\npool 10.9.1.0/24\n}", `Testfile:4 - Error during parsing: pool 10.9.0.0/16 and pool 10.9.1.0/24 overlap: write each address once`},
		{"a pool for too few", "route a.test {\nslots 4\npool 10.9.0.0/30\n}", `Testfile:4 - Error during parsing: pool: there is room for 2 addresses, and one name alone has slots 4: make it larger`},
		{"a pool of sentinels", "route a.test {\npool 100.100.111.0/25\n}", `Testfile:3 - Error during parsing: pool 100.100.111.0/25: its addresses are the sentinels', who have all of 100.100.111.0/24 (sentinel/README.md): take another network, as 10.9.0.0/16`},
		{"a pool that is half sentinels", "route a.test {\npool 100.100.110.0/23\nslots 64\n}", ""},
		{"a pool of the wrong IP version", "route a.test {\nfamily ipv4\npool fd09::/64\npool 10.9.0.0/16\n}", `Testfile:5 - Error during parsing: pool has a network that is not of the route's family, ipv4: leave it out`},

		{"slots that are none", "route a.test {\nslots 0\n}", `Testfile:3 - Error during parsing: slots "0" is not a number between 1 and 64`},
		{"an egress by name", "route a.test {\negress eth0\n}", `Testfile:3 - Error during parsing: egress "eth0" is not an address of this machine, and not the word masquerade; an interface belongs in: out eth0`},
		{"an egress that is no address", "route a.test {\negress 192.0.2.300\n}", `Testfile:3 - Error during parsing: egress "192.0.2.300" is not an address of this machine, and not the word masquerade`},
		{"a network for an egress", "route a.test {\negress 192.0.2.7/32\n}", `Testfile:3 - Error during parsing: egress "192.0.2.7/32": write the address alone: 192.0.2.7`},
		{"an egress with a port", "route a.test {\negress 192.0.2.7:443\n}", `Testfile:3 - Error during parsing: egress "192.0.2.7:443": write the address alone: 192.0.2.7`},
		{"an IPv6 egress with a port", "route a.test {\negress [2001:db8::7]:443\n}", `Testfile:3 - Error during parsing: egress "[2001:db8::7]:443": write the address alone: 2001:db8::7`},
		{"an egress with a comma", "route a.test {\negress 192.0.2.7, 2001:db8::7\n}", `Testfile:3 - Error during parsing: egress "192.0.2.7,": write the address alone: 192.0.2.7`},
		{"a word and an egress", "route a.test {\negress masquerade 192.0.2.7\n}", `Testfile:3 - Error during parsing: egress masquerade 192.0.2.7: it is either masquerade or addresses, not both`},
		{"an egress and a word", "route a.test {\negress 192.0.2.7 masquerade\n}", `Testfile:3 - Error during parsing: egress 192.0.2.7 masquerade: it is either masquerade or addresses, not both`},
		{"two egress addresses of one IP version", "route a.test {\negress 192.0.2.7 2001:db8::7 192.0.2.8\n}", `Testfile:3 - Error during parsing: egress 192.0.2.8 is a second address of its IP version`},
		{"an egress that nobody can answer", "route a.test {\negress 127.0.0.1\n}", `Testfile:3 - Error during parsing: egress 127.0.0.1: nobody elsewhere can answer such an address`},
		{"an egress of the wrong family", "route a.test {\nfamily ipv6\negress 192.0.2.7\n}", `Testfile:4 - Error during parsing: egress has an address for ipv4, and family is ipv6`},
		{"an egress of one family only", "route a.test {\negress 192.0.2.7\nfamily both\n}", `Testfile:4 - Error during parsing: family both: egress has no address for ipv6, which would leave with any. Add one, or write family ipv4`},
		{"an out that is no name", "route a.test {\nout a/b\n}", `Testfile:3 - Error during parsing: "a/b" cannot be the name of an interface`},
		{"out with a wildcard", "route a.test {\nout wg*\n}", `Testfile:3 - Error during parsing: interface name "wg*": there are no wildcards`},
		{"out to this machine", "route a.test {\nout lo\n}", `Testfile:3 - Error during parsing: out lo: traffic leaves this machine by another interface`},
		{"two outs", "route a.test {\nout wg0 wg1\n}", `Testfile:3 - Error during parsing: out takes one value, not "wg0 wg1"`},
		{"no mark", "route a.test {\nfwmark 0\n}", `Testfile:3 - Error during parsing: fwmark "0" is not a number between 1 and 0xffffffff`},
		{"a mask for a mark", "route a.test {\nfwmark 1/0xff\n}", `Testfile:3 - Error during parsing: fwmark "1/0xff" is not a number`},
		{"one value for ttl", "route a.test {\nttl 1s\n}", `Testfile:3 - Error during parsing: ttl takes two values, FLOOR and CEILING, not "1s"`},
		{"floor above ceiling", "route a.test {\nttl 2s 1s\n}", `Testfile:3 - Error during parsing: ttl 2s 1s: the floor is above the ceiling`},
		{"a family that is none", "route a.test {\nfamily inet\n}", `Testfile:3 - Error during parsing: family "inet": it is both, ipv4 or ipv6`},
		{"an unknown change", "route a.test {\non_change drop\n}", `Testfile:3 - Error during parsing: on_change "drop": it is keep (connections to an address that the name no longer has go on) or cut`},
		{"ports without a protocol", "route a.test {\nports 443\n}", `Testfile:3 - Error during parsing: ports "443": write the protocol first`},
		{"mappings without a number", "max_mappings many", `Testfile:2 - Error during parsing: max_mappings "many" is not a number between 1 and 16777216`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\n"+tt.options+"\n}"))
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)):
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}
