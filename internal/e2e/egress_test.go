package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// given asks for a name's addresses of one family, and fails unless all there are come
// from a pool.
func (w *world) given(from sender, server, name string, pool netip.Prefix) []string {
	w.Helper()
	m, err := w.ask(from, server, name, typeFor(pool.Addr().String()))
	w.must(err)
	all := addresses(m)
	if m.Rcode != dns.RcodeSuccess || len(all) == 0 {
		w.Fatalf("%s: %s has no address: %v", from.Name(), name, m)
	}
	for _, a := range all {
		if !pool.Contains(netip.MustParseAddr(a)) {
			w.Errorf("%s: %s has %s, which is not of %v", from.Name(), name, a, pool)
		}
	}
	return all
}

// The guide's two boxes: the guard asks the gateway, which alone maps and translates, and
// sends mapped addresses down the tunnel, or the wire.
func TestEgressGateway(t *testing.T) {
	eachLink(t, 1, "guard: /etc/coredns/Corefile", (*egress).twoBoxes)
}

// eachLink is for n gateways and a guard with a Corefile of the guide: by wires, and by tunnels.
func eachLink(t *testing.T, n int, corefile string, f func(*egress)) {
	t.Parallel()
	for name, tunnels := range map[string]bool{"by wire": false, "by WireGuard": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if tunnels {
				w.needsTunnels()
			}
			e := newEgress(w, n, tunnels)
			e.startGateways()
			e.startGuard(corefile)
			f(e)
		})
	}
}

func (e *egress) twoBoxes() {
	g, x := e.gateways[0], e.tap() // of the guard's own way to the world

	// Two names on one address, each with a way out of its own.
	for _, family := range []struct {
		pool                 netip.Prefix
		real, source, masked string
	}{
		{pool4, realA4, egress4, masquerade4},
		{pool6, realA6, egress6, masquerade6},
	} {
		routed := e.given(e.client, gateway4, routedName, family.pool)[0]
		other := e.given(e.client, gateway4, another, family.pool)[0]
		if routed == other {
			e.Fatalf("two names on one mapped address, %s", routed)
		}
		if s, want := e.sees(e.client, routed), (sight{family.real, family.source}); s != want {
			e.Errorf("%s: the server sees %v, want %v", routed, s, want)
		}
		if s, want := e.sees(e.client, other), (sight{family.real, family.masked}); s != want {
			e.Errorf("%s: the server sees %v, want %v", other, s, want)
		}
		e.wantOpen(e.client, "udp", routed)
		e.wantShut(e.client, family.real)
		// More than one packet holds, in both directions.
		if _, conn := e.watch(e.client, routed); conn != nil {
			if err := says64K(conn); err != nil {
				e.Errorf("%s: 64 KiB: %v", routed, err)
			}
		}
		// Nobody has looked that up: refused by the guard, and for who is not guarded by the gateway.
		unassigned := "100.96.200.200"
		if family.pool.Addr().Is6() {
			unassigned = "fd00:2021:1111:8000::9:999"
		}
		e.wantShut(e.client, unassigned)
		if err := e.connect(e.guard, "tcp", unassigned); !errors.Is(err, syscall.ECONNREFUSED) {
			e.Errorf("an unassigned address on the gateway: %v, want connection refused", err)
		}
	}
	mapped := e.given(e.client, gateway4, routedName, pool4)[0]

	// The gateway answers whoever has a certificate, and nobody else.
	for _, certificate := range []bool{true, false} {
		answer, err := e.overTLS(certificate)
		if certificate && (err != nil || len(addresses(answer)) == 0) || !certificate && err == nil {
			e.Errorf("with a certificate %v: %v %v", certificate, answer, err)
		}
	}
	// The name of a mapped address, for the guard itself.
	reverse, err := dns.ReverseAddr(mapped)
	e.must(err)
	m, err := e.ask(e.guard, "127.0.0.1", reverse, dns.TypePTR)
	e.must(err)
	if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), routedName) {
		e.Errorf("the name of %s: %v", mapped, m)
	}
	if m, err = e.ask(e.client, gateway4, reverse, dns.TypePTR); err != nil || m.Rcode != dns.RcodeRefused {
		e.Errorf("a client asks for the name of %s: %v %v", mapped, m, err)
	}
	e.given(e.guard, "127.0.0.1", routedName, pool4) // by hand, on the guard
	// Others than the routed names have no mapped addresses, and no way by the gateway.
	m, err = e.ask(e.client, gateway4, "bystander.example.", dns.TypeA)
	e.must(err)
	if got := addresses(m); !slices.Equal(got, []string{realA4}) {
		e.Errorf("a name that is not routed: %v", m)
	}
	if s, want := e.sees(e.client, realA4), (sight{realA4, client4}); s != want {
		e.Errorf("a name that is not routed: the server sees %v, want %v", s, want)
	}

	// A gateway whose CoreDNS has died translates on, and gives nothing out.
	_, live := e.watch(e.client, mapped)
	if live == nil {
		return
	}
	e.kill(g.coredns)
	if err := echo(live); err != nil {
		e.Errorf("a live connection, without the gateway's CoreDNS: %v", err)
	}
	if s, want := e.sees(e.client, mapped), (sight{realA4, egress4}); s != want {
		e.Errorf("a new connection, without the gateway's CoreDNS: the server sees %v, want %v", s, want)
	}
	if m, err := e.askPatiently(routedName); err != nil || m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
		e.Errorf("without the gateway's CoreDNS: %v %v, want SERVFAIL", m, err)
	}
	e.startGateway(g)
	e.eventually("the gateway is asked again", func() bool {
		m, err := e.askPatiently(routedName)
		return err == nil && len(m.Answer) > 0
	})
	if again := e.given(e.client, gateway4, routedName, pool4)[0]; again != mapped {
		e.Errorf("%s has had %s, and has %s after the gateway's restart", routedName, mapped, again)
	}
	if err := echo(live); err != nil {
		e.Errorf("a live connection, after the gateway's restart: %v", err)
	}

	// Without the tunnel nothing of it leaves by another way.
	e.shell(e.guard, "ip link delete egress1")
	if err := e.connect(e.client, "tcp", mapped); err == nil {
		e.Error("without the tunnel there is a way")
	}
	if n := x.seen(func(p packet) bool {
		return pool4.Contains(p.destination) || pool6.Contains(p.destination)
	}); n > 0 {
		e.Errorf("%d packets for mapped addresses have left by the default route", n)
	}
}

// askPatiently asks the guard for addresses, for as long as forward may take.
func (e *egress) askPatiently(name string) (*dns.Msg, error) {
	return exchangeAt(e.client, "udp", net.JoinHostPort(gateway4, "53"), new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, false), 10*time.Second)
}

// overTLS asks the first gateway from the guard.
func (e *egress) overTLS(certificate bool) (*dns.Msg, error) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), 5*time.Second)
	defer cancel()
	conn, err := e.guard.Dial(ctx, "tcp", "10.111.0.1:853")
	e.must(err)
	defer conn.Close()
	secured := tlsClient(conn, e.clientTLS(certificate))
	defer secured.Close()
	answer, _, err := (&dns.Client{Net: "tcp", Timeout: 5 * time.Second}).ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion(routedName, dns.TypeA), &dns.Conn{Conn: secured})
	return answer, err
}

// A server that guards itself asks the gateway, and connects through it, as the guide says.
// Nothing but CoreDNS gets to the gateway's resolver.
func TestServerWithEgressGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.needsTunnels()
	as := w.asCoreDNS()
	e := newEgress(w, 1, true)
	e.startGateways()
	text := e.fit(e.guide("guard: /etc/coredns/Corefile"))
	for _, change := range [][2]string{
		{"mode nft-gateway\n", "mode nft-local\nupstream 9.9.9.9 149.112.112.112\nupstream 10.111.0.1\nallowedLocalIPs 203.0.113.1\n"},
		{"        interfaces lan0\n", ""},
	} {
		if !strings.Contains(text, change[0]) {
			t.Fatalf("no %q in\n%s", change[0], text)
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	e.shell(e.guard, "chmod a+rx \"$1\"; chmod a+r \"$1\"/*", e.dir)
	e.inForce(e.runAs(as, e.guard, text, e.env...))
	for _, family := range []struct {
		pool         netip.Prefix
		real, source string
	}{{pool4, realA4, egress4}, {pool6, realA6, egress6}} {
		addr := e.given(e.guard, "127.0.0.1", routedName, family.pool)[0]
		if s, want := e.sees(e.guard, addr), (sight{family.real, family.source}); s != want {
			e.Errorf("%s: the server sees %v, want %v", addr, s, want)
		}
		e.wantShut(e.guard, family.real)
	}
	e.wantShut(e.guard, "100.96.200.200")
	e.wantDNS(e.guard, "tcp", "10.111.0.1", 853, false)
}

// Of two gateways one is asked. When it dies the other is, within the time of forward's
// health check, and what goes by way of the other does not notice.
func TestOneOfTwoGatewaysDies(t *testing.T) {
	eachLink(t, 2, "guard: several gateways", (*egress).oneDies)
}

func (e *egress) oneDies() {
	first, second := netip.MustParsePrefix(pool1of2), netip.MustParsePrefix(pool2of2)
	from := func(pool netip.Prefix) func() bool {
		return func() bool {
			m, err := e.askPatiently(routedName)
			all := addresses(m)
			return err == nil && len(all) > 0 && !slices.ContainsFunc(all, func(a string) bool { return !pool.Contains(netip.MustParseAddr(a)) })
		}
	}
	byFirst := e.given(e.client, gateway4, routedName, first)[0]
	if s, want := e.sees(e.client, byFirst), (sight{realA4, egress4}); s != want {
		e.Errorf("by the first: the server sees %v, want %v", s, want)
	}

	// Its CoreDNS dies: names go on with the other, connections stay.
	_, liveOfFirst := e.watch(e.client, byFirst)
	e.kill(e.gateways[0].coredns)
	began := time.Now()
	bySecond := e.given(e.client, gateway4, routedName, second)[0]
	e.Logf("the CoreDNS of one has died: the next answer took %v", time.Since(began).Round(time.Millisecond))
	want := sight{realA4, egressOf2}
	s, liveOfSecond := e.watch(e.client, bySecond)
	if s != want {
		e.Errorf("by the second: the server sees %v, want %v", s, want)
	}
	if liveOfFirst == nil || liveOfSecond == nil {
		return
	}
	if err := echo(liveOfFirst); err != nil {
		e.Errorf("a connection by the first, whose CoreDNS has died: %v", err)
	}

	// It comes back: names return to it, the other's connections stay.
	e.startGateway(e.gateways[0])
	e.eventually("the first is asked again", from(first))
	if again := e.given(e.client, gateway4, routedName, first)[0]; again != byFirst {
		e.Errorf("%s has had %s of the first, and has %s after its restart", routedName, byFirst, again)
	}
	if err := errors.Join(echo(liveOfFirst), echo(liveOfSecond)); err != nil {
		e.Errorf("after the restart of the first: %v", err)
	}

	// It dies as a whole, without a word.
	talk := e.traffic()
	talk.alive(liveOfSecond)
	e.kill(e.gateways[0].coredns)
	e.shell(e.gateways[0].Host, "for i in wan0 guard under; do ip link set $i down 2>/dev/null || true; done")
	began = time.Now()
	if !from(second)() {
		e.Error("the first answer without the first is not of the second")
	}
	took := time.Since(began)
	var later time.Duration
	for range 20 {
		began := time.Now()
		if !from(second)() {
			e.Error("a later answer is not of the second")
		}
		later = max(later, time.Since(began))
		time.Sleep(50 * time.Millisecond)
	}
	e.Logf("one has died: the next answer took %v, those after it %v at most", took.Round(time.Millisecond), later.Round(time.Millisecond))
	if s := e.sees(e.client, bySecond); s != want {
		e.Errorf("by the second, when the first has died: the server sees %v, want %v", s, want)
	}
	talk.end()
}

// The guide's one box: it leaves with an address of its own for some names, and by another
// uplink for others. When that is down, nothing of theirs leaves.
func TestOneBoxWithTwoUplinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := &egress{world: w, atlas: newAtlas(), dir: w.TempDir()}
	e.resolver()
	e.mirror(w.world)
	e.atlas.addrs(routedName, 60, realA4, realA6)
	e.atlas.addrs(another, 60, realA4, realA6)
	e.secondUplink()
	e.shell(e.guard, e.guide("guard: policy routing"))
	e.startGuard("guard: one box")
	x := e.tap() // of the first uplink
	onFirst := func(addr string) int {
		return x.seen(func(p packet) bool { return p.destination.String() == addr })
	}
	for _, tt := range []struct {
		name, real, source string
		pool               netip.Prefix
		first              bool
	}{
		{routedName, realA4, "192.0.2.20", pool4, true},
		{routedName, realA6, "2001:db8::20", pool6, true},
		{another, realA4, "198.51.100.7", pool4, false},
		{another, realA6, "2001:db8:100::7", pool6, false},
	} {
		addr := e.given(e.client, gateway4, tt.name, tt.pool)[0]
		before := onFirst(tt.real)
		if s, want := e.sees(e.client, addr), (sight{tt.real, tt.source}); s != want {
			e.Errorf("%s: the server sees %v, want %v", tt.name, s, want)
		}
		if n := onFirst(tt.real) - before; (n > 0) != tt.first {
			e.Errorf("%s: %d packets by the first uplink, want some: %v", tt.name, n, tt.first)
		}
	}
	bySecond := e.given(e.client, gateway4, another, pool4)[0]
	_, live := e.watch(e.client, bySecond)
	if live == nil {
		return
	}
	before := onFirst(realA4)
	e.shell(e.guard, "ip link set wan7 down")
	if err := e.connect(e.client, "tcp", bySecond); err == nil {
		e.Error("without its uplink there is a way")
	}
	_ = echo(live)
	if n := onFirst(realA4) - before; n > 0 {
		e.Errorf("without its uplink %d packets have left by the other", n)
	}
}
