package e2e

import (
	"context"
	bin "encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A suspect is somebody who asks and sends, in cases of all kinds.
type suspect struct {
	sender
	resolver4, resolver6 string
	source4, source6     string
	query                admin.ExplainQuery // who it is, but for a client's address
	raw                  *netlab.Host       // that packets are sent from with a header of their own; or nil
	out                  string             // by this interface
	sends                []uint8            // protocols
}

// caseWorld is a way to set the guard up, and who there is.
type caseWorld struct {
	*world
	*wire
	random   *rand.Rand
	admin    *admin.Client
	suspects []suspect
	zones    []string // that the names are in
	targets  []string
	real     map[netip.Addr]netip.Addr // behind mapped addresses
	sport    uint16
	verdicts map[string]int // how often each reason came up
	skipped  int
}

var caseProtocols = []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP}

// What is said of a packet is what becomes of it, whoever has asked and sends, whatever
// has been asked, revoked or has run out before, in each mode.
func TestExplanationsAndPacketsAgree(t *testing.T) {
	const cases = 1000 // and some with routes
	for _, setup := range []struct {
		name, directive, blocks string
		zones                   []string
		local, behind, programs bool
	}{
		{"clients", guardBlock("nft-gateway", "allowedIPs 198.18.200.0/24", "allowedGatewayIPs 198.18.202.0/24", "interfaces lan0 lan1"),
			"ports.test {\nipdestinationguard {\nports tcp/443 udp/7\n}\nforward . " + resolver4 + "\n}\n", []string{"", "ports."}, false, true, false},
		{"applications", guardBlock("nft-both", "scope application", "allowedIPs 198.18.200.0/24", "allowedLocalIPs 198.18.201.0/24", "upstream 198.18.9.9:53"),
			"ports.test {\nipdestinationguard {\nports tcp/443 udp/7\n}\nforward . " + resolver4 + "\n}\n" +
				"users.test {\nipdestinationguard {\nusers 1000\n}\nforward . " + resolver4 + "\n}\n", []string{"", "", "ports.", "users."}, false, true, true},
		{"any", guardBlock("nft-both", "scope any", "dns_ports open", "interfaces lan0"), "", []string{""}, true, true, false},
		{"local", guardBlock("nft-local", "allowedLocalIPs 198.18.201.0/24"),
			"users.test {\nipdestinationguard {\nusers 1000\n}\nforward . " + resolver4 + "\n}\n", []string{"", "users."}, true, false, true},
		{"routes", guardBlock("nft-both", append(slices.Clone(twoRoutes), "allowedIPs 198.18.200.0/24")...), "", []string{"", "one.", "two.", "two."}, true, true, false},
	} {
		t.Run(setup.name, func(t *testing.T) {
			t.Parallel()
			c := &caseWorld{world: newWorld(t), random: rand.New(rand.NewPCG(6, 6)), zones: setup.zones, sport: 20_000, verdicts: map[string]int{}, real: map[netip.Addr]netip.Addr{}}
			c.addEgress()
			neighbour, routed := c.moreClients()
			path, option := c.socket()
			directive := strings.Replace(setup.directive, "{", "{\n\t"+option+"\n\tttl 1s 60s\n\tmargin 0s", 1)
			c.start(corefile(directive) + withExamples(setup.blocks))
			c.wire, c.admin = c.tap(), c.asks(path)
			if setup.behind {
				for _, h := range []struct {
					*netlab.Host
					gateway4, gateway6, source4, source6, in string
				}{
					{c.client, gateway4, gateway6, "192.168.50.2", "fd50::2", "lan0"},
					{neighbour, neighbourGateway4, neighbourGateway6, neighbour4, neighbour6, "lan1"},
					{routed, neighbourGateway4, neighbourGateway6, routed4, routed6, "lan1"},
				} {
					c.suspects = append(c.suspects, suspect{h.Host, h.gateway4, h.gateway6, h.source4, h.source6, admin.ExplainQuery{Interface: h.in}, h.Host, "eth0", caseProtocols})
					c.lookup(h.Host, h.gateway6, "2001:db8:18:9::ff", 60) // the gateway knows it over either version
				}
			}
			if setup.programs {
				for _, p := range []struct {
					as    netlab.As
					query admin.ExplainQuery
				}{
					{netlab.As{User: c.user(1000)}, admin.ExplainQuery{User: "1000"}},
					{netlab.As{User: c.user(1001)}, admin.ExplainQuery{User: "1001"}},
					{netlab.As{Cgroup: c.cgroup("case.service")}, admin.ExplainQuery{User: "0"}},
				} {
					if p.as.Cgroup != nil {
						p.query.Unit = p.as.Cgroup.Path()
					}
					c.suspects = append(c.suspects, suspect{sender: c.program(p.as), resolver4: "127.0.0.1", resolver6: "::1", query: p.query, sends: []uint8{unix.IPPROTO_UDP}})
				}
			}
			if setup.local {
				c.suspects = append(c.suspects, suspect{c.guard, "127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", admin.ExplainQuery{User: "0"}, c.guard, "wan0", caseProtocols})
			}
			for i := range 10 {
				c.targets = append(c.targets, fmt.Sprintf("198.18.9.%d", i), fmt.Sprintf("2001:db8:18:9::%x", i))
			}
			if setup.name == "routes" {
				c.targets = append(c.targets, "100.127.1.1", "fd00:2021:1111:8000::1f:ffff") // which are nobody's
			}
			c.targets = append(c.targets, "198.18.200.1", "198.18.201.1", "198.18.202.1", resolver4, "198.18.9.9", "198.18.9.9")
			for n := 0; n < cases/4 && c.skipped < cases; {
				c.change()
				if c.check() {
					n++
				}
			}
			t.Logf("%d skipped, since the verdict changed meanwhile; %v", c.skipped, c.verdicts)
			if c.skipped == cases || c.verdicts["granted"] == 0 || c.verdicts["never_resolved"] == 0 || c.verdicts["expired"] == 0 {
				t.Error("these cases test too little")
			}
		})
	}
}

func pick[T any](c *caseWorld, from []T) T { return from[c.random.IntN(len(from))] }

// change does something that may change verdicts.
func (c *caseWorld) change() {
	switch n := c.random.IntN(20); {
	case n < 12:
		s, to := pick(c, c.suspects), netip.MustParseAddr(pick(c, c.targets[:20]))
		server := s.resolver6
		if to.Is4() == (c.random.IntN(4) > 0) {
			server = s.resolver4 // one may ask over either version for either
		}
		name := strings.Replace(nameOf(pick(c, []int{1, 1, 2, 60}), to.String()), "test.", pick(c, c.zones)+"test.", 1)
		m, err := c.ask(s, server, name, typeFor(to.String()))
		c.world.must(err)
		for _, rr := range m.Answer {
			got := to
			switch rr := rr.(type) {
			case *dns.A:
				got = netip.AddrFrom4([4]byte(rr.A.To4()))
			case *dns.AAAA:
				got = netip.AddrFrom16([16]byte(rr.AAAA))
			}
			if got != to && !slices.Contains(c.targets, got.String()) {
				c.real[got] = to
				c.targets = append(c.targets, got.String())
			}
		}
	case n < 13:
		_, err := c.admin.Revoke(context.Background(), admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Address: netip.PrefixFrom(netip.MustParseAddr(pick(c, c.targets[:1])), 28)}})
		c.world.must(err)
	case n < 15:
		time.Sleep(time.Duration(c.random.IntN(400)) * time.Millisecond)
	}
}

// check has somebody send a packet somewhere, and compares what is said of that with what
// becomes of it. It reports whether it could: what is said may change meanwhile.
func (c *caseWorld) check() bool {
	s, to := pick(c, c.suspects), netip.MustParseAddr(pick(c, c.targets))
	protocol, port := pick(c, s.sends), pick(c, []uint16{7, 443, 53, 853, 8005})
	q := s.query
	q.Address, q.Protocol, q.Port = to, map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp"}[protocol], port
	source := s.source6
	if to.Is4() {
		source = s.source4
	}
	if q.Interface != "" {
		q.Client = netip.MustParseAddr(source)
	}
	before := c.verdict(q)
	arrived := c.sent(s, source, to, protocol, port)
	after := c.verdict(q)
	if before.Passes != after.Passes {
		c.skipped++
		return false
	}
	c.verdicts[before.Reason]++
	if arrived != before.Passes {
		c.Errorf("%s, %v to %v %s/%d: arrived: %v; it was said: %+v", s.Name(), source, to, q.Protocol, port, arrived, before)
	}
	return true
}

func (c *caseWorld) verdict(q admin.ExplainQuery) admin.Verdict {
	e, err := c.admin.Explain(context.Background(), q)
	c.world.must(err)
	if len(e.Addresses) != 1 || len(e.Addresses[0].Verdicts) != 1 {
		c.Fatalf("%+v is explained by %+v", q, e)
	}
	return e.Addresses[0].Verdicts[0]
}

// sent sends one packet, the first of a connection, and reports whether it has come
// through.
func (c *caseWorld) sent(s suspect, source string, to netip.Addr, protocol uint8, port uint16) bool {
	c.sport++
	from := c.sport
	var id []byte // a port, or the number of an echo request
	if s.raw == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := s.Dial(ctx, "udp", netip.AddrPortFrom(to, port).String())
		c.world.must(err)
		defer conn.Close()
		from = conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		_, _ = conn.Write([]byte("case"))
	} else {
		p := newTCP(source, to.String(), from, port, syn)
		switch {
		case protocol == unix.IPPROTO_UDP:
			p = newUDP(source, to.String(), from, port)
		case protocol == unix.IPPROTO_ICMP && to.Is4():
			p = newPacket(source, to.String(), 64, unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, byte(from >> 8), byte(from), 0, 1}, 2)
		case protocol == unix.IPPROTO_ICMP:
			protocol = unix.IPPROTO_ICMPV6
			p = newPacket(source, to.String(), 64, unix.IPPROTO_ICMPV6, []byte{echoRequest, 0, 0, 0, byte(from >> 8), byte(from), 0, 1}, 2)
		}
		_ = send(s.raw, s.out, p) // the firewall's answer, if it is this machine's own
	}
	id = bin.BigEndian.AppendUint16(nil, from)
	comes := to
	if real, mapped := c.real[to]; mapped {
		comes = real
	}
	return c.seen(func(p packet) bool {
		at := 0
		if protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6 {
			at = 4
		}
		return p.destination == comes && p.protocol == protocol && len(p.payload) >= at+2 && slices.Equal(p.payload[at:at+2], id)
	}) > 0
}

func mustAddr(text string) netip.Addr { return netip.MustParseAddr(text) }
