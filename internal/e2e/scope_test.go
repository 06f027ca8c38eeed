package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// More clients of the guard: a neighbour on a wire of its own, and a host that is
// routed by the neighbour.
const (
	neighbourGateway4, neighbourGateway6 = "192.168.51.1", "fd51::1"
	neighbour4, neighbour6               = "192.168.51.2", "fd51::2"
	routed4, routed6                     = "192.168.52.2", "fd52::2"
)

func (w *world) moreClients() (neighbour, routed *netlab.Host) {
	w.Helper()
	neighbour, routed = w.host("neighbour"), w.host("routed")
	w.must(w.lab.Link(neighbour, "eth0", w.guard, "lan1"))
	w.must(w.lab.Link(routed, "eth0", neighbour, "lan0"))
	w.addrs(w.guard, "lan1", neighbourGateway4+"/24", neighbourGateway6+"/64")
	w.addrs(neighbour, "eth0", neighbour4+"/24", neighbour6+"/64")
	w.addrs(neighbour, "lan0", "192.168.52.1/24", "fd52::1/64")
	w.addrs(routed, "eth0", routed4+"/24", routed6+"/64")
	w.must(neighbour.Forward())
	for _, r := range []struct {
		host      *netlab.Host
		cidr, via string
	}{
		{neighbour, "0.0.0.0/0", neighbourGateway4}, {neighbour, "::/0", neighbourGateway6},
		{routed, "0.0.0.0/0", "192.168.52.1"}, {routed, "::/0", "fd52::1"},
		{w.guard, "192.168.52.0/24", neighbour4}, {w.guard, "fd52::/64", neighbour6},
		{w.world, "192.168.51.0/24", "192.0.2.1"}, {w.world, "fd51::/64", "2001:db8::1"},
		{w.world, "192.168.52.0/24", "192.0.2.1"}, {w.world, "fd52::/64", "2001:db8::1"},
	} {
		w.must(r.host.Route(r.cidr, r.via))
	}
	return neighbour, routed
}

// What one client has asked for is open to that client, whatever addresses it
// has, and to no other.
func TestClientScope(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, routed := w.moreClients()
	w.start(corefile("ipdestinationguard nft-gateway"))
	clients := []struct {
		host                 *netlab.Host
		resolver4, resolver6 string
	}{
		{w.client, gateway4, gateway6},
		{neighbour, neighbourGateway4, neighbourGateway6},
		{routed, neighbourGateway4, neighbourGateway6},
	}
	for i, asker := range clients {
		a4, a6 := w.behind().addr4(10+i), w.behind().addr6(10+i)
		w.lookup(asker.host, asker.resolver4, a4, 60)
		w.lookup(asker.host, asker.resolver6, a6, 60)
		for j, c := range clients {
			for _, addr := range []string{a4, a6} {
				if i == j {
					w.wantOpen(c.host, "tcp", addr)
					w.wantOpen(c.host, "udp", addr)
				} else {
					w.wantShut(c.host, addr)
				}
			}
		}
	}
	// The answer is in the cache, and opens for whoever gets it.
	w.lookup(neighbour, neighbourGateway4, w.behind().addr4(10), 60)
	w.wantOpen(neighbour, "tcp", w.behind().addr4(10))
	w.wantShut(routed, w.behind().addr4(10))

	// Asked over IPv4, reached over IPv6 from a privacy address.
	addr := w.behind().addr6(20)
	w.lookup(w.client, gateway4, addr, 60)
	w.wantOpen(w.client, "tcp", addr)
	w.must(w.client.Addr("eth0", "fd50::dead:beef/64"))
	w.wantOpenFrom(w.client, "fd50::dead:beef", addr)
	w.wantShut(neighbour, addr)

	// A routed client is known by its address alone, so it gets none that it could
	// not reach.
	m, err := w.ask(routed, neighbourGateway4, nameOf(60, w.behind().addr6(30)), dns.TypeAAAA)
	w.must(err)
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) > 0 {
		t.Errorf("IPv6 for who is known by IPv4: %v", m)
	}
	w.wantShut(routed, w.behind().addr6(30))

	// The gateway itself is not guarded; what it asks opens nothing to others.
	w.lookup(w.guard, "127.0.0.1", w.behind().addr4(40), 60)
	w.wantOpen(w.guard, "tcp", w.behind().addr4(40))
	w.wantShut(w.client, w.behind().addr4(40))
}

// A client that asks from a link-local address is known by its Ethernet address.
func TestLinkLocalAsker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, _ := w.moreClients()
	w.start(corefile("ipdestinationguard nft-gateway"))
	p := w.behind()
	w.lookup(w.client, gateway6, p.addr6(1), 60) // the gateway knows it from now on
	gateway := w.linkLocal(w.guard, "lan0") + "%" + strconv.Itoa(w.ifindex(w.client, "eth0"))
	for _, addr := range []string{p.addr4(2), p.addr6(2)} {
		w.lookup(w.client, gateway, addr, 60)
		w.wantOpen(w.client, "tcp", addr)
		w.wantShut(neighbour, addr)
	}
}

// wantOpenFrom checks one TCP connection from an address.
func (w *world) wantOpenFrom(from *netlab.Host, source, addr string) {
	w.Helper()
	err := from.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		conn, err := d.DialContext(ctx, "tcp6", net.JoinHostPort(addr, strconv.Itoa(echoPort)))
		if err != nil {
			return err
		}
		defer conn.Close()
		return echo(conn)
	})
	if err != nil {
		w.Errorf("from %s to %s: %v", source, addr, err)
	}
}

// An answer to this machine opens nothing to its clients, nor the other way round,
// unless it is for any.
func TestScopesOfBothSides(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		directive string
		apart     bool
	}{
		{"ipdestinationguard nft-both " + resolver4, true},
		{"ipdestinationguard {\n mode nft-both\n allowedLocalIPs " + resolver4 + "\n scope client\n}", true},
		{"ipdestinationguard {\n mode nft-both\n allowedLocalIPs " + resolver4 + "\n scope any\n}", false},
	} {
		t.Run(test.directive, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(corefile(test.directive))
			for i, asker := range []party{w.self(), w.behind()} {
				other := []party{w.behind(), w.self()}[i]
				for _, addr := range []string{asker.addr4(1), asker.addr6(1)} {
					w.lookup(asker.Host, asker.resolver(addr), addr, 60)
					w.wantOpen(asker.Host, "tcp", addr)
					if test.apart {
						w.wantShut(other.Host, addr)
					} else {
						w.wantOpen(other.Host, "tcp", addr)
					}
				}
			}
		})
	}
}

// A forwarder that is trusted names the client; nobody else can.
func TestTrustedForwarder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, routed := w.moreClients()
	w.start(corefile("ipdestinationguard {\n mode nft-gateway\n trusted_forwarder " + neighbour4 + "\n}"))
	ask := func(from sender, server, client, addr string) {
		t.Helper()
		m := new(dns.Msg)
		m.SetQuestion(nameOf(60, addr), dns.TypeA)
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{
			Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 32, Address: net.ParseIP(client).To4(),
		})
		conn, err := from.Dial(t.Context(), "udp", net.JoinHostPort(server, "53"))
		w.must(err)
		defer conn.Close()
		answer, _, err := (&dns.Client{Timeout: 5 * time.Second}).ExchangeWithConn(m, &dns.Conn{Conn: conn})
		w.must(err)
		if answer.Rcode != dns.RcodeSuccess || len(answer.Answer) == 0 {
			t.Errorf("no address: %v", answer)
		}
	}
	byForwarder, byStranger := w.behind().addr4(1), w.behind().addr4(2)
	ask(neighbour, neighbourGateway4, routed4, byForwarder)
	w.wantOpen(routed, "tcp", byForwarder)
	w.wantShut(neighbour, byForwarder)
	ask(w.client, gateway4, routed4, byStranger)
	w.wantShut(routed, byStranger)
	w.wantOpen(w.client, "tcp", byStranger)
}

// A grant opens no other resolver, over UDP, TCP or TLS, unless that is wanted;
// what is allowed without DNS is not affected.
func TestGrantsOpenNoResolver(t *testing.T) {
	t.Parallel()
	for _, open := range []bool{false, true} {
		option := map[bool]string{false: "", true: " dns_ports open\n"}[open]
		t.Run("open "+strconv.FormatBool(open), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(corefile("ipdestinationguard {\n mode nft-both\n allowedIPs " + resolver4 + "\n" + option + "}"))
			for _, p := range []party{w.self(), w.behind()} {
				addr := p.addr4(1)
				w.lookup(p.Host, p.resolver4, addr, 60)
				w.wantOpen(p.Host, "tcp", addr)
				for _, network := range []string{"udp", "tcp"} {
					m := new(dns.Msg).SetQuestion(nameOf(60, addr), dns.TypeA)
					if _, err := exchange(p.Host, network, addr, m); (err == nil) != open {
						t.Errorf("%s: DNS over %s to %s: %v", p.Name(), network, addr, err)
					}
					if _, err := exchange(p.Host, network, resolver4, m); err != nil {
						t.Errorf("%s: DNS over %s to the allowed %s: %v", p.Name(), network, resolver4, err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				conn, err := p.Host.Dial(ctx, "tcp", net.JoinHostPort(addr, "853")) // nobody listens there
				cancel()
				if err == nil {
					conn.Close()
				}
				if refused(err) == open {
					t.Errorf("%s: port 853: %v", p.Name(), err)
				}
			}
		})
	}
}

// Which names open addresses stands in a file, and may change while the server
// runs; what others ask for is refused.
func TestNamesFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.self()
	first, second := p.addr4(1), p.addr4(2)
	file := filepath.Join(t.TempDir(), "names")
	write := func(addr string) {
		t.Helper()
		w.save(file+".new", nameOf(60, addr)+"\n")
		w.must(os.Rename(file+".new", file))
	}
	write(first)
	c := w.start(corefile("ipdestinationguard {\n mode nft-local\n allowedIPs " + resolver4 + "\n names_file " + file + "\n others refuse\n}"))
	refused := func(addr string) bool {
		m, err := w.ask(p.Host, p.resolver4, nameOf(60, addr), dns.TypeA)
		w.must(err)
		return m.Rcode == dns.RcodeRefused
	}
	w.lookup(p.Host, p.resolver4, first, 60)
	w.wantOpen(p.Host, "tcp", first)
	if !refused(second) {
		t.Error("the other name is not refused")
	}
	w.wantShut(p.Host, second)
	write(second)
	w.eventually("the file has been read again", func() bool { return !refused(second) })
	w.wantOpen(p.Host, "tcp", second)
	if !refused(first) {
		t.Error("the name that has gone is not refused")
	}
	w.must(os.WriteFile(file+".new", []byte("a..b\n"), 0o644))
	w.must(os.Rename(file+".new", file))
	w.eventually("the mistake is told", func() bool { return strings.Contains(c.Output(), "the names of before stay in force") })
	w.lookup(p.Host, p.resolver4, second, 60)
}

// A reload that widens the scope refuses nobody what was open to him.
func TestScopeWidens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	narrow, wide := corefile("ipdestinationguard nft-gateway"), corefile("ipdestinationguard {\n mode nft-gateway\n scope any\n}")
	c := w.start(narrow)
	p := w.behind()
	for i := range 3 {
		addr := p.addr4(1 + i)
		w.lookup(p.Host, p.resolver4, addr, 3600)
		w.mustReload(c, wide)
		w.wantOpen(p.Host, "tcp", addr)
		w.mustReload(c, narrow)
		w.wantOpen(p.Host, "tcp", addr)
	}
}

// A host on another wire that claims a client's address does not get its grants.
func TestAddressClaimedOnAnotherWire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, _ := w.moreClients()
	w.start(corefile("ipdestinationguard nft-gateway"))
	// The kernel believes neighbour discovery on every wire.
	w.must(neighbour.Addr("eth0", "fd50::2/128"))
	w.must(neighbour.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("fd50::2")}, Timeout: 300 * time.Millisecond}
		conn, err := d.Dial("tcp6", net.JoinHostPort(neighbourGateway6, "9"))
		if err == nil {
			conn.Close()
		}
		return nil
	}))
	addr := w.behind().addr6(1)
	w.lookup(w.client, gateway6, addr, 60)
	w.wantOpen(w.client, "tcp", addr)
	w.wantShut(neighbour, addr)
}
