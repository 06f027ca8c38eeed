package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

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
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := echo(conn); err != nil && !isTimeout(err) {
			return err
		}
	}
	return nil
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
	for tr.counts("connections to names that move") < 500 && tr.counts("faults") == 0 {
		time.Sleep(100 * time.Millisecond)
	}
	tr.end()
}
