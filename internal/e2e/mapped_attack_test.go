package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// Another client's grant does not help; one's own does, to the same mapped address.
func TestMappedAddressesAreOfWhoAsked(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	neighbour, routed := m.moreClients()
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	clients := []routeClient{{m.client, gateway4, gateway6}, {neighbour, neighbourGateway4, neighbourGateway6}, {routed, neighbourGateway4, neighbourGateway6}}
	for i, asker := range clients {
		for _, ipv4 := range []bool{true, false} {
			real, resolver, egress := fmt.Sprintf("198.18.71.%d", i+1), asker.resolver4, routeEgress4
			if !ipv4 {
				real, resolver, egress = fmt.Sprintf("2001:db8:18:71::%d", i+1), asker.resolver6, routeEgress6
			}
			name := fmt.Sprintf("n%d.shop.test.", i)
			m.atlas.addrs(name, 60, real)
			addr := m.mapped(asker.Host, resolver, name, ipv4)[0]
			for j, other := range clients {
				if i == j {
					m.wantSight(other.Host, addr, real, egress)
				} else {
					m.wantReset(other.Host, addr)
				}
				m.wantShut(other.Host, real)
			}
			// The next who asks is given the same, and has it from then on.
			next := clients[(i+1)%len(clients)]
			if !ipv4 {
				resolver = next.resolver6
			} else {
				resolver = next.resolver4
			}
			if got := m.mapped(next.Host, resolver, name, ipv4)[0]; got != addr {
				t.Errorf("one client has %s, another %s", addr, got)
			}
			m.wantSight(next.Host, addr, real, egress)
		}
	}
}

// With scope application what one service has been given is of no use to another.
func TestMappedAddressesAreOfTheServiceThatAsked(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	apps := m.units("a.service", "b.service")
	m.start(m.corefile("nft-local", application, m.routedTo("shop.test")))
	for _, ipv4 := range []bool{true, false} {
		real, resolver, egress := "198.18.72.1", "127.0.0.1", routeEgress4
		if !ipv4 {
			real, resolver, egress = "2001:db8:18:72::1", "::1", routeEgress6
		}
		m.atlas.addrs("www.shop.test.", 60, "198.18.72.1", "2001:db8:18:72::1")
		addr := m.mapped(apps[0], resolver, "www.shop.test.", ipv4)[0]
		m.wantSight(apps[0], addr, real, egress)
		m.wantReset(apps[1], addr)
		m.wantReset(m.guard, addr)
		m.wantShut(apps[0], real)
		if got := m.mapped(apps[1], resolver, "www.shop.test.", ipv4)[0]; got != addr {
			t.Errorf("one service has %s, another %s", addr, got)
		}
		m.wantSight(apps[1], addr, real, egress)
	}
}

// A route's ports are those of its mapped addresses; resolvers are no ports of a route
// that does not say so.
func TestPortsOfMappedAddresses(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.must(m.world.world.Echo(4443))
	m.must(m.world.world.Echo(853))
	m.start(m.corefile("nft-both", m.routedTo("shop.test", "ports tcp/4443"), m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6)))
	const real = "198.18.73.1"
	for _, name := range []string{"www.shop.test.", "www.bank.test."} {
		m.atlas.addrs(name, 60, real)
	}
	for _, p := range []party{m.self(), m.behind()} {
		shop, bank := m.mapped(p.Host, p.resolver4, "www.shop.test.", true)[0], m.mapped(p.Host, p.resolver4, "www.bank.test.", true)[0]
		at := func(addr string, port int) string { return fmt.Sprintf("%s:%d", addr, port) }
		if err := talkTo(p.Host, "tcp", at(shop, 4443)); err != nil {
			t.Errorf("%s: the port of the route: %v", p.Name(), err)
		}
		if err := talkTo(p.Host, "tcp", at(bank, 4443)); err != nil {
			t.Errorf("%s: a route with every port: %v", p.Name(), err)
		}
		m.wantReset(p.Host, at(shop, mirrorPort))
		m.wantReset(p.Host, at(shop, 853))
		m.wantReset(p.Host, at(bank, 853)) // a resolver over TLS
		m.wantReset(p.Host, at(bank, 53))
		if err := talkTo(p.Host, "udp", at(shop, 4443)); err == nil {
			t.Errorf("%s: UDP to a TCP port is open", p.Name())
		}
	}
}

// Real addresses that a route's name may not have are taken out, as everywhere: its
// names are to be reached by translation, not whatever they point at.
func TestRebindingThroughARoute(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	x := m.tap()
	m.start(m.corefile("nft-both", m.routedTo("shop.test")))
	for i, addr := range []string{
		"0.0.0.0", "10.0.0.1", "127.0.0.1", "127.1.2.3", "169.254.1.1", "172.16.0.1", "192.168.50.1", "192.168.50.2", "224.0.0.251", "255.255.255.255",
		"100.64.0.1", "100.96.0.1", "100.96.0.2", "100.127.255.254", "100.100.111.1",
		"169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
		guard4, gateway4, routeEgress4, guard6, gateway6, routeEgress6,
		"::", "::1", "fc00::1", "fd12:3456:789a::1", "fd50::2", "fe80::1", "ff02::1",
		"fd00:2021:1111:8000::1", "fd00:2021:1111:8000::2", "fd00:2021:1111:8000:100:100:111:1",
		"fd00:ec2::254", "fd20:ce::254", "::ffff:10.0.0.1", "::ffff:100.96.0.1", "64:ff9b::10.0.0.1", "64:ff9b::100.96.0.1", "2002:6460:1::1",
	} {
		name, qtype := fmt.Sprintf("n%d.shop.test.", i), "AAAA"
		if netip.MustParseAddr(addr).Is4() {
			qtype = "A"
		}
		m.atlas.set(name, "60 "+qtype+" "+addr)
		for _, p := range []party{m.self(), m.behind()} {
			answer := m.question(p.Host, p.resolver4, name, qtype)
			if answer.Rcode != dns.RcodeSuccess || len(answer.Answer) > 0 || !filtered(answer) {
				t.Errorf("%s: %s of a routed name: want no address, and why; got\n%v", p.Name(), addr, answer)
			}
			// Beside one that is good, it is left out.
			m.atlas.set("b"+name, "60 A 198.18.74.1", "60 AAAA 2001:db8:18:74::1", "60 "+qtype+" "+addr)
			for _, a := range addresses(m.question(p.Host, p.resolver4, "b"+name, qtype)) {
				if s := m.sees(p.Host, a); s.real != "198.18.74.1" && s.real != "2001:db8:18:74::1" {
					t.Errorf("%s: beside %s: %s leads to %v", p.Name(), addr, a, s)
				}
			}
		}
	}
	if n := x.seen(func(p packet) bool {
		return p.destination.IsPrivate() || p.destination.IsLoopback() || pool4.Contains(p.destination)
	}); n > 0 {
		t.Errorf("%d packets have gone to such addresses", n)
	}
}

// The gateway itself is not to be reached by way of a route, even where a name is allowed
// to have its address, or the address has become the gateway's only later: and it is said so.
func TestGatewayIsNotReachedThroughARoute(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			m.mirror(m.guard)
			socket, option := m.socket()
			m.start(m.corefile(mode.name, option, "private **.shop.test "+guard4+" "+gateway4+" "+guard6, m.routedTo("shop.test")))
			const later = "198.18.75.1"
			m.atlas.addrs("own.shop.test.", 60, guard4, gateway4, guard6)
			m.atlas.addrs("later.shop.test.", 60, later)
			guarded, _ := mode.parties(m.world)
			var addr string // that leads there later
			refusedThere := func(p party, addr string) {
				t.Helper()
				if s, conn, err := m.look(p.Host, addr); err == nil {
					conn.Close()
					t.Errorf("%s: %s leads to the gateway itself: %v", p.Name(), addr, s)
				}
			}
			for _, p := range guarded {
				for _, qtype := range []string{"A", "AAAA"} {
					for _, a := range addresses(m.question(p.Host, p.resolver4, "own.shop.test.", qtype)) {
						refusedThere(p, a)
					}
				}
				addr = m.mapped(p.Host, p.resolver4, "later.shop.test.", true)[0]
				if s := m.sees(p.Host, addr); s.real != later {
					t.Errorf("%s: %s leads to %v, want %s", p.Name(), addr, s, later)
				}
			}
			m.must(m.guard.Addr("wan0", later+"/32"))
			for _, p := range guarded {
				const text = "mapped address of later.shop.test: its real address is this machine's own"
				q, hook := admin.ExplainQuery{Address: mustAddr(addr), Port: mirrorPort}, "output"
				if p.Host == m.client {
					q.Client, hook = mustAddr(client4), "forward"
				}
				m.eventually("it is foreseen", func() bool {
					e, err := m.asks(socket).Explain(t.Context(), q)
					m.must(err)
					return slices.ContainsFunc(e.Addresses[0].Verdicts, func(v admin.Verdict) bool {
						return v.Hook == hook && !v.Passes && v.Reason == "own_address" && strings.HasPrefix(v.Text, text)
					})
				})
				refusedThere(p, "100.96.0.1")
				refusedThere(p, "100.96.0.2")
				refusedThere(p, "100.96.0.3")
				if d := m.denied(socket, addr, mirrorPort, hook); d.Reason != "own_address" || d.Name != "later.shop.test" || !strings.HasPrefix(d.Text, text) {
					t.Errorf("%s: %+v", p.Name(), d)
				}
			}
			list, err := m.asks(socket).Denied(t.Context(), admin.DeniedQuery{})
			m.must(err)
			for _, d := range list.Flows {
				if d.Address == mustAddr(later) {
					t.Errorf("told of by the real address: %+v", d)
				}
			}
		})
	}
}

// Answers from outside with mapped addresses in them give nobody the addresses of another
// name, whatever "private" says.
func TestMappedAddressesFromOutside(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-gateway", "private ** 100.64.0.0/10 fd00::/8", m.routedTo("shop.test")))
	m.atlas.addrs("www.shop.test.", 60, "198.18.76.1", "2001:db8:18:76::1")
	neighbour, _ := m.moreClients()
	four := m.mapped(neighbour, neighbourGateway4, "www.shop.test.", true)[0]
	six := m.mapped(neighbour, neighbourGateway4, "www.shop.test.", false)[0]
	m.atlas.set("evil.other.test.", "60 A "+four, "60 AAAA "+six, "60 HTTPS 1 . alpn=h2 ipv4hint="+four+" ipv6hint="+six)
	m.atlas.set("evil.shop.test.", "60 A "+four, "60 AAAA "+six, "60 HTTPS 1 . alpn=h2 ipv4hint="+four+" ipv6hint="+six)
	for _, name := range []string{"evil.other.test.", "evil.shop.test."} {
		for _, qtype := range []string{"A", "AAAA", "HTTPS"} {
			answer := m.question(m.client, gateway4, name, qtype)
			opt := answer.IsEdns0()
			answer.Extra = nil // which tells what was taken out
			if text := answer.String(); opt == nil || strings.Contains(text, four) || strings.Contains(text, six) || len(addresses(answer)) > 0 {
				t.Errorf("%s %s: %v", name, qtype, answer)
			}
		}
		m.wantReset(m.client, four)
		m.wantReset(m.client, six)
	}
}

// What a client is told besides an answer is no way around a route.
func TestRealAddressesOfRoutedNamesAreNotTold(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	const real, hidden4 = "198.18.77.1", "198.18.77.2"
	evil := template("MX evil.test", `answer "{{ .Name }} 60 IN MX 10 www.shop.test."`, `additional "www.shop.test. 60 IN A `+hidden4+`"`) + "\n" +
		template("SRV evil.test", `answer "{{ .Name }} 60 IN SRV 0 0 443 www.shop.test."`, `additional "www.shop.test. 60 IN A `+hidden4+`"`) + "\n" +
		template("HTTPS evil.test", `answer "{{ .Name }} 60 IN HTTPS 1 www.shop.test. alpn=h2 ipv4hint=`+hidden4+`"`) + "\n" +
		template("A evil.test", `answer "{{ .Name }} 60 IN A 198.18.77.3"`, `answer "www.shop.test. 60 IN A `+hidden4+`"`, `additional "www.shop.test. 60 IN A `+hidden4+`"`)
	m.atlas.addrs("www.shop.test.", 60, real)
	text := strings.Replace(m.corefile("nft-gateway", m.routedTo("shop.test")), "\tforward . ", "\t"+evil+"\n\tforward . ", 1)
	m.start(text)
	for _, qtype := range []string{"MX", "SRV", "HTTPS", "A"} {
		answer := m.question(m.client, gateway4, "x.evil.test.", qtype)
		if answer.Rcode != dns.RcodeSuccess || len(answer.Answer) == 0 || strings.Contains(answer.String(), hidden4) {
			t.Errorf("%s: want an answer without %s: %v", qtype, hidden4, answer)
		}
		m.wantShut(m.client, hidden4)
	}
}

// The resolver that CoreDNS asks is open to CoreDNS alone, also by way of a route.
func TestUpstreamIsNotReachedThroughARoute(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	text := strings.Replace(m.corefile("nft-both", "dns_ports open", fmt.Sprintf("upstream %s:%d", resolver4, atlasPort), "private **.shop.test "+resolver4, m.routedTo("shop.test")),
		"allowedLocalIPs "+resolver4, "", 1)
	as := m.asCoreDNS()
	m.startAs(as, text)
	m.atlas.addrs("dns.shop.test.", 60, resolver4)
	for _, p := range []party{m.self(), m.behind()} {
		for _, a := range addresses(m.question(p.Host, p.resolver4, "dns.shop.test.", "A")) {
			for _, network := range networks {
				question := new(dns.Msg).SetQuestion("www.shop.test.", dns.TypeA)
				if answer, err := exchangeAt(p.Host, network, fmt.Sprintf("%s:%d", a, atlasPort), question, 2e9); err == nil {
					t.Errorf("%s: the upstream answers over %s by way of a route: %v", p.Name(), network, answer)
				}
			}
		}
	}
}

// Names of every shape have addresses of their own, and their PTR is what was asked.
func TestNamesOfEveryShapeAreRouted(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	long := strings.Repeat(strings.Repeat("a", 61)+".", 3) + strings.Repeat("b", 50) + ".shop.test."
	seen := map[string]string{}
	for i, name := range []string{"shop.test.", "a.b.c.d.e.f.g.h.shop.test.", long, `with\.dot.shop.test.`, `with\000zero.shop.test.`, `with\032space.shop.test.`, `with\"quote.shop.test.`, "_443._tcp.shop.test.", "*.shop.test."} {
		m.atlas.addrs(name, 60, fmt.Sprintf("198.18.78.%d", i+1))
		for _, written := range []string{name, strings.ToUpper(name)} {
			answer, err := exchange(m.client, "udp", gateway4, new(dns.Msg).SetQuestion(written, dns.TypeA))
			m.must(err)
			all := addresses(answer)
			if len(all) != 1 || !pool4.Contains(netip.MustParseAddr(all[0])) {
				t.Errorf("%s: %v", written, answer)
				continue
			}
			if of, taken := seen[all[0]]; taken && of != name {
				t.Errorf("%s and %s have %s", of, name, all[0])
			}
			seen[all[0]] = name
			reverse, err := dns.ReverseAddr(all[0])
			m.must(err)
			ptr := m.question(m.client, gateway4, reverse, "PTR")
			if len(ptr.Answer) != 1 || canonical(ptr.Answer[0].(*dns.PTR).Ptr) != canonical(name) {
				t.Errorf("the name of %s, which is %s: %v", all[0], name, ptr)
			}
			m.wantSight(m.client, all[0], fmt.Sprintf("198.18.78.%d", i+1), routeEgress4)
		}
	}
}
