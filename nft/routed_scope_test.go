package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// Nothing that opens a real address, or everything, opens a mapped one.
func TestNothingElseOpensMapped(t *testing.T) {
	n := routedNetwork(t)
	r := routedRules(t)
	r.Allowed = prefixes(t, "198.18.0.0/15", "2001:db8:f::/48")
	r.AllowedLocal, r.AllowedGateway = r.Allowed, r.Allowed
	r.Upstream, r.Self = upstreams(t, to(1, 8005)...), backend.Program{User: 0}
	n.guard(r)
	defer n.dump()
	n.mapTo("one", 1, 1)
	n.mapTo("one", 2, 1)
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			n.openReal(both(addrs(1))[0], s.holder)
			n.openReal(both(addrs(1))[1], s.holder)
			for _, network := range []string{"tcp", "udp"} {
				n.reaches(s, true, network, to(1, 443)...)
			}
			n.refused(s, toMapped(1, 443)...)
			n.openMapped(2, s.holder)
			n.refused(s, toMapped(1, 443)...)
			for _, network := range []string{"tcp", "udp"} {
				n.reaches(s, true, network, toMapped(2, 443)...)
				n.reaches(s, false, network, toMapped(2, 8005)...) // only CoreDNS asks upstream
				n.reaches(s, false, network, append(toMapped(2, 53), toMapped(2, 853)...)...)
			}
		})
	}
}

// Programs are told apart by mapped addresses as by others: the holder's packets pass, also
// those of a live connection whose grant has ended, and nobody else's who binds its port.
func TestRoutedPrograms(t *testing.T) {
	n := routedNetwork(t)
	a, b := n.unit("a"), n.unit("b")
	inA, inB := n.as(0, a), n.as(0, b)
	if inA == nil || n.as(1000) == nil {
		t.Skip("there are no cgroups or users")
	}
	r := routedRules(t)
	r.LocalHolders = []backend.Holder{backend.Machine, backend.User, backend.Unit}
	r.Classes = map[backend.Class]backend.Predicates{1: {Ports: ports(t, "udp/443")}}
	n.guard(r)
	defer n.dump()
	grants := []struct {
		holder backend.Scope
		by     speaker
		not    []speaker
	}{
		{backend.UnitScope(a.ID), inA, []speaker{inB, n.here, n.as(1000)}},
		{backend.UserScope(1000), n.as(1000), []speaker{inB, n.as(1001)}},
		{inClass(backend.UserScope(1001), 1), n.as(1001), []speaker{n.as(1000), inA}},
	}
	n.flush(setSettling) // as if that time had come
	var live []net.PacketConn
	for i, g := range grants {
		n.mapTo("one", i+1, 1)
		n.openMapped(i+1, g.holder)
		for _, addr := range toMapped(i+1, 443) {
			live = append(live, n.bind(g.by, 4200+i, addr))
			defer live[len(live)-1].Close()
			if err := echoed(live[len(live)-1], addr, time.Second); err != nil {
				t.Errorf("%s to %s: %v", g.by.Name(), addr, err)
			}
		}
	}
	for round := range 2 {
		for i, g := range grants {
			n.fromPort(4000+round, g.by, round == 0, toMapped(i+1, 443)...)
			for _, other := range g.not {
				n.fromPort(4000, other, false, toMapped(i+1, 443)...)
				n.reaches(other, false, "tcp", toMapped(i+1, 443)...)
			}
			for j, addr := range toMapped(i+1, 443) {
				if err := echoed(live[2*i+j], addr, time.Second); err != nil {
					t.Errorf("%s: a live one to %s: %v", g.by.Name(), addr, err)
				}
			}
		}
		n.fromPort(4100, n.as(1001), false, toMapped(3, 8005)...) // no port of its class
		n.endGrants()
	}
}

// What is used stays open, and what is not does not.
func TestRoutedLinger(t *testing.T) {
	n := routedNetwork(t)
	use := func(linger time.Duration) {
		r := routedRules(t)
		r.Linger = linger
		n.guard(r)
		n.mapTo("one", 1, 1)
		n.mapTo("one", 2, 1)
		for _, s := range n.senders() {
			n.openMapped(1, s.holder)
			n.openMapped(2, s.holder)
			n.reaches(s, true, "tcp", toMapped(1, 443)...)
		}
		n.endGrants()
	}
	defer n.dump()
	use(time.Minute)
	for _, s := range n.senders() {
		n.reaches(s, true, "tcp", toMapped(1, 443)...)
		n.refused(s, toMapped(2, 443)...)
	}
	if err := n.Close(backend.Remove); err != nil {
		t.Fatal(err)
	}
	const soon = time.Second
	use(soon)
	for _, s := range n.senders() {
		backendtest.Eventually(t, "it lingers no more", func() bool {
			time.Sleep(2 * soon) // each try is a use
			_, err := asked(t.Context(), s, "tcp", toMapped(1, whoPort)[0])
			return err != nil
		})
	}
}

// The plain DNS of guarded clients is captured also where they send it to a mapped address,
// and to one of a pool that no name has.
func TestRoutedCapture(t *testing.T) {
	for _, port := range []uint16{53, 5353} {
		t.Run(fmt.Sprint(port), func(t *testing.T) {
			n := routedNetwork(t)
			r := routedRules(t)
			r.Capture, r.Interfaces, r.DNSPorts = port, []string{"lan0"}, true
			n.guard(r)
			defer n.dump()
			n.mapTo("one", 1, 1)
			n.openMapped(1, n.link("lan0"))
			if err := n.here.Echo(int(port)); err != nil {
				t.Fatal(err)
			}
			before := n.world.Accepted()
			for _, network := range []string{"tcp", "udp"} {
				n.reaches(n.client, true, network, append(toMapped(1, 53), toMapped(2, 53)...)...)
			}
			if n.world.Accepted() != before {
				t.Error("somebody else has answered")
			}
			if visited := n.connections(nil); len(visited) > 0 { // none of them uses the address
				t.Errorf("visited: %v", visited)
			}
			n.reaches(n.client, true, "tcp", toMapped(1, 853)...)
			n.seen(n.client, 1, 1, egressOne4, egressOne6)
		})
	}
}

// Senders that are not guarded have nothing of a route. What they send to a pool is refused, as
// it is of others, and leaves no other way; but what is live goes on.
func TestRoutedUnguarded(t *testing.T) {
	for name, tt := range map[string]struct {
		rules func(*backend.Rules)
		who   func(*network) host
		as    [2]string
	}{
		"by another interface": {func(r *backend.Rules) { r.Interfaces = []string{"lan0"} }, func(n *network) host { return n.other }, [2]string{other4, other6}},
		"a gateway itself":     {func(r *backend.Rules) { r.Local = false }, func(n *network) host { return n.here }, [2]string{from4, from6}},
		"through a server":     {func(r *backend.Rules) { r.Gateway = false }, func(n *network) host { return n.other }, [2]string{other4, other6}},
	} {
		t.Run(name, func(t *testing.T) {
			n := routedNetwork(t)
			for _, pool := range poolsOfTests { // as if somebody had its addresses
				if err := n.world.Local(pool.String()); err != nil {
					t.Fatal(err)
				}
			}
			const sentinel4, sentinel6 = "100.100.111.1", "fd00:2021:1111:8000:100:100:111:1"
			if err := errors.Join(n.here.Addr("wan", sentinel4+"/32"), n.here.Addr("wan", sentinel6+"/128"), n.here.Echo(444)); err != nil {
				t.Fatal(err)
			}
			r, who := routedRules(t), tt.who(n)
			tt.rules(&r)
			without := r
			without.Routes = nil
			n.guard(without)
			defer n.dump()
			live := n.dialsBoth(who, toMapped(3, 443)...)
			n.reopen(r)
			n.mapTo("one", 1, 1)
			for _, s := range n.senders() {
				n.openMapped(1, s.holder)
			}
			n.openMapped(1, n.link("lan1"), backend.ClientScope(netip.MustParseAddr(other4)), backend.ClientScope(netip.MustParseAddr(other6)))
			sniffed := n.countsTo(slices.Concat(both(mappedAddrs(1)), both(mappedAddrs(2))))
			n.refused(who, append(toMapped(1, 443), toMapped(2, 443)...)...)
			if leaked := sniffed(); leaked > 0 {
				t.Errorf("%d packets have left by the default route", leaked)
			}
			n.talks(true, live...)
			for _, network := range []string{"tcp", "udp"} { // of this machine
				n.reaches(who, true, network, net.JoinHostPort(sentinel4, "444"), net.JoinHostPort(sentinel6, "444"))
			}
			for i, real := range to(1, whoPort) {
				want := tt.as[i] + " to " + both(addrs(1))[i].String()
				if got, err := asked(t.Context(), who, "tcp", real); got != want {
					t.Errorf("seen as %q (%v), want %q", got, err, want)
				}
			}
			if s := n.senders()["forwarded"]; name == "by another interface" {
				n.seen(s, 1, 1, egressOne4, egressOne6)
			}
		})
	}
}
