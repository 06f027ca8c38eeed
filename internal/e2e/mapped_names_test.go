package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Answers in ever another order: a client has the order of the answer, the mapped
// addresses stay those that they were, and what is connected stays connected.
func TestRoundRobinIsKept(t *testing.T) {
	t.Parallel()
	for _, addrs := range []int{2, 4, 9} {
		t.Run(fmt.Sprintf("%d addresses", addrs), func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			m.start(m.corefile("nft-gateway", m.routedTo("shop.test", "slots 4", "ttl 1s 1s")))
			const name = "www.shop.test."
			for _, ipv4 := range []bool{true, false} {
				var reals []string
				for n := range addrs {
					real := fmt.Sprintf("198.18.41.%d", n+1)
					if !ipv4 {
						real = fmt.Sprintf("2001:db8:18:41::%d", n+1)
					}
					reals = append(reals, real)
				}
				m.atlas.addrs(name, 60, reals...)
				first := m.mapped(m.client, gateway4, name, ipv4)
				if len(first) != min(4, addrs) {
					t.Errorf("%d addresses: %v", addrs, first)
				}
				sights := map[string]sight{}
				var live []net.Conn
				for _, addr := range first {
					s, conn := m.watch(m.client, addr)
					if conn == nil {
						return
					}
					for other, seen := range sights {
						if seen.real == s.real {
							t.Errorf("%s and %s both lead to %s", addr, other, s.real)
						}
					}
					sights[addr], live = s, append(live, conn)
				}
				m.atlas.turn()
				before := m.generation()
				leading := map[string]bool{}
				for range 4 * addrs {
					again := m.mapped(m.client, gateway4, name, ipv4)
					leading[again[0]] = true
					slices.Sort(again)
					if want := slices.Sorted(slices.Values(first)); !slices.Equal(again, want) {
						t.Fatalf("%v had become %v", want, again)
					}
				}
				if len(leading) < min(addrs, 4) {
					t.Errorf("the answer's order does not change: %v first of %v", leading, first)
				}
				if after := m.generation(); after != before {
					t.Errorf("%d transactions, although nothing has changed", after-before)
				}
				for i, addr := range first {
					if s := m.sees(m.client, addr); s != sights[addr] {
						t.Errorf("%s led to %v and leads to %v", addr, sights[addr], s)
					}
					if err := echo(live[i]); err != nil {
						t.Errorf("a live connection to %s: %v", addr, err)
					}
				}
			}
		})
	}
}

// What is no address passes as it is: a route makes up nothing.
func TestRoutedNamesWithoutAddress(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	m.atlas.set("empty.shop.test.")
	m.atlas.addrs("only4.shop.test.", 60, "198.18.42.1")
	m.atlas.set("text.shop.test.", `60 TXT "v=1 198.18.42.1"`)
	m.atlas.fail("broken.shop.test.", dns.RcodeServerFailure)
	m.atlas.fail("refused.shop.test.", dns.RcodeRefused)
	for _, tt := range []struct {
		name, qtype string
		rcode       int
		answers     int
	}{
		{"none.shop.test.", "A", dns.RcodeNameError, 0},
		{"none.shop.test.", "AAAA", dns.RcodeNameError, 0},
		{"empty.shop.test.", "A", dns.RcodeSuccess, 0},
		{"only4.shop.test.", "AAAA", dns.RcodeSuccess, 0},
		{"broken.shop.test.", "A", dns.RcodeServerFailure, 0},
		{"refused.shop.test.", "A", dns.RcodeRefused, 0},
		{"text.shop.test.", "TXT", dns.RcodeSuccess, 1},
		{"text.shop.test.", "A", dns.RcodeSuccess, 0},
	} {
		answer := m.question(m.client, gateway4, tt.name, tt.qtype)
		if answer.Rcode != tt.rcode || len(answer.Answer) != tt.answers {
			t.Errorf("%s %s: want %s with %d records, got\n%v", tt.name, tt.qtype, dns.RcodeToString[tt.rcode], tt.answers, answer)
		}
	}
}

// What a route carries by one IP version only has addresses of that version only; answers
// last as long as the route lets them.
func TestFamilyAndTTLOfARoute(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-gateway", m.route("**.shop.test", "egress "+routeEgress4, "ttl 5s 30s"), m.route("**.bank.test", "family ipv6")))
	const real4, real6 = "198.18.82.1", "2001:db8:18:82::1"
	for _, tt := range []struct {
		name, qtype string
		ttl, want   int
		given       bool
	}{
		{"short.shop.test.", "A", 0, 5, true},
		{"fits.shop.test.", "A", 20, 20, true},
		{"long.shop.test.", "A", 86400, 30, true},
		{"long.shop.test.", "AAAA", 86400, 0, false},
		{"long.bank.test.", "A", 86400, 0, false},
		{"long.bank.test.", "AAAA", 86400, 60, true},
	} {
		m.atlas.addrs(tt.name, tt.ttl, real4, real6)
		answer := m.question(m.client, gateway4, tt.name, tt.qtype)
		all := addresses(answer)
		if answer.Rcode != dns.RcodeSuccess || len(all) > 0 != tt.given || tt.given && answer.Answer[0].Header().Ttl != uint32(tt.want) {
			t.Errorf("%s %s with TTL %d: want addresses: %v, with TTL %d; got\n%v", tt.name, tt.qtype, tt.ttl, tt.given, tt.want, answer)
		}
	}
	m.wantShut(m.client, real4)
	m.wantShut(m.client, real6)
}

// Whoever looks up a mapped address finds the name, and nobody is told real ones.
func TestMappedNamesAndHints(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	const real4, real6 = "198.18.43.1", "2001:db8:18:43::1"
	records := func(alpn string) []string {
		return []string{
			"60 A " + real4, "60 AAAA " + real6,
			"60 HTTPS 1 . alpn=" + alpn + " ipv4hint=" + real4 + " ipv6hint=" + real6,
			"60 SVCB 1 . alpn=" + alpn + " ipv4hint=" + real4,
			"60 MX 10 www.shop.test.",
		}
	}
	m.atlas.set("www.shop.test.", records("h2")...)
	m.atlas.set("WWW.SHOP.TEST.", records("h2")...)

	for _, ipv4 := range []bool{true, false} {
		addr := m.mapped(m.client, gateway4, "www.shop.test.", ipv4)[0]
		if again := m.mapped(m.client, gateway4, "WwW.ShOp.TeSt.", ipv4)[0]; again != addr {
			t.Errorf("other letters, another address: %s and %s", addr, again)
		}
		reverse, err := dns.ReverseAddr(addr)
		m.must(err)
		answer := m.question(m.client, gateway4, reverse, "PTR")
		if len(answer.Answer) != 1 || answer.Answer[0].(*dns.PTR).Ptr != "www.shop.test." {
			t.Errorf("the name of %s: %v", addr, answer)
		}
	}
	for _, qtype := range []string{"HTTPS", "SVCB", "MX", "ANY"} {
		answer := m.question(m.client, gateway4, "www.shop.test.", qtype)
		if len(answer.Answer) == 0 && qtype != "ANY" {
			t.Errorf("%s: the record has gone: %v", qtype, answer)
		}
		text := answer.String()
		if strings.Contains(text, real4) || strings.Contains(text, real6) {
			t.Errorf("%s: a real address: %v", qtype, answer)
		}
		if (qtype == "HTTPS" || qtype == "SVCB") && (strings.Contains(text, "hint") || !strings.Contains(text, `alpn="h2"`)) {
			t.Errorf("%s: want alpn without hints: %v", qtype, answer)
		}
	}
	m.wantShut(m.client, real4)
	m.wantShut(m.client, real6)
}

// Aliases: the first name of a route along the chain says which route it is, the name that
// was asked for has the addresses, and the chain itself is not told.
func TestAliasesOfRoutedNames(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test"),
		m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6)))
	const inShop, elsewhere = "198.18.44.1", "198.18.44.2"
	m.atlas.addrs("www.shop.test.", 60, inShop)
	m.atlas.addrs("edge.cdn.test.", 60, elsewhere)
	m.atlas.set("blog.other.test.", "60 CNAME www.shop.test.")
	m.atlas.set("img.shop.test.", "60 CNAME edge.cdn.test.")
	m.atlas.set("www.bank.test.", "60 CNAME www.shop.test.")

	www := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]
	for _, tt := range []struct{ name, real, source string }{
		{"www.shop.test.", inShop, routeEgress4},
		{"blog.other.test.", inShop, routeEgress4}, // by an alias that is not routed
		{"img.shop.test.", elsewhere, routeEgress4},
		{"www.bank.test.", inShop, secondEgress4}, // its own route, not that of its target
	} {
		answer := m.question(m.client, gateway4, tt.name, "A")
		all := addresses(answer)
		if len(all) != 1 || len(answer.Answer) != 1 || answer.Answer[0].Header().Name != tt.name || !pool4.Contains(netip.MustParseAddr(all[0])) {
			t.Errorf("%s: want one mapped address and no alias: %v", tt.name, answer)
			continue
		}
		if (all[0] == www) != (tt.name == "www.shop.test.") {
			t.Errorf("%s has %s, www.shop.test. has %s", tt.name, all[0], www)
		}
		m.wantSight(m.client, all[0], tt.real, tt.source)
		m.wantShut(m.client, tt.real)
	}
	// Who is no routed name has the address that it has, and opens that; the routed ones stay apart.
	answer := m.question(m.client, gateway4, "edge.cdn.test.", "A")
	if got := addresses(answer); !slices.Equal(got, []string{elsewhere}) {
		t.Errorf("a name that is not routed: %v", answer)
	}
	m.wantSight(m.client, elsewhere, elsewhere, client4)
	m.wantShut(m.client, inShop)
}
