package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Ten thousand names, a hundred on each real address: no two share a mapped address,
// each leads where its name does, and after a crash each has what it had.
func TestTenThousandNamesStayApart(t *testing.T) {
	t.Parallel()
	const names, workers, others = 10_000, 8, 100
	m := newMappedWorld(t)
	file := m.corefile("nft-gateway", "max_grants 100000", "max_grants_client 60000", m.routedTo("many.test", "ttl 1s 1h"))
	real := func(n int) string { return fmt.Sprintf("198.18.40.%d", n%others+1) }
	name := func(n int) string { return fmt.Sprintf("n%d.many.test.", n) }
	for n := range names {
		m.atlas.addrs(name(n), 3600, real(n)) // open until the end
	}
	c := m.start(file)

	arrives := func(n int, addr string) {
		t.Helper()
		s, conn, err := m.look(m.client, addr)
		if err != nil {
			t.Errorf("%s: %s: %v", name(n), addr, err)
			return
		}
		conn.Close()
		if want := (sight{real(n), routeEgress4}); s != want {
			t.Errorf("%s: %s: the server sees %v, want %v", name(n), addr, s, want)
		}
	}
	ask := func(every int) []string {
		all := make([]string, names)
		var next atomic.Int64
		var wg sync.WaitGroup
		for range workers {
			conn, err := m.client.Dial(t.Context(), "udp", net.JoinHostPort(gateway4, "53"))
			m.must(err)
			wg.Go(func() {
				defer conn.Close()
				client := dns.Client{Timeout: 5 * time.Second}
				for {
					n := int(next.Add(1)-1) * every
					if n >= names {
						return
					}
					answer, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name(n), dns.TypeA), &dns.Conn{Conn: conn})
					if err != nil {
						t.Errorf("%s: %v", name(n), err)
						return
					}
					if got := addresses(answer); len(got) != 1 {
						t.Errorf("%s: %v", name(n), answer)
					} else {
						all[n] = got[0]
						arrives(n, got[0]) // at once
					}
				}
			})
		}
		wg.Wait()
		return all
	}
	began := time.Now()
	mapped := ask(1)
	t.Logf("%d new names, and a connection to each, took %v", names, time.Since(began).Round(time.Millisecond))
	if t.Failed() {
		return
	}
	of := make(map[string]int, names)
	for n, addr := range mapped {
		if other, taken := of[addr]; taken {
			t.Errorf("%s and %s have %s", name(n), name(other), addr)
		}
		of[addr] = n
		if a := netip.MustParseAddr(addr); !pool4.Contains(a) || netip.MustParsePrefix("100.100.111.0/24").Contains(a) {
			t.Errorf("%s has %s", name(n), addr)
		}
	}
	visit := func(every int) {
		t.Helper()
		var next atomic.Int64
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for {
					n := int(next.Add(1)-1) * every
					if n >= names {
						return
					}
					arrives(n, mapped[n])
				}
			})
		}
		wg.Wait()
	}
	visit(10)

	m.kill(c)
	visit(50) // nobody is there, and nothing is lost
	m.start(file)
	for n, addr := range ask(10) {
		if n%10 == 0 && addr != mapped[n] {
			t.Errorf("%s had %s, and has %s after a crash", name(n), mapped[n], addr)
		}
	}
	visit(50)
}

// Packets that are cut on their way get through, both ways.
func TestLargeDatagramsThroughRoutes(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.start(m.corefile("nft-both", m.routedTo("shop.test")))
	m.atlas.addrs("www.shop.test.", 60, "198.18.83.1", "2001:db8:18:83::1")
	for _, p := range []party{m.self(), m.behind()} {
		for _, ipv4 := range []bool{true, false} {
			conn, err := m.dial(p.Host, "udp", m.mapped(p.Host, p.resolver4, "www.shop.test.", ipv4)[0])
			m.must(err)
			defer conn.Close()
			sent, got := bytes.Repeat([]byte("0123456789abcdef"), 500), make([]byte, 10000)
			_, err = conn.Write(sent)
			m.must(err)
			_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
			if n, err := conn.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
				t.Errorf("%s: IPv4 %v: %d bytes of %d have come back: %v", p.Name(), ipv4, n, len(sent), err)
			}
		}
	}
}

// A full pool refuses new names, and says why. Who has addresses keeps them.
func TestFullPoolSharesNothing(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	self := m.self() // which has nobody to leave some for
	m.start(m.corefile("nft-local", m.routedTo("shop.test", "slots 2", "pool 100.96.7.0/29 fd00:2021:1111:8000::700/125")))
	const most = 20
	name := func(n int) string { return fmt.Sprintf("n%d.shop.test.", n) }
	for n := range most {
		m.atlas.addrs(name(n), 60, fmt.Sprintf("198.18.45.%d", 2*n+1), fmt.Sprintf("198.18.45.%d", 2*n+2), fmt.Sprintf("2001:db8:18:45::%d", 2*n+1), fmt.Sprintf("2001:db8:18:45::%d", 2*n+2))
	}
	for _, qtype := range []string{"A", "AAAA"} {
		holder := map[string]int{}
		refused := 0
		for n := range most {
			answer := m.question(self.Host, self.resolver4, name(n), qtype)
			if answer.Rcode != dns.RcodeSuccess {
				m.wantWithheld(answer)
				refused++
				continue
			}
			if refused > 0 {
				t.Errorf("%s %s has addresses, although the pool was full before: %v", name(n), qtype, answer)
			}
			for _, a := range addresses(answer) {
				if other, taken := holder[a]; taken {
					t.Errorf("%s and %s share %s", name(n), name(other), a)
				}
				holder[a] = n
			}
		}
		if refused == 0 || len(holder) < 6 || len(holder) > 8 {
			t.Errorf("%s: %d names were refused by a pool of 8, which has given out %v", qtype, refused, holder)
		}
		for a, n := range holder {
			if again := addresses(m.question(self.Host, self.resolver4, name(n), qtype)); !slices.Contains(again, a) {
				t.Errorf("%s had %s, and has %v now that the pool is full", name(n), a, again)
			}
			s := m.sees(self.Host, a)
			last, err := strconv.Atoi(s.real[strings.LastIndexAny(s.real, ".:")+1:])
			if err != nil || last != 2*n+1 && last != 2*n+2 {
				t.Errorf("%s is of %s and leads to %v", a, name(n), s)
			}
		}
	}
}

// A client that makes up names does not get the whole pool: others have addresses for
// theirs.
func TestOneClientCannotFillThePool(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	neighbour, _ := m.moreClients()
	m.start(m.corefile("nft-gateway", m.routedTo("shop.test", "pool 100.96.7.0/24 fd00:2021:1111:8000::700/120")))
	name := func(n int) string { return fmt.Sprintf("n%d.shop.test.", n) }
	const most = 400
	for n := range most {
		m.atlas.addrs(name(n), 60, "198.18.46.1", "2001:db8:18:46::1")
	}
	for _, qtype := range []string{"A", "AAAA"} {
		had := 0
		for n := range most - 20 {
			if answer := m.question(m.client, gateway4, name(n), qtype); len(addresses(answer)) > 0 {
				had++
			} else {
				m.wantWithheld(answer)
			}
		}
		if had < 100 || had > 200 {
			t.Errorf("%s: one client has got %d of 256 addresses", qtype, had)
		}
		for n := most - 20; n < most; n++ {
			if answer := m.question(neighbour, neighbourGateway4, name(n), qtype); len(addresses(answer)) == 0 {
				t.Errorf("%s: another client has got none for %s: %v", qtype, name(n), answer)
			}
		}
	}
}

// What is of the pool and nobody's is refused at once, for whoever asks, on every port
// and protocol, and nothing of it leaves.
func TestUnassignedAddressIsRefusedAtOnce(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			x := m.tap()
			m.letPing()
			m.start(m.corefile(mode.name, m.routedTo("shop.test")))
			guarded, _ := mode.parties(m.world)
			m.atlas.addrs("www.shop.test.", 60, "198.18.46.1", "2001:db8:18:46::1")
			for _, p := range guarded {
				for _, addr := range []string{"100.96.0.77", "100.127.255.254", "100.100.111.1", "fd00:2021:1111:8000::7:7", "fd00:2021:1111:8000::1f:ffff"} {
					m.wantReset(p.Host, addr)
					m.wantReset(p.Host, net.JoinHostPort(addr, "53"))
					m.wantReset(p.Host, net.JoinHostPort(addr, "443"))
					if err := ping(p.Host, netip.MustParseAddr(addr), time.Second); err == nil || err == syscall.EAGAIN {
						t.Errorf("%s: ping of %s: %v, want a refusal", p.Name(), addr, err)
					}
				}
			}
			if n := x.seen(func(p packet) bool {
				return pool4.Contains(p.destination) || pool6.Contains(p.destination)
			}); n > 0 {
				t.Errorf("%d packets for mapped addresses have left", n)
			}
		})
	}
}
