package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
)

// A flow is somebody's connection to a mapped address, which goes on.
type flow struct {
	net.Conn
	sight
}

// flow opens one, and fails the test if it does not lead to the real address.
func (m *mappedWorld) flow(from sender, addr, real string) flow {
	m.Helper()
	s, conn := m.watch(from, addr)
	if conn == nil || s.real != real {
		m.Fatalf("%s: %s leads to %v, want %s", from.Name(), addr, s, real)
	}
	return flow{conn, s}
}

// datagrams is a UDP socket that is connected to a mapped address, and says where what
// it sends arrives.
type datagrams struct {
	*mappedWorld
	net.Conn
	wire *wire
}

func (m *mappedWorld) datagrams(x *wire, from sender, addr string) *datagrams {
	m.Helper()
	conn, err := m.dial(from, "udp", addr)
	m.must(err)
	m.Cleanup(func() { conn.Close() })
	return &datagrams{m, conn, x}
}

// reach says at which of some real addresses a word arrives, and "" if it does not.
func (d *datagrams) reach(reals ...string) string {
	d.Helper()
	word := fmt.Sprintf("word %d", rand.Uint64())
	if _, err := d.Write([]byte(word)); err != nil {
		_, _ = d.Write([]byte(word)) // the error was that of the one before
	}
	at := ""
	d.wire.seen(func(p packet) bool {
		for _, real := range reals {
			if p.destination.String() == real && strings.Contains(string(p.payload), word) {
				at = real
			}
		}
		return false
	})
	return at
}

// A name moves to other addresses while it is in use. Who connects now gets there; who is
// connected stays, or is cut, as the route says.
func TestNameMovesUnderLiveFlows(t *testing.T) {
	for _, change := range []string{"keep", "cut"} {
		for _, mode := range modes {
			t.Run(change+" "+mode.name, func(t *testing.T) {
				t.Parallel()
				m := newMappedWorld(t)
				x := m.tap()
				m.start(m.corefile(mode.name, m.routedTo("shop.test", "on_change "+change, "ttl 1s 1s")))
				guarded, _ := mode.parties(m.world)
				for _, p := range guarded {
					for _, ipv4 := range []bool{true, false} {
						m.moves(x, p, ipv4, change)
					}
				}
			})
		}
	}
}

func (m *mappedWorld) moves(x *wire, p party, ipv4 bool, change string) {
	m.Helper()
	name := "moving-" + p.Name() + ".shop.test."
	format := "198.18.47.%d"
	if !ipv4 {
		format = "2001:db8:18:47::%d"
	}
	stays, leaves, comes := fmt.Sprintf(format, 1), fmt.Sprintf(format, 2), fmt.Sprintf(format, 3)
	m.atlas.addrs(name, 1, stays, leaves)
	server := p.resolver4
	if !ipv4 {
		server = p.resolver6
	}
	addrs := m.mapped(p.Host, server, name, ipv4)
	if len(addrs) != 2 {
		m.Fatalf("%s: %v, want two", name, addrs)
	}
	staying, leaving := addrs[0], addrs[1]
	if m.sees(p.Host, staying).real != stays {
		staying, leaving = leaving, staying
	}
	live, moved := m.flow(p.Host, staying, stays), m.flow(p.Host, leaving, leaves)
	words := m.datagrams(x, p.Host, leaving)
	if at := words.reach(leaves, comes); at != leaves {
		m.Errorf("UDP to %s arrives at %q, want %s", leaving, at, leaves)
	}

	m.atlas.addrs(name, 1, comes, stays) // and in another order
	again := m.mapped(p.Host, server, name, ipv4)
	if len(again) != 2 || again[0] != leaving || again[1] != staying {
		m.Errorf("%s had %s and %s, and has %v now that the second has moved", name, staying, leaving, again)
	}
	if s := m.sees(p.Host, leaving); s.real != comes {
		m.Errorf("%s: a new connection goes to %v, want %s", name, s, comes)
	}
	if s := m.sees(p.Host, staying); s.real != stays {
		m.Errorf("%s: a new connection to what has not moved goes to %v, want %s", name, s, stays)
	}
	if err := echo(live); err != nil {
		m.Errorf("%s: a live connection to what has not moved: %v", name, err)
	}
	if change == "keep" {
		if err, at := echo(moved), words.reach(leaves, comes); err != nil || at != leaves {
			m.Errorf("%s: connections of before are to go on: TCP: %v; UDP arrives at %q, want %s", name, err, at, leaves)
		}
	} else {
		if ended(moved) == nil {
			m.Errorf("%s: a connection of before goes on", name)
		}
		m.eventually(name+": UDP of before follows", func() bool { return words.reach(leaves, comes) == comes })
	}

	// It has fewer addresses than before: what it had leads to those it has.
	m.atlas.addrs(name, 1, comes)
	if one := m.mapped(p.Host, server, name, ipv4); len(one) != 1 {
		m.Errorf("%s has one address, and is answered with %v", name, one)
	}
	for _, a := range []string{staying, leaving} {
		if s := m.sees(p.Host, a); s.real != comes {
			m.Errorf("%s: who has %s from before gets to %v, want %s", name, a, s, comes)
		}
	}
}

// ended is how somebody ends a connection on which there is talk, or nil if nobody does.
func ended(conn net.Conn) error {
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := echo(conn); err != nil && !isTimeout(err) {
			return err
		}
	}
	return nil
}

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

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// While names move, clients ask and connect without pause: whoever connects to what he
// has just been given gets to an address that the name has, or had a moment ago; never
// to another name's.
func TestNamesThatMoveAllTheTime(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-both", m.routedTo("shop.test", "ttl 1s 1s", "slots 2")))
	const names = 8
	name := func(n int) string { return fmt.Sprintf("n%d.shop.test.", n) }
	move := func(n int) {
		first := 2 + rand.IntN(200)
		m.atlas.addrs(name(n), 1, fmt.Sprintf("198.18.%d.%d", 60+n, first), fmt.Sprintf("198.18.%d.%d", 60+n, first+1))
	}
	for n := range names {
		move(n)
	}
	tr := m.traffic()
	tr.every(2*time.Millisecond, func(n int) { move(n % names) })
	for _, p := range []party{m.self(), m.behind()} {
		for range 3 {
			tr.every(time.Millisecond, func(int) {
				n := rand.IntN(names)
				answer, err := m.ask(p.Host, p.resolver4, name(n), dns.TypeA)
				if err != nil || answer.Rcode != dns.RcodeSuccess || len(addresses(answer)) == 0 {
					tr.fault("%s: %s: %v %v", p.Name(), name(n), answer, err)
					return
				}
				for _, a := range addresses(answer) {
					s, conn, err := m.look(p.Host, a)
					if err != nil {
						tr.fault("%s: %s at %s: %v", p.Name(), name(n), a, err)
						continue
					}
					conn.Close()
					if !strings.HasPrefix(s.real, fmt.Sprintf("198.18.%d.", 60+n)) || s.source != routeEgress4 {
						tr.fault("%s: %s at %s has led to %v", p.Name(), name(n), a, s)
					}
					tr.counted("connections to names that move")
				}
			})
		}
	}
	time.Sleep(5 * time.Second)
	tr.end()
	if tr.count["connections to names that move"] < 500 {
		t.Errorf("only %d connections", tr.count["connections to names that move"])
	}
}
