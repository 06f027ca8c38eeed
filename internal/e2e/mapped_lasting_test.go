package e2e

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/google/nftables"
)

// steady makes connections to a mapped address over and over. Each must lead to its real
// address, by the egress of its route: nowhere else, and not by another way.
func (m *mappedWorld) steady(tr *traffic, from sender, addr string, want ...sight) {
	tr.every(2*time.Millisecond, func(int) {
		began := time.Now()
		s, conn, err := m.look(from, addr)
		if err != nil {
			tr.fault("%s: a connection to %s failed after %v: %v", from.Name(), addr, time.Since(began), err)
			return
		}
		conn.Close()
		for _, w := range want {
			if s == w {
				tr.took("connections to mapped addresses", time.Since(began))
				return
			}
		}
		tr.fault("%s: %s led to %v, want %v", from.Name(), addr, s, want)
	})
}

// Kills, restarts and reloads: what is mapped stays mapped, with CoreDNS or without,
// connections live, new ones get where they should, and nobody gets anywhere else.
func TestMappingsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"kill", "restart", "reload"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			files := []string{
				m.corefile("nft-both", m.routedTo("shop.test"), m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6)),
				m.corefile("nft-both", m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6), m.route("**.new.test"), m.routedTo("shop.test", "ports tcp/1-65535 udp/1-65535")),
				m.corefile("nft-both", "allowedIPs 198.18.200.0/24", m.routedTo("shop.test", "slots 8"), m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6)),
			}
			if how != "reload" {
				files = files[:1]
			}
			const real4, real6 = "198.18.48.1", "2001:db8:18:48::1"
			for _, name := range []string{"www.shop.test.", "www.bank.test."} {
				m.atlas.addrs(name, 3600, real4, real6)
			}
			c := m.start(files[0])
			type user struct {
				party
				name, real, source string
				ipv4               bool
				addr               string
			}
			var users []*user
			tr := m.traffic()
			var live []net.Conn
			for _, p := range []party{m.self(), m.behind()} {
				users = append(users,
					&user{p, "www.shop.test.", real4, routeEgress4, true, ""}, &user{p, "www.shop.test.", real6, routeEgress6, false, ""},
					&user{p, "www.bank.test.", real4, secondEgress4, true, ""}, &user{p, "www.bank.test.", real6, secondEgress6, false, ""})
			}
			for _, u := range users {
				u.addr = m.mapped(u.Host, u.resolver4, u.name, u.ipv4)[0]
				f := m.flow(u.Host, u.addr, u.real)
				if f.source != u.source {
					t.Errorf("%s leaves with %s, want %s", u.addr, f.source, u.source)
				}
				live = append(live, f)
				m.steady(tr, u.Host, u.addr, sight{u.real, u.source})
			}
			tr.alive(live...)
			for round := range 6 {
				time.Sleep(rand.N(300 * time.Millisecond))
				switch how {
				case "reload":
					m.mustReload(c, files[(round+1)%len(files)])
				case "restart":
					m.must(c.Stop())
					time.Sleep(rand.N(200 * time.Millisecond))
					c = m.start(files[0])
				default:
					m.kill(c)
					time.Sleep(rand.N(200 * time.Millisecond))
					c = m.launch(files[0])
					if round%2 == 0 {
						time.Sleep(rand.N(300 * time.Millisecond)) // while it starts
						continue
					}
					m.inForce(c)
				}
				for _, u := range users {
					if again := m.mapped(u.Host, u.resolver4, u.name, u.ipv4); again[0] != u.addr {
						t.Fatalf("%s had %s, and has %v after a %s", u.name, u.addr, again, how)
					}
				}
			}
			tr.end()
		})
	}
}

// A reload that gives a route another egress, for one version of IP or both: who is connected
// stays as he is, who connects leaves with the new one, and nobody has to ask again.
func TestRouteGetsAnotherEgress(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	const real = "198.18.49.1"
	m.atlas.addrs("www.shop.test.", 3600, real)
	c := m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	addr := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]
	f := m.flow(m.client, addr, real)
	for _, next := range []struct{ egress, seen string }{
		{secondEgress4 + " " + secondEgress6, secondEgress4},
		{routeEgress4, routeEgress4},
		{"masquerade", "192.0.2.1"},
		{secondEgress4, secondEgress4},
	} {
		m.mustReload(c, m.corefile("nft-gateway", m.route("**.shop.test", "egress "+next.egress)))
		m.wantSight(m.client, addr, real, next.seen)
	}
	if again := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]; again != addr {
		t.Errorf("the name had %s, and has %s", addr, again)
	}
	if err := echo(f); err != nil {
		t.Errorf("a connection of before: %v", err)
	}
	m.wantShut(m.client, real)
}

// An alias has the route of the name that it leads to. When a reload gives that another
// egress, who connects by the alias's address has it at once, without asking again.
func TestAliasGetsAnotherEgress(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	const real4, real6 = "198.18.53.1", "2001:db8:18:53::1"
	m.atlas.addrs("www.shop.test.", 3600, real4, real6)
	m.atlas.set("alias.other.test.", "3600 CNAME www.shop.test.")
	files := []string{
		m.corefile("nft-gateway", m.routedTo("shop.test", "ttl 1s 1h")),
		m.corefile("nft-gateway", m.route("**.shop.test", "egress "+secondEgress4+" "+secondEgress6, "ttl 1s 1h")),
	}
	c := m.start(files[0])
	type use struct {
		addr, real string
		egress     [2]string
		flow       flow
	}
	uses := []*use{{real: real4, egress: [2]string{routeEgress4, secondEgress4}}, {real: real6, egress: [2]string{routeEgress6, secondEgress6}}}
	tr := m.traffic()
	for i, u := range uses {
		u.addr = m.mapped(m.client, gateway4, "alias.other.test.", i == 0)[0]
		u.flow = m.flow(m.client, u.addr, u.real)
		m.steady(tr, m.client, u.addr, sight{u.real, u.egress[0]}, sight{u.real, u.egress[1]})
		tr.alive(u.flow)
	}
	for round := range 4 {
		now := (round + 1) % 2
		m.mustReload(c, files[now])
		for _, u := range uses {
			m.wantSight(m.client, u.addr, u.real, u.egress[now])
		}
	}
	tr.end()
	// A restart with the other Corefile, and a reload after it, before anybody has asked again.
	wantBy := func(now int) {
		t.Helper()
		for _, u := range uses {
			m.wantSight(m.client, u.addr, u.real, u.egress[now])
			if err := echo(u.flow); err != nil {
				t.Errorf("a live connection: %v", err)
			}
		}
	}
	for round := range 2 {
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		c = m.start(files[1-round])
		wantBy(1 - round)
		m.mustReload(c, files[round])
		wantBy(round)
	}
	for i, u := range uses {
		if again := m.mapped(m.client, gateway4, "alias.other.test.", i == 0)[0]; again != u.addr {
			t.Errorf("the alias had %s, and has %s", u.addr, again)
		}
	}
}

// A reload that takes a route away: its mapped addresses lead nowhere, not by another
// way either, and its names have their real addresses again.
func TestRouteGoes(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	x := m.tap()
	const real, other = "198.18.50.1", "198.18.50.2"
	m.atlas.addrs("www.shop.test.", 60, real)
	m.atlas.addrs("www.bank.test.", 60, other)
	bank := m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6)
	c := m.start(m.corefile("nft-gateway", m.routedTo("shop.test"), bank))
	addr := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]
	m.wantSight(m.client, addr, real, routeEgress4)
	stays := m.mapped(m.client, gateway4, "www.bank.test.", true)[0]
	f := m.flow(m.client, stays, other)

	m.mustReload(c, m.corefile("nft-gateway", bank))
	before := x.seen(func(p packet) bool { return p.destination.String() == real })
	m.wantReset(m.client, addr)
	if n := x.seen(func(p packet) bool { return p.destination.String() == real }); n != before {
		t.Errorf("%d packets have gone where the route led", n-before)
	}
	if err := echo(f); err != nil {
		t.Errorf("a connection by the other route: %v", err)
	}
	m.wantSight(m.client, stays, other, secondEgress4)
	answer := m.question(m.client, gateway4, "www.shop.test.", "A")
	if got := addresses(answer); len(got) != 1 || got[0] != real {
		t.Errorf("a name that is no longer routed: %v", answer)
	}
	m.wantSight(m.client, real, real, client4)
}

// When the last route goes, whoever remembers its addresses does not send there by whatever way
// the machine has.
func TestLastRouteGoes(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"reload", "restart", "kill"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			x := m.tap()
			const real = "198.18.53.1"
			m.atlas.addrs("www.shop.test.", 60, real)
			m.atlas.addrs("www.else.test.", 60, "198.18.53.2")
			c := m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
			addr := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]
			m.wantSight(m.client, addr, real, routeEgress4)
			m.question(m.client, gateway4, "www.else.test.", "A")
			without := m.corefile("nft-gateway")
			switch how {
			case "reload":
				m.mustReload(c, without)
			case "restart":
				m.must(c.Stop())
				m.start(without)
			case "kill":
				m.kill(c)
				m.start(without)
			}
			for _, network := range networks {
				if err := talkTo(m.client, network, net.JoinHostPort(addr, strconv.Itoa(mirrorPort))); err == nil {
					t.Errorf("%s to %s is open", network, addr)
				}
			}
			if n := x.seen(func(p packet) bool { return pool4.Contains(p.destination) }); n > 0 {
				t.Errorf("%d packets for mapped addresses have left", n)
			}
			m.wantSight(m.client, "198.18.53.2", "198.18.53.2", client4) // what is no mapped address is open still
		})
	}
}

// Whoever controls a name has an address of a pool opened to himself while it is none, or none
// any more. Once a route has it, that is no way to the name's server.
func TestPoolWasOpenBefore(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"reload", "restart"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			const real, pool = "198.18.54.1", "198.18.200.0/24"
			m.atlas.addrs("www.shop.test.", 3600, real)
			m.atlas.addrs("www.bank.test.", 3600, "198.18.54.2")
			bank := m.route("**.bank.test")
			without, with := m.corefile("nft-both", bank), m.corefile("nft-both", bank, m.route("**.shop.test", "pool "+pool, "egress "+routeEgress4))
			c := m.start(without)
			change := func(file string) {
				if how == "reload" {
					m.mustReload(c, file)
					return
				}
				m.must(c.Stop())
				c = m.start(file)
			}
			thief, victim := m.behind(), m.self()
			for round := range 2 {
				name := []string{"evil.test.", "evil2.test."}[round]
				m.atlas.addrs(name, 3600, "198.18.200.1")
				m.question(thief.Host, thief.resolver4, name, "A")
				change(with)
				addr := m.given(victim.Host, victim.resolver4, "www.shop.test.", netip.MustParsePrefix(pool))[0]
				m.wantSight(victim.Host, addr, real, routeEgress4)
				if addr != "198.18.200.1" {
					t.Fatalf("the name has %s", addr)
				}
				m.wantReset(thief.Host, addr)
				change(without)
			}
		})
	}
}

// Whoever flushes the ruleset, where the kernel lets him, opens nothing: until it is back
// mapped addresses lead nowhere, and then where they did.
func TestForeignFlushOfMappings(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	x := m.tap()
	const real = "198.18.51.1"
	m.atlas.addrs("www.shop.test.", 3600, real)
	m.noOwner() // or nobody could
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	addr := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]
	f := m.flow(m.client, addr, real)
	for range 3 {
		m.nftables(anew(func(c *nftables.Conn) { c.DelTable(ours) }))
		m.eventually("the rules are back", func() bool { return m.try(t.Context(), m.client, addr) == nil })
		if again := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]; again != addr {
			t.Errorf("the name had %s, and has %s", addr, again)
		}
		m.wantSight(m.client, addr, real, routeEgress4)
		if err := echo(f); err != nil {
			t.Errorf("a live connection: %v", err)
		}
	}
	if n := x.seen(func(p packet) bool { return pool4.Contains(p.destination) }); n > 0 {
		t.Logf("%d packets for mapped addresses have left while there was no table", n)
	}
}
