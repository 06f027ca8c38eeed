package nft

import (
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
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
	listener := from.(interface {
		ListenPacket(network, address string) (net.PacketConn, error)
	})
	var conn net.PacketConn
	backendtest.Eventually(n.T, "the port is free", func() (free bool) {
		var err error
		conn, err = listener.ListenPacket("udp", net.JoinHostPort(source, strconv.Itoa(port)))
		return err == nil
	})
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

// What a holder of a grant has begun by UDP goes on when the grant has ended, for the
// holder, and is never somebody else's who binds the port.
func TestNobodyTakesOverPackets(t *testing.T) {
	n := newNetwork(t)
	a, b := n.unit("a"), n.unit("b")
	inA, inB := n.as(0, a), n.as(0, b)
	if inA == nil || n.as(1000) == nil {
		t.Skip("there are no cgroups or users")
	}
	older := n.bind(n.as(1002), 4100, to(9, 443)[0])
	defer older.Close()
	r := worldRules(t)
	r.LocalHolders = []backend.Holder{backend.Machine, backend.User, backend.Unit}
	r.Classes = map[backend.Class]backend.Predicates{1: {Ports: ports(t, "udp/443"), Users: []uint32{1001}}, 2: {Units: []backend.Cgroup{a.Cgroup}}}
	r.Allowed = allow(8)
	before := r
	before.LocalHolders, before.Classes = everyone, nil
	n.guard(before)
	n.open(time.Hour, 9, backend.Scope{})
	if err := echoed(older, to(9, 443)[0], time.Second); err != nil {
		t.Fatal(err)
	}
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	machine := backend.Scope{Holder: backend.Machine}
	grants := []struct {
		holder backend.Scope
		by     speaker
		not    []speaker
	}{
		{backend.UnitScope(a.ID), inA, []speaker{inB, n.here, n.as(1000)}},
		{backend.UserScope(1000), n.as(1000), []speaker{inB, n.as(1001)}},
		{inClass(machine, 1), n.as(1001), []speaker{n.as(1000), inA}},
		{inClass(machine, 2), inA, []speaker{inB, n.as(1001)}},
	}
	settle := func() { // as if that time had come
		t.Helper()
		if err := echoed(older, to(9, 443)[0], time.Second); err != nil {
			t.Error(err)
		}
		n.flush(setSettling)
	}
	// Nor is anything one from before that has begun since.
	n.open(time.Hour, 7, backend.UnitScope(a.ID))
	n.fromPort(4001, inA, true, to(7, 443)...)
	n.fromPort(4001, inB, false, to(7, 443)...)
	settle()
	for i, g := range grants {
		n.open(time.Hour, i, g.holder)
	}
	n.open(time.Hour, 5, machine)
	var live []net.PacketConn
	for i, g := range grants {
		for _, addr := range to(i, 443) {
			live = append(live, n.bind(g.by, 4200+i, addr))
			defer live[len(live)-1].Close()
			if _, err := live[len(live)-1].WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for round := range 2 {
		for i, g := range grants {
			n.fromPort(4000+round, g.by, round == 0, to(i, 443)...)
			for _, other := range g.not {
				n.fromPort(4000, other, false, to(i, 443)...)
			}
			if round == 0 {
				n.fromPort(4000, g.by, true, to(i, 443)...)
			}
			// Since the first packet, before anybody knew that it would live.
			for j, addr := range to(i, 443) {
				if err := echoed(live[2*i+j], addr, time.Second); err != nil {
					t.Errorf("%s: a live one to %s: %v", g.by.Name(), addr, err)
				}
			}
		}
		n.fromPort(4000, inA, true, to(5, 443)...)
		n.fromPort(4000, inB, true, to(5, 443)...) // everybody's
		n.fromPort(4000, inA, true, to(8, 443)...)
		n.fromPort(4000, inB, true, to(8, 443)...)
		if err := echoed(older, to(9, 443)[0], time.Second); err != nil {
			t.Errorf("one from before: %v", err)
		}
		n.endGrants()
	}
	// What is allowed no more is not cut.
	allowed := n.bind(inB, 4300, to(8, 443)[0])
	defer allowed.Close()
	if err := echoed(allowed, to(8, 443)[0], time.Second); err != nil {
		t.Fatal(err)
	}
	r.Allowed = nil
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := echoed(allowed, to(8, 443)[0], time.Second); err != nil {
			t.Errorf("what was allowed: %v", err)
		}
		settle()
	}
	n.fromPort(4300, n.as(1000), false, to(8, 443)[1])
	older.Close()
	n.fromPort(4100, inB, false, to(9, 443)...)
}

// flush empties a set.
func (n *network) flush(set string) {
	n.Helper()
	if err := n.do(func(w *writer) error {
		msgs, err := compose(func(c *nftables.Conn) error {
			c.FlushSet(&nftables.Set{Name: set, Table: &nftables.Table{Name: w.rules.Table, Family: nftables.TableFamilyINet}})
			return nil
		})
		if err != nil {
			return err
		}
		w.batch.begin(0)
		w.batch.add(msgs)
		return w.socket.transact(&w.batch)
	}); err != nil {
		n.Fatal(err)
	}
}
