package e2e

import (
	"context"
	bin "encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

var floodNames = flag.Int("flood", 1_000_000, "how many names a client floods the guard with; fewer with -short or -race")

var floodNet = netip.MustParsePrefix("2001:db8:18:f100::/64")

// floodAddr is the address that the n-th name of the flood has.
func floodAddr(n int) netip.Addr {
	b := floodNet.Addr().As16()
	bin.BigEndian.PutUint32(b[12:], uint32(n+1))
	return netip.AddrFrom16(b)
}

const floodZone = `template IN AAAA {
	match "^n(?P<high>[0-9a-f]+)-(?P<low>[0-9a-f]+)[.]flood[.]test[.]$"
	answer "{{ .Name }} 3600 IN AAAA 2001:db8:18:f100::{{ .Group.high }}:{{ .Group.low }}"
}`

// flood asks for names never asked for before, 80 at a time, and returns how
// many were answered with their address.
func (w *world) flood(from sender, server string, names int) (answered int64) {
	w.Helper()
	const sockets, window = 4, 20 // more at once, and the guard's sockets would overflow
	var next, good atomic.Int64
	var wg sync.WaitGroup
	for range sockets {
		conn, err := from.Dial(context.Background(), "udp", net.JoinHostPort(server, "53"))
		w.must(err)
		defer conn.Close()
		ask := func() bool {
			n := int(next.Add(1)) - 1
			if n >= names {
				return false
			}
			_, err := conn.Write(floodQuestion(n))
			return err == nil
		}
		wg.Go(func() {
			out := 0
			for range window {
				if ask() {
					out++
				}
			}
			b := make([]byte, 512)
			for out > 0 {
				_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
				n, err := conn.Read(b)
				if err != nil {
					return // the rest was lost
				}
				if n > 12 && b[3]&15 == 0 && b[7] == 1 {
					good.Add(1)
				}
				if !ask() {
					out--
				}
			}
		})
	}
	wg.Wait()
	return good.Load()
}

// floodQuestion is a packed question.
func floodQuestion(n int) []byte {
	label := fmt.Sprintf("n%x-%x", (n+1)>>16, (n+1)&0xffff)
	b := append(bin.BigEndian.AppendUint16(nil, uint16(n)), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	b = append(append(b, byte(len(label))), label...)
	b = append(b, "\x05flood\x04test\x00"...)
	return append(b, 0, byte(dns.TypeAAAA), 0, 1)
}

// A client that floods has no more grants than a client may have; the others keep
// theirs, and get new ones.
func TestFloodByOneClient(t *testing.T) {
	t.Parallel()
	names := *floodNames
	switch {
	case testing.Short():
		names = min(names, 10_000)
	case raceDetector:
		names = min(names, 100_000)
	}
	w := newWorld(t)
	neighbour, routed := w.moreClients()
	w.start(guardedBlock(".", guardBlock("nft-gateway", "max_grants 20000", "max_grants_client 2000"), "forward . "+resolver4, "prometheus 127.0.0.1:9153") +
		guardedBlock("flood.test", "", floodZone))
	p := w.behind()
	w.lookup(routed, neighbourGateway4, p.addr4(1), 3600)
	w.lookup(w.client, gateway4, p.addr4(2), 3600) // of the flooder himself
	w.lookup(w.client, gateway6, floodAddr(-1).String(), 3600)
	tr := w.traffic()
	tr.alwaysOpen(routed, p.addr4(1))
	tr.alwaysOpen(w.client, p.addr4(2)) // IPv4 counts for itself
	tr.asks(neighbour, neighbourGateway4, false)
	began := time.Now()
	good := w.flood(w.client, gateway6, names)
	t.Logf("%d of %d names were answered in %v", good, names, time.Since(began))
	tr.end()
	if good < int64(names*99/100) {
		t.Errorf("%d of %d names were answered", good, names)
	}
	flooded := 0
	for addr := range w.grants() {
		if floodNet.Contains(addr) {
			flooded++
		}
	}
	if flooded > 2000 || flooded < 1900 {
		t.Errorf("the flooder has %d grants", flooded)
	}
	w.wantOpen(w.client, "tcp", floodAddr(names-1).String())
	w.wantShut(w.client, floodAddr(-1).String())
	w.wantShut(w.client, floodAddr(0).String())
	if n := w.metric("coredns_ipdestinationguard_grant_changes_total{change=\"evicted\"}"); n < float64(names-2000) {
		t.Errorf("%v grants were evicted", n)
	}
	t.Logf("CoreDNS has %.0f MB", w.metric("process_resident_memory_bytes")/1e6)
}

// A flood over both IP versions, by programs of the machine: what one service has is not
// another's to lose.
func TestFloodByOneApplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("flooder.service", "b.service")
	flooder, b := apps[0], apps[1]
	w.start(guardedBlock(".", guardBlock("nft-local", application, "max_grants 5000", "max_grants_client 500"), "forward . "+resolver4) +
		guardedBlock("flood.test", "", floodZone))
	w.lookup(b, "::1", b.addr6(1), 3600)
	w.lookup(flooder, "::1", flooder.addr6(1), 3600)
	w.flood(flooder, "::1", 5000)
	w.wantOpen(b, "tcp", b.addr6(1))
	w.wantShut(flooder, flooder.addr6(1))
	w.wantOpen(flooder, "tcp", floodAddr(4999).String())
	w.lookup(b, "::1", b.addr6(2), 3600)
	w.wantOpen(b, "tcp", b.addr6(2))
	if n := len(w.grants()); n > 502 {
		t.Errorf("%d grants", n)
	}
}

// A name whose addresses come and go does not have more of them open than names may.
func TestNameWithEverNewAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var n atomic.Int64
	w.must(w.world.ServeDNS(hostilePort, dns.HandlerFunc(func(rw dns.ResponseWriter, query *dns.Msg) {
		m := new(dns.Msg).SetReply(query)
		rr, _ := dns.NewRR(fmt.Sprintf("%s 3600 IN AAAA %v", query.Question[0].Name, floodAddr(int(n.Add(1))-1)))
		m.Answer = append(m.Answer, rr)
		_ = rw.WriteMsg(m)
	})))
	w.start(guardedBlock(".", guardBlock("nft-gateway", "max_grants_name 3"), "forward . "+resolver4) +
		guardedBlock("evil.test", "", fmt.Sprintf("forward . %s:%d", resolver4, hostilePort)))
	neighbour, _ := w.moreClients()
	p := w.behind()
	other := p.addr6(1)
	w.lookup(w.client, gateway6, other, 3600)
	ask := func(from sender, server, name string) string {
		m, err := w.ask(from, server, name, dns.TypeAAAA)
		w.must(err)
		if len(addresses(m)) != 1 {
			t.Fatalf("no address: %v", m)
		}
		return addresses(m)[0]
	}
	neighbours := ask(neighbour, neighbourGateway6, "www.evil.test.")
	var all []string
	for range 10 {
		all = append(all, ask(w.client, gateway6, "www.evil.test."))
		w.wantOpen(w.client, "tcp", all[len(all)-1])
	}
	for i, addr := range all {
		if i >= 7 {
			w.wantOpen(w.client, "tcp", addr)
		} else {
			w.wantShut(w.client, addr)
		}
	}
	w.wantOpen(w.client, "tcp", other)       // of another name
	w.wantOpen(neighbour, "tcp", neighbours) // of another client
	// Each name has its own.
	w.wantOpen(w.client, "tcp", ask(w.client, gateway6, "ftp.evil.test."))
	w.wantOpen(w.client, "tcp", all[7])
}

// Of an answer with too many addresses the client gets as many as are granted.
func TestMaxAddressesAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(corefile(guardBlock("nft-both", "max_addresses_answer 3")))
	for _, p := range []party{w.self(), w.behind()} {
		for _, addr := range []func(int) string{p.addr4, p.addr6} {
			all := []string{addr(1), addr(2), addr(3), addr(4), addr(5)}
			m, err := w.ask(p.Host, p.resolver(all[0]), nameOf(60, all...), typeFor(all[0]))
			w.must(err)
			given := map[string]bool{}
			for _, a := range addresses(m) {
				given[a] = true
			}
			if len(given) != 3 {
				t.Errorf("%s: %v", p.Name(), m)
			}
			for _, a := range all {
				if given[a] {
					w.wantOpen(p.Host, "tcp", a)
				} else {
					w.wantShut(p.Host, a)
				}
			}
		}
	}
}

// When there are as many grants as there may be, who has some loses the oldest of his
// own, and who has none gets no address.
func TestMaxGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, _ := w.moreClients()
	late, _ := w.wires()
	w.start(corefile(guardBlock("nft-gateway", "max_grants 4", "max_grants_client 3")))
	p := w.behind()
	for _, client := range []struct {
		host   *netlab.Host
		server string
	}{{w.client, gateway4}, {neighbour, neighbourGateway4}, {late.Host, "192.168.53.1"}} {
		w.query(client.host, "udp", client.server, "nx.test.", "A", 0) // the gateway knows it from now on
	}
	for i := range 2 {
		w.lookup(w.client, gateway4, p.addr4(i), 3600)
		w.lookup(neighbour, neighbourGateway4, p.addr4(10+i), 3600)
	}
	m, err := w.ask(late, "192.168.53.1", nameOf(60, p.addr4(20)), dns.TypeA)
	w.must(err)
	w.wantWithheld(m)
	w.wantShut(late, p.addr4(20))
	w.lookup(late, "fd53::1", p.addr6(20), 60) // IPv6 counts for itself
	w.wantOpen(late, "tcp", p.addr6(20))

	w.lookup(w.client, gateway4, p.addr4(3), 3600)
	w.wantShut(w.client, p.addr4(0))
	for _, n := range []int{1, 3} {
		w.wantOpen(w.client, "tcp", p.addr4(n))
	}
	for i := range 2 {
		w.wantOpen(neighbour, "tcp", p.addr4(10+i))
	}
}
