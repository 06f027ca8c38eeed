package e2e

import (
	bin "encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A binder can take a UDP port for itself.
type binder interface {
	sender
	ListenPacket(network, address string) (net.PacketConn, error)
}

// takeOver binds a port of the guard as soon as nobody has it any more.
func (w *world) takeOver(by binder, addr string) net.PacketConn {
	w.Helper()
	var conn net.PacketConn
	for deadline := time.Now().Add(40 * time.Second); conn == nil; time.Sleep(100 * time.Millisecond) {
		var err error
		if conn, err = by.ListenPacket("udp", addr); err != nil && time.Now().After(deadline) {
			w.Fatal(err)
		}
	}
	w.Cleanup(func() { conn.Close() })
	return conn
}

// says sends from a socket, and returns what comes back.
func says(conn net.PacketConn, to string, data []byte) ([]byte, error) {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.WriteTo(data, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
		return nil, err
	}
	b := make([]byte, 512)
	n, _, err := conn.ReadFrom(b)
	return b[:n], err
}

// CoreDNS lets go of the ports that it has asked from. Who binds one of them talks to
// nobody by it.
func TestUpstreamPortTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	evil := w.program(netlab.As{User: w.user(1001), Cgroup: w.cgroup("evil.service")})
	w.startAs(netlab.As{Cgroup: w.cgroup("coredns.service")}, upstreams("nft-local", upstreamOption))
	wire := w.tap()
	w.wantResolved(1)
	for server, own := range map[string]string{resolver4: "192.0.2.1", resolver6: "2001:db8::1"} {
		port := 0
		w.eventually("CoreDNS has asked "+server, func() bool {
			return wire.seen(func(p packet) bool {
				if p.protocol == 17 && p.destination.String() == server && bin.BigEndian.Uint16(p.payload[2:]) == 53 {
					port = int(bin.BigEndian.Uint16(p.payload))
				}
				return port != 0
			}) > 0
		})
		conn := w.takeOver(evil, net.JoinHostPort(own, fmt.Sprint(port)))
		q, err := new(dns.Msg).SetQuestion("a-198-18-9-9.ttl-60.secret.test.", dns.TypeA).Pack()
		w.must(err)
		if _, err := says(conn, net.JoinHostPort(server, "53"), q); err == nil {
			t.Errorf("%s answers who has taken over a port of CoreDNS", server)
		} else if !refused(err) {
			t.Error(err)
		}
	}
	w.wantResolved(2)
}

// The name that somebody gives to the resolvers' addresses opens no port that is
// CoreDNS's own, but for those whom the Corefile lets.
func TestUpstreamIsNotGranted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ports := []int{443, 5353}
	for _, port := range ports {
		w.must(w.world.ServeDNS(port, netlab.Zone()))
	}
	all := "upstream " + resolver4 + ":53 " + resolver4 + ":443 " + resolver4 + ":5353 [" + resolver6 + "]:443 [" + resolver6 + "]:5353"
	coredns := netlab.As{Cgroup: w.cgroup("coredns.service")}
	file := func(options ...string) string { return upstreams("nft-both", append(options, all)...) }
	evil := w.program(netlab.As{User: w.user(1001), Cgroup: w.cgroup("evil.service")})
	c := w.startAs(coredns, file())
	wantOpen := func(open bool) {
		t.Helper()
		for _, from := range []struct {
			sender
			party
		}{{evil, w.self()}, {w.client, w.behind()}} {
			for _, server := range []string{resolver4, resolver6} {
				w.lookup(from.sender, from.resolver(server), server, 60)
				w.wantOpen(from.sender, "tcp", server)
				for _, network := range networks {
					for _, port := range ports {
						w.wantDNS(from.sender, network, server, port, open)
					}
				}
			}
		}
	}
	wantOpen(false)
	w.mustReload(c, file("allowedIPs "+resolver4+" "+resolver6))
	wantOpen(true)
	w.mustReload(c, file())
	wantOpen(false)
	w.mustReload(c, upstreams("nft-both", upstreamOption)) // it was for being upstream
	wantOpen(true)
}

// With the port of a socket that a service has closed, no other service has its grant.
func TestApplicationPortTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("a.service", "evil.service")
	a, evil := apps[0], apps[1]
	w.start(corefile(guardBlock("nft-local", application)))
	for _, addr := range []string{a.addr4(1), a.addr6(1)} {
		w.lookup(a, "127.0.0.1", addr, 60)
		own := "[2001:db8::1]:4444"
		if is4(addr) {
			own = "192.0.2.1:4444"
		}
		to := net.JoinHostPort(addr, fmt.Sprint(echoPort))
		conn, err := a.ListenPacket("udp", own)
		w.must(err)
		_, err = says(conn, to, []byte("ping"))
		w.must(err)
		conn.Close()
		if _, err := says(w.takeOver(evil, own), to, []byte("evil")); err == nil {
			t.Errorf("evil.service has the connection of a.service to %s", addr)
		} else if !refused(err) {
			t.Error(err)
		}
	}
}
