package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// grantLife is how long grants last in these tests, and lingerFor how long after the
// last packet an address stays open. What is waited for is later by their sum at most.
const (
	grantLife = 1500 * time.Millisecond
	lingerFor = 3 * time.Second
)

// What the holder of a grant uses, on a live connection or with new ones, stays open
// to new ones after the grant; what is not used, does not.
func TestLinger(t *testing.T) {
	dir, unit := cgroup(t, "hbtest/linger")
	r := worldRules(t)
	r.Linger = lingerFor
	r.LocalHolders = []backend.Holder{backend.Machine, backend.Unit}
	r.Classes = map[backend.Class]backend.Predicates{1: {Ports: ports(t, "tcp/443", "udp/443")}}
	n := newNetwork(t, r)
	machine, cl := backend.Scope{Holder: backend.Machine}, backend.ClientScope(netip.MustParseAddr(other4))
	const used, renewed, idle, lost = 1, 2, 3, 4
	for i := used; i <= lost; i++ {
		n.open(grantLife, i, machine, n.link("lan0"), cl, backend.UnitScope(unit.ID))
		n.open(grantLife, 100+i, inClass(machine, 1), inClass(n.link("lan0"), 1), inClass(cl, 1), inClass(backend.UnitScope(unit.ID), 1))
	}
	// Who has used what on what port; holders' own addresses each.
	users := []struct {
		from   *netlab.Host
		number int
	}{{n.here, 0}, {n.client, 0}, {n.other, 0}, {n.here, 100}, {n.client, 100}, {n.other, 100}}
	of := func(from *netlab.Host, number int) []string {
		if from == n.other { // known by its IPv4 address alone
			return to(number, 443)[:1]
		}
		return to(number, 443)
	}
	var live []net.Conn
	for _, u := range users {
		for _, addr := range of(u.from, u.number+used) {
			conn, err := dialFrom(u.from, time.Second)("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			live = append(live, conn)
		}
		n.reaches(u.from, true, "tcp", of(u.from, u.number+renewed)...)
		n.reaches(u.from, true, "udp", of(u.from, u.number+lost)...)
	}
	runner{cgroup: dir}.reaches(t, true, "tcp", append(to(used, 443), to(100+used, 443)...)...)

	// Longer than the grant and, in all, than what it would linger without use.
	for end := time.Now().Add(grantLife + lingerFor + time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		for _, conn := range live {
			if err := echo(conn); err != nil {
				t.Fatal(err)
			}
		}
		for _, u := range users {
			n.reaches(u.from, true, "udp", of(u.from, u.number+renewed)...)
		}
		runner{cgroup: dir}.reaches(t, true, "udp", append(to(used, 443), to(100+used, 443)...)...)
	}
	if g := n.inKernel(); len(g) > 0 {
		t.Fatalf("%d grants live", len(g))
	}
	for _, u := range users {
		n.reaches(u.from, true, "tcp", of(u.from, u.number+used)...)
		n.reaches(u.from, true, "tcp", of(u.from, u.number+renewed)...)
		n.reaches(u.from, false, "tcp", of(u.from, u.number+idle)...)
		n.reaches(u.from, false, "tcp", of(u.from, u.number+lost)...)
	}
	runner{cgroup: dir}.reaches(t, true, "tcp", append(to(used, 443), to(100+used, 443)...)...)

	// It is the holder's, for the class, and never for DNS.
	n.reaches(n.here, false, "udp", append(to(100+used, 8005), to(used, 53)...)...)
	n.reaches(n.client, false, "udp", append(to(100+used, 8005), to(used, 53)...)...)
	n.reaches(n.other, false, "udp", to(used, 443)[1:]...)

	// A reload keeps it, and forgets what is not known any more.
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	n.reaches(n.client, true, "tcp", to(used, 443)...)
	n.reaches(n.client, true, "tcp", to(100+used, 443)...)
	gone := r
	gone.Classes = nil
	for range 2 {
		if err := n.Open(gone); err != nil {
			t.Fatal(err)
		}
		n.reaches(n.client, true, "tcp", to(used, 443)...)
		n.reaches(n.client, false, "tcp", to(100+used, 443)...)
		gone = r
	}
	for _, conn := range live {
		conn.Close()
	}
	time.Sleep(lingerFor + time.Second)
	n.reaches(n.here, false, "tcp", to(used, 443)...)
	n.reaches(n.client, false, "tcp", to(renewed, 443)...)
}

// A grant is never shorter for it, and none less is let through where the set of what
// is used is full.
func TestLingerWhereItIsFull(t *testing.T) {
	r := worldRules(t)
	r.Linger, r.MaxGrants = time.Hour, 4
	n := newNetwork(t, r)
	machine := backend.Scope{Holder: backend.Machine}
	for round := range 3 {
		for i := range 4 {
			n.open(time.Second, 10*round+i, machine)
			n.reaches(n.here, true, "udp", to(10*round+i, 443)...)
		}
		backendtest.Eventually(t, "there is room", func() bool { return len(n.inKernel()) == 0 })
	}
	for i := range 4 {
		n.reaches(n.here, true, "udp", to(i, 443)...) // the first fill it
		n.reaches(n.here, false, "udp", to(10+i, 443)...)
	}
	for _, family := range []string{"4", "6"} {
		if set := nft(t, "list", "set", "inet", r.Table, "linger-local"+family); strings.Count(set, " expires ") != 4 {
			t.Error(set)
		}
	}
}

// Packets that come in on a connection that somebody else began are not the holder's
// use of anything; nor are those of one that is refused.
func TestNotUsed(t *testing.T) {
	r := worldRules(t)
	r.Linger = time.Hour
	r.Allowed = prefixes(t, "10.0.0.0/16")
	n := newNetwork(t, r)
	v4, _ := addrs(1)
	n.open(time.Minute, 1, n.link("lan0"))
	if err := n.client.Echo(443); err != nil {
		t.Fatal(err)
	}
	// From the granted address, and back to it.
	var conn net.Conn
	if err := n.world.Do(func() (err error) {
		from := net.Dialer{LocalAddr: &net.UDPAddr{IP: v4.AsSlice()}}
		conn, err = from.Dial("udp", net.JoinHostPort(client4, "443"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if err := echo(conn); err != nil {
			t.Fatal(err)
		}
	}
	n.reaches(n.client, false, "udp", net.JoinHostPort(v4.String(), "53"))
	for _, set := range []string{"linger-link4", "linger-local4", "linger-client4"} {
		if text := nft(t, "list", "set", "inet", r.Table, set); strings.Contains(text, "elements") {
			t.Error(text)
		}
	}
}

// With none, there is no trace of it.
func TestNoLinger(t *testing.T) {
	r := backendtest.ScopedRules()
	r.Linger = time.Hour
	b := newBackend(t)
	for _, linger := range []time.Duration{time.Hour, 0} {
		r.Linger = linger
		if err := b.Open(r); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(nft(t, "list", "table", "inet", r.Table), setLinger); got != (linger > 0) {
			t.Errorf("linger %v: %v", linger, got)
		}
	}
	for _, last := range []time.Duration{1, time.Millisecond - 1} { // none would be for good
		if text := fmt.Sprint(refresh("x", selector{destination4}, last).text); !strings.Contains(text, "timeout 1ms") {
			t.Error(text)
		}
	}
}
