package nft

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// endGrants ends all grants before their time.
func (n *network) endGrants() {
	n.Helper()
	if err := n.do(func(w *writer) error {
		msgs, err := compose(func(c *nftables.Conn) error {
			for _, s := range w.grants.all() {
				c.FlushSet(&nftables.Set{Name: s.name, Table: &nftables.Table{Name: w.rules.Table, Family: nftables.TableFamilyINet}})
			}
			return nil
		})
		if err != nil {
			return err
		}
		w.batch.begin(0)
		w.batch.add(msgs)
		w.inForce.Clear()
		w.live = live{}
		return w.socket.transact(&w.batch)
	}); err != nil {
		n.Fatal(err)
	}
}

// A user of addresses is a host with those it can have grants for.
type user struct {
	*netlab.Host
	number int // its first
}

// addrs are both of an address's, or the one that a client can have that is known by
// its IPv4 address alone.
func (n *network) addrs(u user, number int) []string {
	if u.Host == n.other {
		return to(u.number+number, 443)[:1]
	}
	return to(u.number+number, 443)
}

// lingering is a network where everybody has grants for the addresses of these numbers,
// those from 100 on in a class.
func lingering(t *testing.T, linger time.Duration, numbers ...int) (n *network, r backend.Rules, users []user, inUnit speaker) {
	n = newNetwork(t)
	u := n.unit("unit")
	r = worldRules(t)
	r.Linger = linger
	r.LocalHolders = []backend.Holder{backend.Machine, backend.Unit}
	r.Classes = map[backend.Class]backend.Predicates{1: {Ports: ports(t, "tcp/443", "udp/443")}}
	n.guard(r)
	for _, i := range numbers {
		for number, class := range map[int]backend.Class{0: 0, 100: 1} {
			n.open(time.Hour, number+i, inClass(backend.Scope{Holder: backend.Machine}, class), inClass(n.link("lan0"), class),
				inClass(backend.ClientScope(netip.MustParseAddr(other4)), class))
			n.open(time.Hour, number+200+i, inClass(backend.UnitScope(u.ID), class))
		}
	}
	for _, h := range []*netlab.Host{n.here, n.client, n.other} {
		users = append(users, user{h, 0}, user{h, 100})
	}
	return n, r, users, n.as(0, u)
}

// What the holder of a grant has used stays open to new connections when the grant has
// ended; what was not used, or is not the holder's, or is not what the grant was for,
// does not.
func TestLinger(t *testing.T) {
	// Of no other test: connection tracking remembers those. Where one has been used, what is
	// refused is TCP: a new socket of UDP may have the port of a connection that is remembered.
	const used, idle = 41, 42
	n, r, users, inUnit := lingering(t, time.Hour, used, idle)
	for _, u := range users {
		n.reaches(u.Host, true, "tcp", n.addrs(u, used)...)
	}
	units := append(to(200+used, 443), to(300+used, 443)...)
	n.reaches(inUnit, true, "udp", units...)
	n.endGrants()

	stays := func() {
		t.Helper()
		for _, u := range users {
			n.reaches(u.Host, true, "tcp", n.addrs(u, used)...)
			n.reaches(u.Host, true, "udp", n.addrs(u, used)...)
			n.reaches(u.Host, false, "udp", n.addrs(u, idle)...)
		}
		n.reaches(inUnit, true, "udp", units...)
	}
	stays()
	n.reaches(inUnit, false, "udp", append(to(200+idle, 443), to(300+idle, 443)...)...)
	n.reaches(n.here, false, "tcp", units...)
	n.reaches(n.other, false, "tcp", to(used, 443)[1:]...)
	for _, h := range []*netlab.Host{n.here, n.client} {
		n.reaches(h, false, "udp", to(100+used, 8005)...) // not of the class
		n.reaches(h, false, "udp", to(used, 53)...)
	}

	// A reload keeps it, and forgets what is not known any more.
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	stays()
	for _, classes := range []map[backend.Class]backend.Predicates{nil, r.Classes} {
		r.Classes = classes
		if err := n.Open(r); err != nil {
			t.Fatal(err)
		}
		n.reaches(n.client, true, "udp", to(used, 443)...)
		n.reaches(n.client, false, "tcp", to(100+used, 443)...)
		n.reaches(inUnit, true, "udp", to(200+used, 443)...)
		n.reaches(inUnit, false, "tcp", to(300+used, 443)...)
	}
	for _, linger := range []time.Duration{0, time.Hour} {
		r.Linger = linger
		if err := n.Open(r); err != nil {
			t.Fatal(err)
		}
		n.reaches(n.client, false, "tcp", to(used, 443)...)
	}
}

// Packets of a live connection, and of new ones, keep the address open for as long as
// there are any; then it shuts.
func TestLingerIsRenewed(t *testing.T) {
	const linger = 3 * time.Second
	const live, again, once = 1, 2, 3
	n, r, users, _ := lingering(t, linger, live, again, once)
	stop := make(chan struct{})
	var using sync.WaitGroup
	keep := func(use func() error) {
		if err := use(); err != nil {
			t.Fatal(err)
		}
		using.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
				}
				if err := use(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for _, u := range users {
		for _, addr := range n.addrs(u, live) {
			conn, err := u.Dial(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			keep(func() error { return echo(conn) })
		}
		for _, addr := range n.addrs(u, again) {
			keep(func() error { return reach(t.Context(), u, true, "udp", addr) })
		}
		n.reaches(u.Host, true, "udp", n.addrs(u, once)...)
	}
	n.endGrants()
	time.Sleep(2 * linger)
	for _, u := range users {
		n.reaches(u.Host, true, "tcp", append(n.addrs(u, live), n.addrs(u, again)...)...)
		n.reaches(u.Host, false, "tcp", n.addrs(u, once)...)
	}
	close(stop)
	using.Wait()
	backendtest.Eventually(t, "nothing lingers", func() bool {
		return !strings.Contains(usedSets.ReplaceAllString(nft(t, "list", "table", "inet", r.Table), ""), " expires ")
	})
	for _, u := range users {
		n.reaches(u.Host, false, "tcp", append(n.addrs(u, live), n.addrs(u, again)...)...)
	}
}

// usedSets are those for live connections only, and of what was refused.
var usedSets = regexp.MustCompile(`(?s)\tset (arming|settling|(live|denied)[^ ]*) \{.*?\n\t\}`)

// A grant is never shorter for it, and none less is let through where the set of what
// is used is full.
func TestLingerWhereItIsFull(t *testing.T) {
	r := worldRules(t)
	r.Linger, r.MaxGrants = time.Hour, 4
	n := guardedNetwork(t, r)
	machine := backend.Scope{Holder: backend.Machine}
	for round := range 3 {
		for i := range 4 {
			n.open(time.Hour, 10*round+i, machine)
			n.reaches(n.here, true, "udp", to(10*round+i, 443)...)
		}
		n.endGrants()
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
	n := guardedNetwork(t, r)
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
