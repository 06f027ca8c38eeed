package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Side doors that attackers have found, and that are shut.

// What one program's connections have left in the kernel is no way for another, that
// takes the ports they had.
func TestPortsThatAnotherProgramHasUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("a.service", "b.service")
	a, b := apps[0], apps[1]
	w.resets(9)
	w.start(corefile(guardBlock("nft-local", application)))
	for _, row := range []struct {
		name, network string
		port          int
	}{
		{"UDP", "udp", echoPort},
		{"TCP, closed", "tcp", echoPort},
		{"TCP, reset by the peer", "tcp", 9},
	} {
		for i, addr := range []string{a.addr4(row.port), a.addr6(row.port)} {
			to := net.JoinHostPort(addr, strconv.Itoa(row.port))
			source := ":" + strconv.Itoa(4000+10*row.port+i)
			w.lookup(a, "127.0.0.1", addr, 60)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			conn, err := a.DialFrom(ctx, row.network, source, to)
			w.must(err)
			_, err = conn.Write([]byte("p"))
			w.must(err)
			_, err = conn.Read(make([]byte, 1))
			if (err != nil) != (row.port == 9) {
				t.Errorf("%s: %v", row.name, err)
			}
			w.must(conn.Close())
			cancel()

			ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
			if conn, err = b.DialFrom(ctx, row.network, source, to); err == nil {
				_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err = conn.Write([]byte("p")); err == nil && row.network == "udp" {
					_, err = conn.Read(make([]byte, 1))
				}
				conn.Close()
			}
			cancel()
			if err == nil {
				t.Errorf("%s: b has reached %s, which was opened to a", row.name, addr)
			}
		}
	}
}

// A grant that has ended is not good for another connection from the port of one that
// the peer has reset. The kernel remembers that for ten seconds.
func TestExpiredGrantFromPortOfBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.resets(9)
	w.start(corefile(guardBlock("nft-both", "ttl 1s 60s", "margin 1s")))
	for _, p := range []party{w.self(), w.behind()} {
		for _, addr := range []string{p.addr4(1), p.addr6(1)} {
			program, err := p.Program(netlab.As{})
			w.must(err)
			w.lookup(program, p.resolver(addr), addr, 1)
			to := net.JoinHostPort(addr, "9")
			connect := func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				conn, err := program.DialFrom(ctx, "tcp", ":4000", to)
				if err == nil {
					_, _ = conn.Write([]byte("p"))
					_, _ = conn.Read(make([]byte, 1))
					conn.Close()
				}
				return err
			}
			w.must(connect())
			w.eventually("the grant has ended", func() bool { return w.try(t.Context(), program, addr) != nil })
			if connect() == nil {
				t.Errorf("%s: %s is reached again", p.Name(), addr)
			}
		}
	}
}

// resets resets connections on a port of the world after the first byte.
func (w *world) resets(port int) {
	w.Helper()
	listener, err := w.world.Listen("tcp", ":"+strconv.Itoa(port))
	w.must(err)
	w.Cleanup(func() { listener.Close() })
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	}()
}

// DNS itself cannot open the upstream to others.
func TestUpstreamByAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.world.ServeDNS(5353, netlab.Zone()))
	w.startAs(netlab.As{Cgroup: w.cgroup("coredns.service")},
		guardedBlock(".", "ipdestinationguard {\n\tmode nft-local\n\tupstream "+resolver4+":5353\n}", "forward . "+resolver4+":5353"))
	w.lookup(w.guard, "127.0.0.1", resolver4, 60)
	w.wantOpen(w.guard, "tcp", resolver4) // what else it serves
	for _, network := range networks {
		w.wantDNS(w.guard, network, resolver4, 5353, false)
	}
}

// The upstream is not open to others from the ports that CoreDNS has used either. The
// kernel knows its conversations for half a minute, and an attacker can try all ports.
func TestUpstreamFromPortsOfCoreDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	x := w.tap()
	w.startAs(netlab.As{Cgroup: w.cgroup("coredns.service")}, upstreams("nft-local", upstreamOption))
	other := w.program(netlab.As{User: w.user(1001)})
	ports := map[uint16]bool{}
	for n := range 20 {
		w.lookup(w.guard, "127.0.0.1", w.self().addr4(n), 60)
	}
	x.seen(func(p packet) bool {
		if p.destination.String() == resolver4 && p.protocol == 17 {
			ports[uint16(p.payload[0])<<8|uint16(p.payload[1])] = true
		}
		return false
	})
	t.Logf("CoreDNS has used the ports %v", ports)
	asked, taken := 0, 0
	for deadline := time.Now().Add(40 * time.Second); asked == 0 && time.Now().Before(deadline); time.Sleep(time.Second) {
		for port := range ports {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			conn, err := other.DialFrom(ctx, "udp", guard4+":"+strconv.Itoa(int(port)), resolver4+":53")
			cancel()
			if err != nil {
				taken++ // CoreDNS still has it
				continue
			}
			_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
			m, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion("a-198-18-1-1.test.", dns.TypeA), &dns.Conn{Conn: conn})
			conn.Close()
			if err == nil && len(m.Answer) == 1 {
				asked++
			}
		}
	}
	t.Logf("asked %d, taken %d", asked, taken)
	if asked > 0 {
		t.Errorf("another user's program has asked the upstream %d times (%d ports were taken)", asked, taken)
	}
}

// One client must not fill the table in many names, and so keep new ones out for as
// long as it likes: 3,600 seconds here, a day by default. Each new address of its own
// network that it takes is another client to the gateway until its Ethernet address is
// known, which is after the first answer.
func TestFloodInManyNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, routed := w.moreClients()
	w.start(guardedBlock(".", guardBlock("nft-gateway", "max_grants 2000", "max_grants_client 100"), "forward . "+resolver4) +
		guardedBlock("many.test", "", "template IN AAAA {\n"+
			`match "^n(?P<n>[0-9a-f]+)[.]many[.]test[.]$"`+"\n"+
			strings.Join(repeat(100, "answer \"{{ .Name }} 3600 IN AAAA 2001:db8:18:f100::{{ .Group.n }}:%x\""), "\n")+"\n}"))
	most := 0
	for i := range 40 {
		source := fmt.Sprintf("fd50::f:%x", i+1)
		w.must(w.client.Addr("eth0", source+"/64"))
		w.must(w.client.Do(func() error {
			dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}, Timeout: 5 * time.Second}
			conn, err := dialer.Dial("udp6", net.JoinHostPort(gateway6, "53"))
			if err != nil {
				return err
			}
			defer conn.Close()
			m := new(dns.Msg).SetQuestion(fmt.Sprintf("n%x.many.test.", i+1), dns.TypeAAAA).SetEdns0(4096, false)
			_, _, err = new(dns.Client).ExchangeWithConn(m, &dns.Conn{Conn: conn})
			return err
		}))
		most = max(most, len(w.grants()))
	}
	if most > 200 { // its own, and those of a wire that are not known yet
		t.Errorf("one client has %d grants, 100 are its limit", most)
	}
	m, err := w.ask(routed, neighbourGateway6, nameOf(60, w.behind().addr6(1)), dns.TypeAAAA)
	w.must(err)
	if m.Rcode != dns.RcodeSuccess {
		t.Errorf("another client, that has no grants yet, gets none: %v", m)
	}
}
