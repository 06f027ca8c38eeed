package nft

import (
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// from4 and from6 are this machine's addresses towards the world.
const from4, from6 = "192.0.2.1", "2001:db8::1"

// bind opens a UDP socket at a port, towards that address.
func (n *network) bind(from speaker, port int, addr string) net.PacketConn {
	n.Helper()
	source := from6
	if netip.MustParseAddrPort(addr).Addr().Is4() {
		source = from4
	}
	conn, err := from.(interface {
		ListenPacket(network, address string) (net.PacketConn, error)
	}).ListenPacket("udp", net.JoinHostPort(source, strconv.Itoa(port)))
	if err != nil {
		n.Fatal(err)
	}
	return conn
}

// echoed is one packet there and back.
func echoed(conn net.PacketConn, addr string, patience time.Duration) error {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))); err != nil {
		return err
	}
	_, _, err := conn.ReadFrom(make([]byte, 1))
	return err
}

// fromPort fails the test unless the speaker, if there is one, gets an echo from all
// addresses, or none, by sockets at that port that it closes.
func (n *network) fromPort(port int, from speaker, want bool, addrs ...string) {
	n.Helper()
	if from == nil {
		return
	}
	patience := 200 * time.Millisecond
	if want {
		patience = 2 * time.Second
	}
	for _, addr := range addrs {
		conn := n.bind(from, port, addr)
		if err := echoed(conn, addr, patience); (err == nil) != want {
			n.Errorf("%s from port %d to %s: %v", from.Name(), port, addr, err)
		}
		conn.Close()
	}
}

// Whoever binds the port of a socket that the resolvers' program has closed has the
// connection, as the kernel sees it, and gets nowhere with it; nor does a grant for the
// resolvers' addresses lead to their ports.
func TestUpstreamIsNotTakenOver(t *testing.T) {
	n := newNetwork(t)
	r := worldRules(t)
	for _, port := range []int{53, 443} {
		r.Upstream = append(r.Upstream, upstreams(t, to(1, port)...)...)
	}
	r.Upstream = append(r.Upstream, upstreams(t, append(to(2, 443), to(3, 443)...)...)...)
	r.Self = backend.Program{User: 1000}
	r.Allowed, r.AllowedLocal = allow(2), allow(3)
	self, other := n.as(1000), n.as(1001)
	if self == nil {
		t.Skip("there are no users")
	}
	old, err := n.here.Dial(t.Context(), "tcp", to(1, 443)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	n.guard(r)
	n.open(time.Hour, 1, backend.Scope{Holder: backend.Machine}, n.link("lan0"))

	open, resolvers := append(to(2, 443), to(3, 443)...), append(to(1, 53), to(1, 443)...)
	n.fromPort(4000, self, true, append(resolvers, open...)...)
	n.fromPort(4000, other, false, resolvers...)
	n.fromPort(4000, n.here, false, resolvers...)
	n.fromPort(4000, other, true, open...)
	n.fromPort(4000, self, true, resolvers...)
	for _, from := range []speaker{other, n.here, n.client} {
		for _, network := range []string{"tcp", "udp"} {
			n.reaches(from, false, network, resolvers...)
			n.reaches(from, true, network, to(1, 8005)...) // what else is there
			n.reaches(from, true, network, to(2, 443)...)
			n.reaches(from, from != n.client, network, to(3, 443)...)
		}
	}
	if err := echo(old); err != nil {
		t.Errorf("a TCP connection that was there before: %v", err)
	}

	// A live one, and one that began before the resolver was one.
	r.Upstream = upstreams(t, to(1, 53)...)
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	n.reaches(n.client, true, "tcp", to(1, 443)...)
	before, err := n.client.Dial(t.Context(), "tcp", to(1, 443)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	live := n.bind(self, 4000, to(1, 53)[0])
	defer live.Close()
	for range 2 {
		r.Upstream = append(r.Upstream, upstreams(t, to(1, 443)...)...)
		if err := n.Open(r); err != nil {
			t.Fatal(err)
		}
		if err := echoed(live, to(1, 53)[0], time.Second); err != nil {
			t.Error(err)
		}
		if err := echo(before); err != nil {
			t.Error(err)
		}
	}
	n.reaches(n.client, false, "udp", to(1, 443)...)
}

// Who asks a resolver that somebody else began to ask is not stopped: the other end's
// packets are the connection's first.
func TestResolverMayConnect(t *testing.T) {
	r := worldRules(t)
	r.Upstream, r.Self = upstreams(t, to(1, 4000)...), backend.Program{User: 1000}
	n := guardedNetwork(t, r)
	if err := n.here.Echo(443); err != nil {
		t.Fatal(err)
	}
	v4, v6 := addrs(1)
	for source, addr := range map[netip.Addr]string{v4: from4, v6: from6} {
		conn, err := n.world.ListenPacket("udp", netip.AddrPortFrom(source, 4000).String())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := echoed(conn, net.JoinHostPort(addr, "443"), time.Second); err != nil {
				t.Error(err)
			}
		}
		conn.Close()
	}
}

// allow are both addresses.
func allow(number int) []netip.Prefix {
	v4, v6 := addrs(number)
	return []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)}
}
