package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
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

// A reload that gives a route another egress: who is connected stays as he is, who
// connects leaves with the new one.
func TestRouteGetsAnotherEgress(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	const real = "198.18.49.1"
	m.atlas.addrs("www.shop.test.", 60, real)
	c := m.start(m.corefile("nft-gateway", m.routedTo("shop.test")))
	addr := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]
	f := m.flow(m.client, addr, real)
	m.mustReload(c, m.corefile("nft-gateway", m.route("**.shop.test", "egress "+secondEgress4+" "+secondEgress6)))
	if again := m.mapped(m.client, gateway4, "www.shop.test.", true)[0]; again != addr {
		t.Errorf("the name had %s, and has %s", addr, again)
	}
	m.wantSight(m.client, addr, real, secondEgress4)
	if err := echo(f); err != nil {
		t.Errorf("a connection of before: %v", err)
	}
	m.wantShut(m.client, real)
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

// The state is lost, or another one takes its place: names get other addresses perhaps,
// and nobody gets to another name's server. Who is connected is cut off, and who may still
// connect by what he was told before does not connect to somebody else.
func TestOtherStateDeliversToNobodyElse(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"deleted", "another by a restart", "another by a reload", "and back"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			neighbour, _ := m.moreClients()
			reals := map[string]string{}
			var names []string
			for n := range 6 {
				name := fmt.Sprintf("n%d.shop.test.", n)
				names = append(names, name)
				reals[name] = fmt.Sprintf("198.18.52.%d", n+1)
				m.atlas.addrs(name, 60, reals[name])
			}
			first := m.corefile("nft-gateway", m.routedTo("shop.test"))
			other := m.corefile("nft-gateway", m.routedTo("shop.test", "state "+filepath.Join(t.TempDir(), "other.db")))
			file := first
			c := m.start(file)
			if how == "and back" { // to what has names for the addresses
				for i := range names {
					m.mapped(neighbour, neighbourGateway4, names[len(names)-1-i], true)
				}
				m.mustReload(c, other)
			}
			flows, told := map[string]flow{}, map[string]string{}
			for _, name := range names[:3] {
				told[name] = m.mapped(m.client, gateway4, name, true)[0]
				flows[name] = m.flow(m.client, told[name], reals[name])
			}
			switch how {
			case "deleted":
				m.must(c.Stop())
				m.shell(m.guard, "rm "+m.stateDir()+"/*")
				m.start(first)
			case "another by a restart":
				m.must(c.Stop())
				m.start(other)
			case "another by a reload":
				m.mustReload(c, other)
			default:
				m.mustReload(c, first)
			}
			for i := range names {
				name := names[len(names)-1-i] // in another order
				addr := m.mapped(neighbour, neighbourGateway4, name, true)[0]
				m.wantSight(neighbour, addr, reals[name], routeEgress4)
			}
			for name, addr := range told {
				if s, conn, err := m.look(m.client, addr); err == nil {
					conn.Close()
					if s.real != reals[name] {
						t.Errorf("%s, where the client was told that %s is, leads to %s instead of %s", addr, name, s.real, reals[name])
					}
				}
				if ended(flows[name]) == nil {
					t.Errorf("the connection with %s of before goes on, by an address that is perhaps another's", name)
				}
			}
		})
	}
}
