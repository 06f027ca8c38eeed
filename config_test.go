package ipdestinationguard

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

// settingsText spells out settings as a block of the Corefile, defaults too.
func settingsText(s *settings) string {
	if s == nil {
		return "joins\n"
	}
	var text strings.Builder
	line := func(option string, values ...any) {
		if len(values) > 0 {
			fmt.Fprintln(&text, option, strings.Trim(fmt.Sprint(values...), "[]"))
		}
	}
	line("mode", s.mode)
	if len(s.allowed) > 0 {
		line("allowedIPs", s.allowed)
	}
	if len(s.allowedLocal) > 0 {
		line("allowedLocalIPs", s.allowedLocal)
	}
	if len(s.allowedGateway) > 0 {
		line("allowedGatewayIPs", s.allowedGateway)
	}
	if len(s.interfaces) > 0 {
		line("interfaces", s.interfaces)
	}
	if s.scope == scopeApplication || s.scope == scopeClient != s.gateway() {
		line("scope", s.scopeText())
	}
	if !s.shared.empty() {
		line("shared_resolver", s.shared)
	}
	if len(s.upstreams) > 0 {
		line("upstream", s.upstreams)
	}
	if s.upstreamSentinel {
		line("upstream", sentinelName)
	}
	if s.capture {
		line("capture", "")
	}
	if s.linger > 0 {
		line("linger", s.linger)
	}
	if s.limits != defaultLimits {
		line("limits", s.limits)
	}
	if s.dnsPorts {
		line("dns_ports", "open")
	}
	if len(s.forwarders) > 0 {
		line("trusted_forwarder", s.forwarders)
	}
	line("margin", s.lease.Margin)
	line("ttl", s.lease.Floor, " ", s.lease.Ceiling)
	line("hold", s.hold)
	line("on_exit", leaveText(s.onExit))
	line("table", s.table)
	return text.String()
}

// policyText is the same of what a block says of itself; names are not told.
func policyText(p *policy) string {
	var text strings.Builder
	for _, r := range p.private {
		fmt.Fprintln(&text, "private", r.networks)
	}
	if predicates := p.predicates.String(); predicates != "" {
		fmt.Fprintln(&text, "for", predicates)
	}
	if !p.canary {
		fmt.Fprintln(&text, "canary off")
	}
	for _, w := range p.warnings {
		if !strings.Contains(w, "there is no cgroup") { // it depends on the machine
			fmt.Fprintln(&text, "warning:", w)
		}
	}
	return text.String()
}

const defaultsText = "margin 30s\nttl 1m0s 24h0m0s\nhold 1s\non_exit keep\ntable ipdestinationguard\n"

func TestParse(t *testing.T) {
	tests := []struct{ name, input, want string }{
		{"inline", `ipdestinationguard nft-local`, "mode nft-local\n" + defaultsText},
		{"inline with allowed", `ipdestinationguard nft-gateway 192.0.2.1 10.0.0.0/8 2001:db8::/32`,
			"mode nft-gateway\nallowedIPs 192.0.2.1/32 10.0.0.0/8 2001:db8::/32\n" + defaultsText},
		{"block", `ipdestinationguard {
			mode nft-both
		}`, "mode nft-both\n" + defaultsText},
		{"inline and block", `ipdestinationguard nft-both 192.0.2.1 {
			allowedIPs 192.0.2.2
			margin 1m
		}`, "mode nft-both\nallowedIPs 192.0.2.1/32 192.0.2.2/32\nmargin 1m0s\n" + strings.TrimPrefix(defaultsText, "margin 30s\n")},
		{"every option", `ipdestinationguard {
			mode nft-both
			allowedIPs 192.0.2.1 192.0.2.1
			allowedIPs ::/0 0.0.0.0/0
			allowedLocalIPs 9.9.9.9 2620:fe::fe
			allowedLocalIPs 149.112.112.112
			allowedGatewayIPs 198.51.100.0/24
			allowedGatewayIPs 2001:db8::/32
			interfaces lan0 eth0.17
			interfaces fifteen-bytes-x lan0
			margin 0s
			ttl 0 1h
			hold 250ms
			on_exit remove
			table my_guard-1.x
		}`, `mode nft-both
allowedIPs 192.0.2.1/32 192.0.2.1/32 ::/0 0.0.0.0/0
allowedLocalIPs 9.9.9.9/32 2620:fe::fe/128 149.112.112.112/32
allowedGatewayIPs 198.51.100.0/24 2001:db8::/32
interfaces lan0 eth0.17 fifteen-bytes-x
margin 0s
ttl 0s 1h0m0s
hold 250ms
on_exit remove
table my_guard-1.x
`},
		{"IPv4-mapped IPv6 is IPv4", `ipdestinationguard nft-local ::ffff:192.0.2.1 ::ffff:10.0.0.0/104`,
			"mode nft-local\nallowedIPs 192.0.2.1/32 10.0.0.0/8\n" + defaultsText},
		{"the bare word", `ipdestinationguard`, "joins\n"},
		{"an empty block", `ipdestinationguard {
		}`, "joins\n"},
		{"only what is the block's own", `ipdestinationguard {
			private **.home.arpa
			canary off
		}`, "joins\nprivate []\ncanary off\n"},
		{"private", `ipdestinationguard nft-local {
			private a.test *.b.test
			private ** 10.0.0.0/8 fd00::/8
			private c.test ::ffff:192.168.1.1 127.0.0.2/8
			private d.test 169.254.169.254
			canary on
		}`, "mode nft-local\n" + defaultsText +
			"private []\nprivate [10.0.0.0/8 fd00::/8]\nprivate [192.168.1.1/32 127.0.0.0/8]\nprivate [169.254.169.254/32]\n" +
			"warning: Testfile:4: 127.0.0.2/8 means all of 127.0.0.0/8\n"},
		{"scope application", `ipdestinationguard {
			mode nft-both
			scope application uid
			shared_resolver 102 systemd-resolved.service
			shared_resolver unified/../system.slice/nscd.service 101 102
		}`, "mode nft-both\nscope application uid\nshared_resolver 101 102 /system.slice/nscd.service /system.slice/systemd-resolved.service\n" + defaultsText},
		{"classes", `ipdestinationguard {
			ports udp/443 tcp/8000-8010 tcp/443 tcp/8005-8020 tcp/8021
			users root 33 0
			units cron.service unified/user.slice
			ports sctp/0-65535
		}`, "joins\nfor tcp/443, tcp/8000-8021, udp/443, sctp/0-65535, user 0, user 33, unit /system.slice/cron.service, unit /user.slice\n"},
		{"upstream", `ipdestinationguard {
			mode nft-local
			upstream 192.0.2.53 192.0.2.54:5353 2001:db8::53 [2001:db8::54]:853 [2001:db8::55]
			upstream ::ffff:192.0.2.55
		}`, "mode nft-local\nupstream 192.0.2.53:0 192.0.2.54:5353 [2001:db8::53]:0 [2001:db8::54]:853 [2001:db8::55]:0 192.0.2.55:0\n" + defaultsText},
		{"upstream of sentinels", `ipdestinationguard {
			mode nft-local
			upstream 192.0.2.53 sentinel
		}`, "mode nft-local\nupstream 192.0.2.53:0\nupstream sentinel\n" + defaultsText},
		{"capture and linger", `ipdestinationguard {
			mode nft-gateway
			interfaces lan0
			capture
			linger 10m
		}`, "mode nft-gateway\ninterfaces lan0\ncapture \nlinger 10m0s\n" + defaultsText},
		{"limits", `ipdestinationguard {
			mode nft-gateway
			max_grants 100000
			max_grants_client 1000
			max_grants_name 100
			max_addresses_answer 10
			max_mappings 5
		}`, "mode nft-gateway\nlimits {100000 1000 100 10 5}\n" + defaultsText},
		{"limits that leave less room than others have by default", `ipdestinationguard {
			mode nft-gateway
			max_grants_client 100
		}`, "mode nft-gateway\nlimits {262144 100 100 100 262144}\n" + defaultsText},
		{"what has no effect", `ipdestinationguard {
			mode nft-gateway
			upstream 192.0.2.53
			shared_resolver 1
			capture
		}`, "mode nft-gateway\nshared_resolver 1\nupstream 192.0.2.53:0\ncapture \n" + defaultsText +
			"warning: Testfile:3: upstream has no effect in mode nft-gateway\n" +
			"warning: Testfile:4: shared_resolver has no effect without scope application\n" +
			"warning: Testfile:5: capture without interfaces also takes DNS that comes from outside: name the interfaces of your clients\n"},
		{"what has no effect on a server", `ipdestinationguard {
			mode nft-local
			trusted_forwarder 192.0.2.53
			capture
		}`, "mode nft-local\ncapture \ntrusted_forwarder 192.0.2.53/32\n" + defaultsText +
			"warning: Testfile:4: capture has no effect in mode nft-local\n" +
			"warning: Testfile:3: trusted_forwarder has no effect: all clients are one\n"},
		{"host bits are set", `ipdestinationguard nft-local 192.0.2.1/24`,
			"mode nft-local\nallowedIPs 192.0.2.0/24\n" + defaultsText +
				"warning: Testfile:1: 192.0.2.1/24 means all of 192.0.2.0/24\n"},
		{"what is no interface", `ipdestinationguard {
			private nas.lan lan0
			private nas printer 192.168.1.0/24
			private nas printer.
			private nas 1.pool.lan ntp.b2 **.7seas.x1y
		}`, "joins\nprivate []\nprivate [192.168.1.0/24]\nprivate []\nprivate []\n" +
			"warning: Testfile:2: private: lan0 is read as a name; an interface cannot stand here, and no network is named. If it is a name, write lan0.\n"},
		{"lists without a chain: local", `ipdestinationguard {
			mode nft-local
			allowedGatewayIPs 192.0.2.1
			interfaces lan0
		}`, "mode nft-local\nallowedGatewayIPs 192.0.2.1/32\ninterfaces lan0\n" + defaultsText +
			"warning: Testfile:3: allowedGatewayIPs has no effect in mode nft-local\n" +
			"warning: Testfile:4: interfaces has no effect in mode nft-local\n"},
		{"lists without a chain: gateway", `ipdestinationguard {
			allowedLocalIPs 192.0.2.1
			mode nft-gateway
		}`, "mode nft-gateway\nallowedLocalIPs 192.0.2.1/32\n" + defaultsText +
			"warning: Testfile:2: allowedLocalIPs has no effect in mode nft-gateway\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, p, err := parse(caddy.NewTestController("dns", tt.input))
			if err != nil {
				t.Fatal(err)
			}
			if got := settingsText(s) + policyText(p); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if p.place != "Testfile:1" || s != nil && s.place != p.place {
				t.Errorf("stands at %s", p.place)
			}
		})
	}
}

// Each mistake is told with its place and, as far as one can know, the cure.
func TestParseMistakes(t *testing.T) {
	const block = "ipdestinationguard {\nmode nft-both\n"
	tests := []struct{ name, input, want string }{
		{"unknown mode", `ipdestinationguard nft-all`,
			`Testfile:1 - Error during parsing: unknown mode "nft-all": it is one of nft-local, nft-gateway, nft-both`},
		{"unknown mode in the block", "ipdestinationguard {\nmode ipset\n}",
			`Testfile:2 - Error during parsing: unknown mode "ipset": it is one of nft-local, nft-gateway, nft-both`},
		{"no mode", "ipdestinationguard {\nmargin 1s\n}",
			`Testfile:2 - Error during parsing: margin is a setting of the whole guard: say the mode here as well (one of nft-local, nft-gateway, nft-both), or write it in the server block that says the mode. Without a mode there may be only canary, clients, dnssec, except`},
		{"two modes", "ipdestinationguard nft-local {\nmargin 1s\nmode nft-both\n}",
			`Testfile:3 - Error during parsing: mode is given twice`},
		{"two modes in one line", block + "mode nft-both\n}",
			`Testfile:3 - Error during parsing: mode is given twice`},
		{"a mode too many", "ipdestinationguard {\nmode nft-local nft-both\n}",
			`Testfile:2 - Error during parsing: mode takes one value, not "nft-local nft-both"`},
		{"unknown option", block + "secret 192.0.2.1\n}",
			`Testfile:3 - Error during parsing: unknown option "secret" in ipdestinationguard { }: there are admin, allowedGatewayIPs, allowedIPs, allowedLocalIPs, audit, canary, capture, clients, denied_log, dns_ports, dnssec, except, except_file, hold, interfaces, linger, margin, max_addresses_answer, max_grants, max_grants_client, max_grants_name, max_mappings, mode, names, names_file, nflog_group, on_exit, others, ports, private, require, route, scope, shared_resolver, table, trusted_forwarder, ttl, units, upstream, users`},
		{"a mistyped option", block + "upsteam 192.0.2.1\n}",
			`Testfile:3 - Error during parsing: unknown option "upsteam" in ipdestinationguard { }: did you mean upstream?`},
		{"an option in other words", block + "allowed_ips 192.0.2.1\n}",
			`Testfile:3 - Error during parsing: unknown option "allowed_ips" in ipdestinationguard { }: did you mean allowedIPs?`},
		{"an option in upper case", block + "Margin 1s\n}",
			`Testfile:3 - Error during parsing: unknown option "Margin" in ipdestinationguard { }: did you mean margin?`},
		{"no end", block + "forward . 192.0.2.53\n}",
			`Testfile:3 - Error during parsing: unknown option "forward" in ipdestinationguard { }: that is a directive of CoreDNS: is the } missing that ends the block which begins at Testfile:1?`},
		{"an option of a route", block + "egress 192.0.2.7\n}",
			`Testfile:3 - Error during parsing: unknown option "egress" in ipdestinationguard { }: it belongs in route PATTERN... { }`},
		{"an option of routes and of validation", block + "state /var/lib/x\n}",
			`Testfile:3 - Error during parsing: unknown option "state" in ipdestinationguard { }: it belongs in route PATTERN... { } or dnssec validate { }`},
		{"a block on a line of its own", "ipdestinationguard nft-local\n{\nmargin 1s\n}",
			`Testfile:2 - Error during parsing: the { of a block belongs at the end of the line before, as in: route github.com {`},
		{"the block of a route on a line of its own", block + "route github.com\n{\nslots 1\n}\n}",
			`Testfile:4 - Error during parsing: the { of a block belongs at the end of the line before, as in: route github.com {`},
		{"the directive twice", "ipdestinationguard nft-local\nipdestinationguard nft-local",
			`Testfile:2 - Error during parsing: ipdestinationguard stands twice in this server block, first at Testfile:1`},

		{"a name for an address", `ipdestinationguard nft-local dns.quad9.net`,
			`Testfile:1 - Error during parsing: "dns.quad9.net" is not an IP address or a network such as 192.0.2.0/24 or 2001:db8::/32`},
		{"an address with a port", block + "allowedLocalIPs 9.9.9.9:53\n}",
			`Testfile:3 - Error during parsing: "9.9.9.9:53" is not an IP address`},
		{"an address with a comma", block + "allowedIPs 9.9.9.9, 9.9.9.10\n}",
			`Testfile:3 - Error during parsing: "9.9.9.9," is not an IP address`},
		{"a range", block + "allowedIPs 192.0.2.1-192.0.2.9\n}",
			`Testfile:3 - Error during parsing: "192.0.2.1-192.0.2.9" is not an IP address`},
		{"leading zeros", block + "allowedIPs 192.0.2.010\n}",
			`Testfile:3 - Error during parsing: "192.0.2.010" is not an IP address`},
		{"a zone", block + "allowedGatewayIPs fe80::1%eth0\n}",
			`Testfile:3 - Error during parsing: "fe80::1%eth0" has a zone: an address is allowed on all interfaces, leave %eth0 out`},
		{"IPv4 with an IPv6 length", block + "allowedIPs 192.0.2.0/64\n}",
			`Testfile:3 - Error during parsing: "192.0.2.0/64": an IPv4 network has at most 32 bits`},
		{"IPv6 with too long a length", block + "allowedIPs 2001:db8::/129\n}",
			`Testfile:3 - Error during parsing: "2001:db8::/129": an IPv6 network has at most 128 bits`},
		{"IPv4-mapped with an IPv4 length", block + "allowedIPs ::ffff:192.0.2.0/24\n}",
			`Testfile:3 - Error during parsing: "::ffff:192.0.2.0/24" mixes up the address families: write the IPv4 network, 192.0.2.0/N`},
		{"no length", block + "allowedIPs 192.0.2.0/\n}",
			`Testfile:3 - Error during parsing: "192.0.2.0/": the length of the network, "", is not a number`},
		{"a negative length", block + "allowedIPs 192.0.2.0/-1\n}",
			`Testfile:3 - Error during parsing: "192.0.2.0/-1": the length of the network, "-1", is not a number`},
		{"a mask for a length", block + "allowedIPs 192.0.2.0/255.255.255.0\n}",
			`Testfile:3 - Error during parsing: "192.0.2.0/255.255.255.0": the length of the network, "255.255.255.0", is not a number`},
		{"a length like no other", block + "allowedIPs 192.0.2.0/+8 192.0.2.0/08\n}",
			`Testfile:3 - Error during parsing: "192.0.2.0/+8": the length of the network, "+8", is not a number`},

		{"a long interface name", block + "interfaces sixteen-bytes-xx\n}",
			`Testfile:3 - Error during parsing: interface name "sixteen-bytes-xx" has 16 bytes: the kernel has room for 15`},
		{"no interface name", block + "interfaces a/b\n}",
			`Testfile:3 - Error during parsing: "a/b" cannot be the name of an interface`},
		{"an empty interface name", block + "interfaces \"\"\n}",
			`Testfile:3 - Error during parsing: "" cannot be the name of an interface`},
		{"a wildcard", block + "interfaces lan*\n}",
			`Testfile:3 - Error during parsing: interface name "lan*": there are no wildcards, name every interface`},

		{"a duration without a unit", block + "margin 30\n}",
			`Testfile:3 - Error during parsing: margin "30" has no unit: write 30s for seconds`},
		{"no duration", block + "margin soon\n}",
			`Testfile:3 - Error during parsing: margin "soon" is not a duration such as 30s, 5m or 24h`},
		{"a negative duration", block + "margin -1s\n}",
			`Testfile:3 - Error during parsing: margin "-1s" is not between 0s and 8784h0m0s`},
		{"a duration beyond reason", block + "ttl 1s 9000h\n}",
			`Testfile:3 - Error during parsing: ttl "9000h" is not between 0s and 8784h0m0s`},
		{"two durations for margin", block + "margin 1s 2s\n}",
			`Testfile:3 - Error during parsing: margin takes one value, not "1s 2s"`},
		{"a zero hold", block + "hold 0s\n}",
			`Testfile:3 - Error during parsing: hold 0s would withhold every answer: give it time, for example 1s`},
		{"one value for ttl", block + "ttl 60s\n}",
			`Testfile:3 - Error during parsing: ttl takes two values, FLOOR and CEILING, not "60s"`},
		{"floor above ceiling", block + "ttl 2h 1h\n}",
			`Testfile:3 - Error during parsing: ttl 2h 1h: the floor is above the ceiling`},
		{"ceiling under a second", block + "ttl 0s 999ms\n}",
			`Testfile:3 - Error during parsing: ttl 0s 999ms: the ceiling is under a second`},
		{"unknown on_exit", block + "on_exit open\n}",
			`Testfile:3 - Error during parsing: on_exit "open": it is keep (go on refusing) or remove (open everything)`},
		{"a table name with a space", block + "table \"my guard\"\n}",
			`Testfile:3 - Error during parsing: table "my guard": a name begins with a letter and has letters, digits, _ . - and at most 255 of them`},
		{"a table name that is too long", block + "table " + strings.Repeat("x", 256) + "\n}",
			`Testfile:3 - Error during parsing: table "xxxx`},
	}
	tests = append(tests, []struct{ name, input, want string }{
		{"no mode, with what is the block's own", "ipdestinationguard {\nprivate a.test\nmargin 1s\n}",
			`Testfile:3 - Error during parsing: margin is a setting of the whole guard`},
		{"nobody's private addresses", block + "private 10.0.0.0/8 fd00::/8\n}",
			`Testfile:3 - Error during parsing: private 10.0.0.0/8 fd00::/8 says no name: whose addresses are these? For every name write private ** 10.0.0.0/8 fd00::/8`},
		{"a name behind an address", block + "private a.test 10.0.0.0/8 b.test\n}",
			`Testfile:3 - Error during parsing: private: "b.test" stands behind an address: write the names first, or a line for each`},
		{"a private network with too long a length", block + "private a.test 10.0.0.0/33\n}",
			`Testfile:3 - Error during parsing: "10.0.0.0/33": an IPv4 network has at most 32 bits`},
		{"a network that ends in a range", block + "private **.lan 192.168.1.5-9\n}",
			`Testfile:3 - Error during parsing: "192.168.1.5-9" is not an IP address or a network such as 192.0.2.0/24 or 2001:db8::/32`},
		{"a network with an asterisk", block + "private nas.lan 192.168.1.*\n}",
			`Testfile:3 - Error during parsing: "192.168.1.*" is not an IP address or a network such as 192.0.2.0/24 or 2001:db8::/32`},
		{"a network with an x", block + "private nas.lan 192.168.1.x\n}",
			`Testfile:3 - Error during parsing: "192.168.1.x" is not an IP address or a network such as 192.0.2.0/24 or 2001:db8::/32`},
		{"an address with a final dot", block + "private nas.lan 192.168.1.5.\n}",
			`Testfile:3 - Error during parsing: "192.168.1.5." is not an IP address`},
		{"half an address", block + "private a.test 10.0\n}",
			`Testfile:3 - Error during parsing: "10.0" is not an IP address or a network`},
		{"a private name that is none", block + "private a..test\n}",
			`Testfile:3 - Error during parsing: private: `},
		{"scope application without applications", "ipdestinationguard {\nmode nft-gateway\nscope application\n}",
			`Testfile:3 - Error during parsing: scope application is for programs of this machine: in mode nft-gateway they are not guarded (write client)`},
		{"scope of a gid", block + "scope application gid\n}", `Testfile:3 - Error during parsing: scope takes one value, not "application gid"`},
		{"a user that is none", block + "users no-such-user\n}",
			`Testfile:3 - Error during parsing: users: there is no user "no-such-user" on this machine`},
		{"a user below 0", block + "shared_resolver -1\n}", `Testfile:3 - Error during parsing: shared_resolver: there is no user "-1"`},
		{"the root of all units", block + "units /\n}", `Testfile:3 - Error during parsing: units: cgroup "/": the root cannot be named: every program is below it`},
		{"above the root of all units", block + "units a/..//\n}", `Testfile:3 - Error during parsing: units: cgroup "`},
		{"units by a wildcard", block + "units *.service\n}", `Testfile:3 - Error during parsing: units "*.service": there are no wildcards`},
		{"a unit too deep", block + "shared_resolver /1/2/3/4/5/6/7/8/9\n}", `Testfile:3 - Error during parsing: shared_resolver: cgroup "/1/2/3/4/5/6/7/8/9": it is at level 9, and rules reach 8 levels deep`},
		{"ports without a protocol", block + "ports 443\n}", `Testfile:3 - Error during parsing: ports "443": write the protocol first: tcp/443 or udp/443`},
		{"ports of a protocol without ports", block + "ports icmp/8\n}", `Testfile:3 - Error during parsing: ports "icmp/8": "icmp" is no protocol with ports: there are tcp, udp, sctp, dccp and udplite`},
		{"a protocol without ports", block + "ports tcp\n}", `Testfile:3 - Error during parsing: ports "tcp": the port is missing, as in tcp/443`},
		{"ports the wrong way round", block + "ports 443/TCP\n}", `Testfile:3 - Error during parsing: ports "443/TCP": write tcp/443`},
		{"ports with a comma", block + "ports tcp/443,80\n}", `Testfile:3 - Error during parsing: ports "tcp/443,80": write a blank between several: tcp/443 tcp/8443`},
		{"days", block + "linger 1d\n}", `Testfile:3 - Error during parsing: linger "1d": days are not known: a day is 24h`},
		{"one letter less", block + "unit cron.service\n}", `Testfile:3 - Error during parsing: unknown option "unit" in ipdestinationguard { }: did you mean units?`},
		{"a unit without its kind", block + "units cron.service postgres\n}",
			`Testfile:3 - Error during parsing: units "postgres": the name of a unit ends with its kind: did you mean postgres.service? (What is no unit of systemd is written as the path of its cgroup.)`},
		{"a pattern in a line before others", block + "names a.test\nnames b.test *.*.**\nexcept c.test\nmargin 1s\n}",
			`Testfile:4 - Error during parsing: names: "*.*.**": ** stands in front only, once: write * for each one label elsewhere`},
		{"an exception in a line before others", block + "except a..b\nmargin 1s\n}", `Testfile:3 - Error during parsing: except: "a..b": `},
		{"no others, in a line before others", block + "others refuse\nmargin 1s\n}", `Testfile:3 - Error during parsing: others refuse: which names are not others?`},
		{"nothing to require, in a line before others", block + "require signed\nmargin 1s\n}", `Testfile:3 - Error during parsing: require signed: nothing is validated`},
		{"a port by name", block + "ports tcp/https\n}", `Testfile:3 - Error during parsing: ports "tcp/https": "https" is not a port (0 to 65535)`},
		{"a port too high", block + "ports tcp/65536\n}", `Testfile:3 - Error during parsing: ports "tcp/65536": "65536" is not a port`},
		{"ports backwards", block + "ports tcp/90-80\n}", `Testfile:3 - Error during parsing: ports "tcp/90-80": the range ends before it begins`},
		{"half a range", block + "ports tcp/90-\n}", `Testfile:3 - Error during parsing: ports "tcp/90-": "90-" is not a port`},
		{"an upstream by name", block + "upstream dns.quad9.net\n}", `Testfile:3 - Error during parsing: upstream "dns.quad9.net" is not an address, or one with a port`},
		{"an upstream's port 0", block + "upstream 192.0.2.53:0\n}", `Testfile:3 - Error during parsing: upstream "192.0.2.53:0": there is no port 0`},
		{"an upstream's zone", block + "upstream fe80::1%eth0\n}", `Testfile:3 - Error during parsing: upstream "fe80::1%eth0" has a zone: leave %eth0 out`},
		{"an upstream as a URL", block + "upstream tls://192.0.2.53\n}", `Testfile:3 - Error during parsing: upstream "tls://192.0.2.53" is not an address`},
		{"capture of something", block + "capture lan0\n}", `Testfile:3 - Error during parsing: capture takes no value, not "lan0": with the word it is on, without it off`},
		{"no limit", block + "max_grants 0\n}", `Testfile:3 - Error during parsing: max_grants "0" is not a number between 1 and 16777216`},
		{"a limit in words", block + "max_addresses_answer many\n}", `Testfile:3 - Error during parsing: max_addresses_answer "many" is not a number between 1 and 4096`},
		{"limits without room", block + "max_grants_name 10\nmax_addresses_answer 11\n}",
			`Testfile:4 - Error during parsing: max_addresses_answer 11 is more than max_grants_name 10 leaves room for`},
		{"unknown canary", block + "canary no\n}",
			`Testfile:3 - Error during parsing: canary "no": it is on (programs are told to stay with this resolver) or off`},
	}...)
	for option, o := range options {
		if o.bare || o.alone {
			continue
		}
		tests = append(tests, struct{ name, input, want string }{
			option + " without a value", "ipdestinationguard {\n" + option + "\n}",
			"Testfile:2 - Error during parsing: " + option + " needs a value",
		})
	}
	for option, value := range map[string]string{"margin": "1s", "ttl": "1s 2s", "hold": "1s", "on_exit": "keep", "table": "x", "canary": "on"} {
		tests = append(tests, struct{ name, input, want string }{
			option + " twice", block + option + " " + value + "\n" + option + " " + value + "\n}",
			"Testfile:4 - Error during parsing: " + option + " is given twice",
		})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := parse(caddy.NewTestController("dns", tt.input))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestContradiction(t *testing.T) {
	const block = `ipdestinationguard {
		mode nft-both
		allowedIPs 10.0.0.0/8 192.0.2.0/24
		allowedLocalIPs 9.9.9.9
		allowedGatewayIPs 2001:db8::/32
		interfaces lan0 lan1
		margin 30s
		ttl 60s 24h
		hold 1s
		on_exit keep
		table ipdestinationguard
	}`
	tests := []struct {
		name, from, to string // what is written otherwise in the other block
		want           string // "" if it means the same
	}{
		{"nothing", "", "", ""},
		{"a default left out", "hold 1s", "", ""},
		{"order", "10.0.0.0/8 192.0.2.0/24", "192.0.2.0/24 10.0.0.0/8", ""},
		{"repetition", "9.9.9.9", "9.9.9.9 9.9.9.9/32", ""},
		{"the same in parts", "192.0.2.0/24", "192.0.2.0/25 192.0.2.128/25", ""},
		{"order of names", "lan0 lan1", "lan1 lan0", ""},
		{"another spelling of a time", "60s 24h", "1m 1440m", ""},

		{"mode", "nft-both", "nft-local", "mode nft-local at Other:1 contradicts nft-both at Testfile:1"},
		{"allowedIPs", "10.0.0.0/8 192", "10.0.0.0/9 192", "allowedIPs [10.0.0.0/9 192.0.2.0/24] at Other:1 contradicts [10.0.0.0/8 192.0.2.0/24] at Testfile:1"},
		{"allowedLocalIPs", "allowedLocalIPs 9.9.9.9", "", "allowedLocalIPs [] at Other:1 contradicts [9.9.9.9/32] at Testfile:1"},
		{"allowedGatewayIPs", "2001:db8::/32", "2001:db8::/33", "allowedGatewayIPs [2001:db8::/33] at Other:1 contradicts [2001:db8::/32] at Testfile:1"},
		{"interfaces", "lan0 lan1", "lan0", "interfaces [lan0] at Other:1 contradicts [lan0 lan1] at Testfile:1"},
		{"scope left out", "hold 1s", "hold 1s\nscope client", ""},
		{"scope", "hold 1s", "hold 1s\nscope any", "scope any at Other:1 contradicts client at Testfile:1"},
		{"dns_ports left out", "hold 1s", "hold 1s\ndns_ports closed", ""},
		{"dns_ports", "hold 1s", "hold 1s\ndns_ports open", "dns_ports open at Other:1 contradicts closed at Testfile:1"},
		{"trusted_forwarder", "hold 1s", "hold 1s\ntrusted_forwarder 10.0.0.1", "trusted_forwarder [10.0.0.1/32] at Other:1 contradicts [] at Testfile:1"},
		{"shared_resolver", "hold 1s", "hold 1s\nshared_resolver 1", "shared_resolver 1 at Other:1 contradicts nobody at Testfile:1"},
		{"upstream sentinel", "hold 1s", "hold 1s\nupstream sentinel", "upstream sentinel true at Other:1 contradicts false at Testfile:1"},
		{"upstream", "hold 1s", "hold 1s\nupstream 10.0.0.1:53", "upstream [10.0.0.1:53] at Other:1 contradicts [] at Testfile:1"},
		{"capture", "hold 1s", "hold 1s\ncapture", "capture true at Other:1 contradicts false at Testfile:1"},
		{"linger", "hold 1s", "hold 1s\nlinger 1h", "linger 1h0m0s at Other:1 contradicts 0s at Testfile:1"},
		{"max_grants", "hold 1s", "hold 1s\nmax_grants 300000", "max_grants 300000 at Other:1 contradicts 262144 at Testfile:1"},
		{"max_grants_client", "hold 1s", "hold 1s\nmax_grants_client 3000", "max_grants_client 3000 at Other:1 contradicts 16384 at Testfile:1"},
		{"max_grants_name", "hold 1s", "hold 1s\nmax_grants_name 2000", "max_grants_name 2000 at Other:1 contradicts 1024 at Testfile:1"},
		{"max_addresses_answer", "hold 1s", "hold 1s\nmax_addresses_answer 255", "max_addresses_answer 255 at Other:1 contradicts 256 at Testfile:1"},
		{"ports, users and units are a block's own", "hold 1s", "hold 1s\nports tcp/443\nusers 0\nunits a.service", ""},
		{"margin", "30s", "31s", "margin 31s at Other:1 contradicts 30s at Testfile:1"},
		{"floor", "60s", "61s", "ttl 1m1s 24h0m0s at Other:1 contradicts 1m0s 24h0m0s at Testfile:1"},
		{"ceiling", "24h", "25h", "ttl 1m0s 25h0m0s at Other:1 contradicts 1m0s 24h0m0s at Testfile:1"},
		{"hold", "hold 1s", "hold 2s", "hold 2s at Other:1 contradicts 1s at Testfile:1"},
		{"on_exit", "keep", "remove", "on_exit remove at Other:1 contradicts keep at Testfile:1"},
		{"table", "table ipdestinationguard", "table other", "table other at Other:1 contradicts ipdestinationguard at Testfile:1"},
	}
	read := func(t *testing.T, text string) *settings {
		s, _, err := parse(caddy.NewTestController("dns", text))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			first, other := read(t, block), read(t, strings.Replace(block, tt.from, tt.to, 1))
			other.place = "Other:1"
			got, advice, _ := strings.Cut(other.contradiction(first), ": ")
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.want != "" && !strings.Contains(advice, "the bare word ipdestinationguard in the others") {
				t.Errorf("advice: %q", advice)
			}
		})
	}
}

var placed = regexp.MustCompile(`^Testfile:\d+ - `)

// Whatever stands in a Corefile is taken or refused with its place, and what is
// taken holds together.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		"ipdestinationguard nft-local 192.0.2.1 2001:db8::/32",
		"ipdestinationguard",
		"ipdestinationguard nft-gateway ::ffff:10.0.0.0/104 {\nallowedIPs 0.0.0.0/0 ::/0\ninterfaces lan0\n}",
		"ipdestinationguard {\nmode nft-both\nmargin 1s\nttl 0 24h\nhold 10ms\non_exit remove\ntable x\n}",
		"ipdestinationguard {\nmode nft-both {\n}\n}",
		"ipdestinationguard nft-local fe80::1%eth0",
		"ipdestinationguard nft-local\nipdestinationguard",
		"ipdestinationguard {\nprivate ** 10.0.0.0/8 ::1\nprivate a.test\ncanary off\n}",
		"ipdestinationguard {\nmode nft-both\nscope application uid\nshared_resolver 1 a.service\nupstream 192.0.2.1 [::1]:53\ncapture\nmax_grants 5\nlinger 1s\n}",
		"ipdestinationguard {\nroute a.test *.b.test {\npool 10.9.0.0/16\nslots 2\negress 192.0.2.7\nout wg0\nfwmark 7\nttl 1s 2s\nports tcp/1\n}\nroute c.test {",
		"ipdestinationguard {\nports tcp/1-65535 udp/5\nusers 0\nunits /a/b\n}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, p, err := parse(caddy.NewTestController("dns", text))
		if err != nil {
			if !placed.MatchString(err.Error()) {
				t.Errorf("no place in %q", err)
			}
			return
		}
		for _, r := range p.private {
			for _, n := range r.networks {
				if r.names == nil || !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
					t.Errorf("taken: %s", policyText(p))
				}
			}
		}
		for _, r := range p.routes {
			if len(r.pools) == 0 || r.floor > r.ceiling || r.ceiling == 0 || r.slots < 1 || p.of(strings.NewReplacer("*", "x", "?", "x").Replace(r.patterns[0])) == nil {
				t.Errorf("taken: %s", routeText(r))
			}
		}
		if s != nil {
			if !slices.Contains(modes, s.mode) || s.hold <= 0 || s.lease.Margin < 0 || s.lease.Floor > s.lease.Ceiling || s.lease.Floor < 0 {
				t.Errorf("taken: %s", settingsText(s))
			}
			for _, p := range slices.Concat(s.allowed, s.allowedLocal, s.allowedGateway) {
				if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
					t.Errorf("taken: %v", p)
				}
			}
			if text := s.contradiction(s); text != "" {
				t.Error(text)
			}
		}
	})
}
