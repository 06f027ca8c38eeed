package e2e

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Where mapped addresses come from unless a route says otherwise, and what has two egress
// addresses beside the guard's own.
var (
	pool4, pool6 = netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:2021:1111:8000::/107")

	egressOne = []string{"192.0.2.101", "2001:db8::101"}
	egressTwo = []string{"192.0.2.102", "2001:db8::102"}
)

// routeBlock is a route for names of a zone.
func routeBlock(zone string, options ...string) string {
	return "route **." + zone + ".test {\n\t\t" + strings.Join(options, "\n\t\t") + "\n\t}"
}

// twoRoutes are routes of zones one and two, each with an egress address of its own.
var twoRoutes = []string{
	routeBlock("one", "egress "+strings.Join(egressOne, " ")),
	routeBlock("two", "egress "+strings.Join(egressTwo, " ")),
}

// addEgress gives the guard the egress addresses.
func (w *world) addEgress() {
	w.Helper()
	for _, pair := range [][]string{egressOne, egressTwo} {
		w.addrs(w.guard, "wan0", pair[0]+"/24", pair[1]+"/64")
	}
}

// inZone is a name in a zone that the world answers with the addresses.
func inZone(zone string, ttl int, addrs ...string) string {
	return strings.TrimSuffix(nameOf(ttl, addrs...), "test.") + zone + ".test."
}

// mapped asks for a name's addresses of the version of the first one in it, and fails
// unless these are mapped ones.
func (w *world) mapped(from sender, server, name string) (addrs []string) {
	w.Helper()
	qtype := dns.TypeA
	if strings.HasPrefix(name, "aaaa-") {
		qtype = dns.TypeAAAA
	}
	m, err := w.ask(from, server, name, qtype)
	w.must(err)
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			addrs = append(addrs, rr.A.String())
		case *dns.AAAA:
			addrs = append(addrs, rr.AAAA.String())
		}
	}
	for _, addr := range addrs {
		if a := netip.MustParseAddr(addr); !pool4.Contains(a) && !pool6.Contains(a) {
			w.Errorf("%s has %s, which is no mapped address", name, addr)
		}
	}
	if len(addrs) == 0 {
		w.Fatalf("%s has no address: %v", name, m)
	}
	return addrs
}

// mappedTo is the mapped address of a name in a zone for an address that the party asks for.
func (w *world) mappedTo(p party, zone, addr string) string {
	w.Helper()
	return w.mapped(p.Host, p.resolver(addr), inZone(zone, 3600, addr))[0]
}

// reach connects by TCP and UDP, and pings.
func (w *world) reach(p party, addr string) {
	w.Helper()
	for _, network := range networks {
		w.wantOpen(p.Host, network, addr)
	}
	if err := ping(p.Host, netip.MustParseAddr(addr), 3*time.Second); err != nil {
		w.Errorf("%s: ping %s: %v", p.Name(), addr, err)
	}
}

// sources are those that packets to an address of the world have come from.
func (x *wire) sources(real string) (all []string) {
	x.Helper()
	to := netip.MustParseAddr(real)
	x.seen(func(p packet) bool {
		if source := p.source.String(); p.destination == to && !slices.Contains(all, source) {
			all = append(all, source)
		}
		return false
	})
	slices.Sort(all)
	return all
}

// wantUnassigned checks that a mapped address that no name has is refused.
func (w *world) wantUnassigned(p party, addr string) {
	w.Helper()
	if err := w.connect(p.Host, "tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		w.Errorf("%s: TCP to %s, which is nobody's: %v", p.Name(), addr, err)
	}
	if err := w.connect(p.Host, "udp", addr); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) { // the latter for the guard itself
		w.Errorf("%s: UDP to %s, which is nobody's: %v", p.Name(), addr, err)
	}
}

// Two names on one address are apart: each has a mapped address of its own, and leaves by
// the egress of its route.
func TestRoutedNames(t *testing.T) {
	eachMode(t, func(w *world, m mode) {
		w.addEgress()
		w.letPing()
		x := w.tap()
		w.start(corefile(guardBlock(m.name, twoRoutes...)))
		guarded, free := m.parties(w)
		for _, p := range guarded {
			for version, real := range []string{p.addr4(1), p.addr6(1)} {
				one, two := w.mappedTo(p, "one", real), w.mappedTo(p, "two", real)
				if one == two {
					t.Errorf("two names have %s", one)
				}
				w.reach(p, one)
				if got := x.sources(real); !slices.Equal(got, []string{egressOne[version]}) {
					t.Errorf("%s: %s leaves from %v", p.Name(), one, got)
				}
				w.reach(p, two)
				if got := x.sources(real); !slices.Equal(got, []string{egressOne[version], egressTwo[version]}) {
					t.Errorf("%s: %s leaves from %v", p.Name(), two, got)
				}
				w.wantError(p.Host, "tcp", real) // it is the name's, not the address's
				w.wantError(p.Host, "udp", real)
			}
			for _, nobodys := range []string{"100.96.7.7", "fd00:2021:1111:8000::7777"} {
				w.wantUnassigned(p, nobodys)
			}
		}
		for _, p := range free { // what they send is not translated
			for _, real := range []string{p.addr4(1), p.addr6(1)} {
				answer, err := w.ask(p.Host, p.resolver(real), inZone("one", 60, real), typeFor(real))
				w.must(err)
				if len(answer.Answer) != 1 || !strings.HasSuffix(answer.Answer[0].String(), "\t"+real) {
					t.Errorf("%s, who is not guarded, is told\n%v", p.Name(), answer)
				}
				w.wantOpen(p.Host, "tcp", real)
			}
		}
	})
}

// Without egress, a gateway's routes leave with the gateway's address, and a server's as
// ever.
func TestRoutedNamesWithoutEgress(t *testing.T) {
	eachMode(t, func(w *world, m mode) {
		w.letPing()
		x := w.tap()
		w.start(corefile(guardBlock(m.name, routeBlock("one", "slots 2"))))
		guarded, _ := m.parties(w)
		for _, p := range guarded {
			for version, real := range []string{p.addr4(1), p.addr6(1)} {
				w.reach(p, w.mappedTo(p, "one", real))
				if got := x.sources(real); !slices.Equal(got, []string{[]string{"192.0.2.1", "2001:db8::1"}[version]}) {
					t.Errorf("%s leaves from %v", p.Name(), got)
				}
			}
		}
	})
}

// A machine that has no way to IPv6 gives no IPv6 addresses of names with a route, and says why.
func TestRoutedNamesWithoutIPv6(t *testing.T) {
	eachMode(t, func(w *world, m mode) {
		w.letPing()
		w.shell(w.guard, "ip -6 route delete default")
		w.start(corefile(guardBlock(m.name, routeBlock("one"))))
		guarded, _ := m.parties(w)
		for _, p := range guarded {
			answer := w.query(p.Host, "udp", p.resolver4, inZone("one", 60, p.addr6(1)), dns.TypeToString[dns.TypeAAAA], 1232)
			if answer.Rcode != dns.RcodeSuccess || len(answer.Answer) > 0 || !hasEDE(answer, dns.ExtendedErrorCodeFiltered) {
				t.Errorf("%s is told\n%v", p.Name(), answer)
			}
			w.reach(p, w.mappedTo(p, "one", p.addr4(1)))
		}
	})
}

// nameAt asks for the name of a mapped address; it is empty if there is none.
func (w *world) nameAt(p party, addr string) string {
	w.Helper()
	name, err := dns.ReverseAddr(addr)
	w.must(err)
	m, err := w.ask(p.Host, p.resolver(addr), name, dns.TypePTR)
	w.must(err)
	if len(m.Answer) != 1 {
		if m.Rcode != dns.RcodeNameError {
			w.Errorf("the name of %s: %v", addr, m)
		}
		return ""
	}
	return m.Answer[0].(*dns.PTR).Ptr
}

// A mapped address is open to who has asked, and to nobody else; and so is its name.
func TestMappedAddressesAreGuarded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(corefile(guardBlock("nft-both", routeBlock("one", "slots 2"))))
	self, behind := w.self(), w.behind()
	for _, real := range []string{self.addr4(1), self.addr6(1)} {
		addr := w.mappedTo(self, "one", real)
		w.wantOpen(self.Host, "tcp", addr)
		if err := w.connect(behind.Host, "tcp", addr); err == nil {
			t.Errorf("%s is open to a client that has not asked", addr)
		}
		if name := w.nameAt(behind, addr); name != "" {
			t.Errorf("a client that has not asked is told that %s is %s", addr, name)
		}
		if again := w.mappedTo(behind, "one", real); again != addr {
			t.Errorf("one name has %s and %s", addr, again)
		}
		w.wantOpen(behind.Host, "tcp", addr)
		for _, p := range []party{self, behind} {
			if name, want := w.nameAt(p, addr), inZone("one", 3600, real); name != want {
				t.Errorf("%s: %s is %q, want %s", p.Name(), addr, name, want)
			}
		}
	}
}

// Whatever ends CoreDNS, and whatever it reads anew, names keep their addresses; and who
// has one connects all the time.
func TestMappedAddressesStay(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"nft-gateway", "nft-local"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.addEgress()
			file := corefile(guardBlock(mode, twoRoutes...))
			c := w.start(file)
			p := w.behind()
			if mode == "nft-local" {
				p = w.self()
			}
			type held struct {
				zone, real, addr string
				live             net.Conn
			}
			var all []held
			for _, real := range []string{p.addr4(1), p.addr6(1)} {
				for _, zone := range []string{"two", "one"} {
					addr := w.mappedTo(p, zone, real)
					all = append(all, held{zone, real, addr, w.connected(p.Host, addr)})
				}
			}
			check := func(when string) {
				t.Helper()
				for _, h := range all {
					if err := echo(h.live); err != nil {
						t.Errorf("%s: the connection to %s: %v", when, h.addr, err)
					}
					if err := w.connect(p.Host, "tcp", h.addr); err != nil {
						t.Errorf("%s: a new connection to %s: %v", when, h.addr, err)
					}
				}
			}
			again := func(when string) {
				t.Helper()
				check(when)
				for _, h := range slices.Backward(all) { // in another order
					if addr := w.mappedTo(p, h.zone, h.real); addr != h.addr {
						t.Errorf("%s: %s of zone %s has %s, and had %s", when, h.real, h.zone, addr, h.addr)
					}
				}
				check(when + ", and asked again")
			}
			w.mustReload(c, file)
			again("after a reload")
			w.mustReload(c, corefile(guardBlock(mode, twoRoutes[0], routeBlock("two", "ttl 1s 30s", "egress "+strings.Join(egressOne, " ")))))
			again("after a reload that changes the egress")
			w.kill(c)
			check("after kill -9")
			c = w.start(file)
			again("after a start that changes it back")
			w.must(c.Signal(syscall.SIGTERM))
			_ = w.exits(c)
			check("after a stop")
			w.start(file)
			again("after a start")
			fresh := w.mappedTo(p, "one", p.addr4(2))
			for _, h := range all {
				if h.addr == fresh {
					t.Errorf("%s is two names'", fresh)
				}
			}
			w.wantOpen(p.Host, "tcp", fresh)
		})
	}
}

// Reloads that change how names leave and the routes beside theirs refuse nobody who has a
// mapped address, and cut nothing.
func TestRouteReloadsUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.addEgress()
	var files []string
	for _, options := range [][]string{
		twoRoutes,
		{routeBlock("one", "egress "+strings.Join(egressTwo, " ")), twoRoutes[1]},
		{"route **.test {\n\t\tfwmark 7\n\t}"},
		{twoRoutes[0], twoRoutes[1], routeBlock("three", "pool 10.203.0.0/16 fd09::/64")},
	} {
		files = append(files, corefile(guardBlock("nft-both", options...)))
	}
	c := w.start(files[0])
	tr := w.traffic()
	var live []net.Conn
	for _, p := range []party{w.self(), w.behind()} {
		for _, real := range []string{p.addr4(1), p.addr6(1)} {
			for _, zone := range []string{"one", "two"} {
				addr := w.mappedTo(p, zone, real)
				live = append(live, w.connected(p.Host, addr))
				tr.alwaysOpen(p.Host, addr)
			}
		}
		tr.neverOpen(p.Host)
	}
	tr.alive(live...)
	for n := range 24 {
		w.mustReload(c, files[(n+1)%len(files)])
	}
	tr.end()
}

// A route that keeps its addresses in a file of its own takes none from others, though the
// kernel has to be told anew of all.
func TestSecondBook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.start(corefile(guardBlock("nft-gateway", routeBlock("one"))))
	p := w.behind()
	addr := w.mappedTo(p, "one", p.addr4(1))
	live := w.connected(p.Host, addr)
	both := corefile(guardBlock("nft-gateway", routeBlock("one"), routeBlock("two", "family ipv4", "pool 10.203.0.0/16", "state "+w.stateDir()+"/two.db")))
	w.mustReload(c, both)
	w.must(echo(live))
	w.wantOpen(p.Host, "tcp", addr) // without another question
	m, err := w.ask(p.Host, p.resolver4, inZone("two", 60, p.addr4(1)), dns.TypeA)
	w.must(err)
	if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.203.0.1" {
		t.Fatalf("got\n%v", m)
	}
	w.wantOpen(p.Host, "tcp", "10.203.0.1")
	w.kill(c)
	w.start(both)
	w.must(echo(live))
	w.wantOpen(p.Host, "tcp", addr)
	w.wantOpen(p.Host, "tcp", "10.203.0.1")
}

// leadsTo checks where new connections to a mapped address arrive.
func (x *wire) leadsTo(p party, addr, real string) {
	x.Helper()
	to := netip.MustParseAddr(real)
	before := x.seen(func(p packet) bool { return p.destination == to })
	x.wantOpen(p.Host, "tcp", addr)
	if after := x.seen(func(p packet) bool { return p.destination == to }); after == before {
		x.Errorf("%s does not lead to %s", addr, real)
	}
}

// Round robin changes nothing. When a name gets other addresses, new connections follow,
// and live ones go on, or not where the route says so.
func TestMappedAddressesFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	x, names := w.tap(), w.atlas()
	w.start(names.under(corefile(guardBlock("nft-gateway", routeBlock("one", "slots 4"), routeBlock("two", "on_change cut")))))
	p := w.behind()
	for zone, cut := range map[string]bool{"one": false, "two": true} {
		name := "www." + zone + ".test."
		first, second, third := p.addr4(11), p.addr4(12), p.addr4(13)
		names.addrs(name, 1, first, second)
		addrs := w.mapped(p.Host, p.resolver4, name)
		if len(addrs) != 2 {
			t.Fatalf("mapped to %v", addrs)
		}
		x.leadsTo(p, addrs[0], first)
		x.leadsTo(p, addrs[1], second)
		live := w.connected(p.Host, addrs[0])
		names.addrs(name, 1, second, first)
		if turned := w.mapped(p.Host, p.resolver4, name); !slices.Equal(turned, []string{addrs[1], addrs[0]}) {
			t.Errorf("mapped to %v, and before to %v", turned, addrs)
		}
		x.leadsTo(p, addrs[0], first)
		w.must(echo(live))

		names.addrs(name, 1, third)
		if now := w.mapped(p.Host, p.resolver4, name); !slices.Equal(now, addrs[:1]) {
			t.Errorf("mapped to %v, and before to %v", now, addrs)
		}
		x.leadsTo(p, addrs[0], third)
		x.leadsTo(p, addrs[1], third) // who still has it, gets there too
		if !cut {
			w.must(echo(live))
			continue
		}
		w.eventually("the live connection is cut", func() bool { return echo(live) != nil })
	}
}
