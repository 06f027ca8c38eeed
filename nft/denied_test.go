package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// listed returns what has been denied, flow by flow.
func (n *network) listed() map[backend.Flow]backend.Denial {
	n.Helper()
	all := map[backend.Flow]backend.Denial{}
	if err := n.Denied(n.Context(), func(d backend.Denial) { all[d.Flow] = d }); err != nil {
		n.Fatal(err)
	}
	return all
}

// tallies returns them, and fails the test unless they are what the flows add up to.
func (n *network) tallies() [backend.Hooks]backend.Tally {
	n.Helper()
	tally := func() [backend.Hooks]backend.Tally {
		tallies, err := n.Tallies(n.Context())
		if err != nil {
			n.Fatal(err)
		}
		return tallies
	}
	var sum [backend.Hooks]backend.Count
	tallies := tally()
	for before := tallies; ; before = tallies {
		sum = [backend.Hooks]backend.Count{}
		for _, d := range n.listed() {
			sum[d.Hook].Packets += d.Packets
			sum[d.Hook].Bytes += d.Bytes
		}
		if tallies = tally(); tallies == before {
			break // no live connection has tried once more meanwhile
		}
	}
	for h, t := range tallies {
		if got, want := sum[h].Packets+t.Unlisted.Packets, t.Refused.Packets+t.Audited.Packets; got != want {
			n.Errorf("%v: %d packets in flows and unlisted, %d in all", backend.Hook(h), got, want)
		}
		if got, want := sum[h].Bytes+t.Unlisted.Bytes, t.Refused.Bytes+t.Audited.Bytes; got != want {
			n.Errorf("%v: %d bytes in flows and unlisted, %d in all", backend.Hook(h), got, want)
		}
	}
	return tallies
}

// raw sends so many packets of an IP protocol by a raw socket. Errors are the guard's.
func (n *network) raw(from speaker, protocol int, addr netip.Addr, payload []byte, times int) {
	n.Helper()
	family, local := "ip4", "0.0.0.0"
	if !addr.Is4() {
		family, local = "ip6", "::"
	}
	conn, err := from.(interface {
		ListenPacket(network, address string) (net.PacketConn, error)
	}).ListenPacket(fmt.Sprintf("%s:%d", family, protocol), local)
	if err != nil {
		n.Fatal(err)
	}
	defer conn.Close()
	for range times {
		_, _ = conn.WriteTo(payload, &net.IPAddr{IP: addr.AsSlice()})
	}
}

// tcpHeader is one with these flags. SYN and FIN together are no connection's.
func tcpHeader(port uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 4000)
	binary.BigEndian.PutUint16(b[2:], port)
	b[12], b[13] = 5<<4, flags
	return b
}

const synFin = 0x03

// Every packet that is refused is counted for what it is, on both chains.
func TestDenialsAreListed(t *testing.T) {
	n := newNetwork(t)
	r := worldRules(t)
	r.Upstream, r.Self = upstreams(t, to(5, 443)...), backend.Program{User: 1001}
	n.guard(r)
	n.open(time.Hour, 1, backend.Scope{Holder: backend.Machine}, n.link("lan0"))
	index := func(ifname string) uint32 {
		i, err := net.InterfaceByName(ifname)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(i.Index)
	}
	output := func(user uint32, protocol uint8, addr netip.Addr, port uint16) backend.Flow {
		return backend.Flow{Protocol: protocol, User: user, Addr: addr, Port: port}
	}
	forward := func(client string, protocol uint8, addr netip.Addr, port uint16) backend.Flow {
		f := backend.Flow{Kind: backend.Kind{Hook: backend.Forward}, Protocol: protocol, Interface: index("lan0"), Client: netip.MustParseAddr(client), Addr: addr, Port: port}
		if client == other4 || client == other6 {
			f.Interface = index("lan1")
		}
		return f
	}
	invalid := func(f backend.Flow) backend.Flow { f.Invalid = true; return f }

	want := map[backend.Flow]uint64{}
	granted4, _ := addrs(1)
	for i, number := range []int{2, 5} { // nobody's, and the resolver
		v4, v6 := addrs(number)
		for _, a := range []netip.Addr{v4, v6} {
			for range 3 + i {
				n.reaches(n.here, false, "udp", netip.AddrPortFrom(a, 443).String())
				n.reaches(n.client, false, "udp", netip.AddrPortFrom(a, 443).String())
			}
			want[output(0, unix.IPPROTO_UDP, a, 443)] = uint64(3 + i)
			client := client4
			if a == v6 {
				client = client6
			}
			want[forward(client, unix.IPPROTO_UDP, a, 443)] = uint64(3 + i)
		}
	}
	if user := n.as(1000); user != nil {
		n.reaches(user, false, "tcp", to(2, 8005)[0])
		v4, _ := addrs(2)
		want[output(1000, unix.IPPROTO_TCP, v4, 8005)] = 1
	}
	n.reaches(n.here, false, "udp", to(1, 53)[0]) // it may go there, but not ask
	want[output(0, unix.IPPROTO_UDP, granted4, 53)] = 1
	n.reaches(n.other, false, "udp", to(1, 443)[0]) // somebody else may
	want[forward(other4, unix.IPPROTO_UDP, granted4, 443)] = 1

	v4, v6 := addrs(3)
	n.raw(n.here, unix.IPPROTO_TCP, v4, tcpHeader(80, synFin), 5)
	want[invalid(output(0, unix.IPPROTO_TCP, v4, 80))] = 5
	n.raw(n.client, unix.IPPROTO_TCP, granted4, tcpHeader(443, synFin), 6) // though it is open
	want[invalid(forward(client4, unix.IPPROTO_TCP, granted4, 443))] = 6
	const experimental = 253
	n.raw(n.client, experimental, v6, []byte("12345678"), 2)
	want[forward(client6, experimental, v6, 0)] = 2
	n.raw(n.here, experimental, v4, []byte("87654321"), 3)
	want[output(0, experimental, v4, 0)] = 3
	ping := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(ping[2:], 0xf7fd) // its checksum
	n.raw(n.here, unix.IPPROTO_ICMP, v4, ping, 4)
	want[output(0, unix.IPPROTO_ICMP, v4, 0)] = 4

	// The kernel itself reports to routers what groups programs have joined.
	wan, err := net.InterfaceByName("wan")
	if err != nil {
		t.Fatal(err)
	}
	group, err := net.ListenMulticastUDP("udp4", wan, &net.UDPAddr{IP: net.IPv4(239, 1, 2, 3), Port: 4000})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	reports := output(backend.NoUser, unix.IPPROTO_IGMP, netip.MustParseAddr("224.0.0.22"), 0)
	backendtest.Eventually(t, "the kernel's own packet is listed", func() bool { return n.listed()[reports].Packets > 0 })

	got := n.listed()
	for f, packets := range want {
		if d := got[f]; d.Packets != packets || d.Bytes < 20*packets || d.Bytes > 100*packets {
			t.Errorf("%v: %d packets, %d bytes; want %d packets", f, d.Packets, d.Bytes, packets)
		}
		if ago := time.Since(got[f].Last); ago < -time.Second || ago > time.Minute {
			t.Errorf("%v: %v ago", f, ago)
		}
	}
	for f := range got {
		if _, wanted := want[f]; !wanted && f.Protocol != unix.IPPROTO_IGMP {
			t.Errorf("also denied: %v", f)
		}
	}
	tallies := n.tallies()
	for h, tally := range tallies {
		if tally.Audited.Packets+tally.Unlisted.Packets > 0 || tally.Refused.Packets == 0 {
			t.Errorf("%v: %+v", backend.Hook(h), tally)
		}
	}

	// A reload loses nothing of it, and so does a restart.
	r.AuditGateway, r.Linger = true, time.Minute
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	n.guard(r)
	after := n.tallies()
	for h := range tallies {
		if after[h].Refused.Packets < tallies[h].Refused.Packets {
			t.Errorf("%v: %d packets after a reload and a restart, %d before", backend.Hook(h), after[h].Refused.Packets, tallies[h].Refused.Packets)
		}
	}
	for f := range n.listed() {
		delete(got, f)
	}
	if len(got) > 0 {
		t.Errorf("no longer listed: %v", slices.Collect(maps.Keys(got)))
	}
}

// dropped is how many packets of a host with one link have come nowhere.
func (n *network) dropped(from *netlab.Host) uint64 {
	n.Helper()
	lost, err := from.Dropped("eth0")
	if err != nil {
		n.Fatal(err)
	}
	return lost
}

// A flood of flows fills its set and no more, and every packet is counted. (While flows
// come faster than the kernel makes its table larger, it takes none, though there is room.)
func TestMoreFlowsThanThereIsRoomFor(t *testing.T) {
	n := guardedNetwork(t, worldRules(t))
	const more = 1000
	conn, err := n.client.ListenPacket("udp", client4+":4000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var sent uint64
	flood := func() { // what is listed goes on to be counted
		for i := range flowsListed + more {
			addr := netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
			if _, err = conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(i)|1))); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		backendtest.Eventually(t, "all packets are counted", func() bool {
			tallies, err := n.Tallies(t.Context())
			return err == nil && tallies[backend.Forward].Refused.Packets == sent-n.dropped(n.client)
		})
	}
	backendtest.Eventually(t, "the set is full", func() bool {
		flood()
		return len(n.listed()) == flowsListed
	})
	before, lost := n.tallies()[backend.Forward], n.dropped(n.client)
	flood()
	after := n.tallies()[backend.Forward]
	lost = n.dropped(n.client) - lost // of those that are listed, or not
	if unlisted := after.Unlisted.Packets - before.Unlisted.Packets; unlisted > more || unlisted+lost < more || before.Unlisted.Packets < more {
		t.Errorf("%d packets were sent, %d of the last ones got lost; %+v, then %+v", sent, lost, before, after)
	}
	if got := len(n.listed()); got != flowsListed {
		t.Errorf("%d flows", got)
	}
}

// Nothing that a chain refuses can come out of where it is sent: but in audit, all that
// is sent there is refused in every ruleset, whatever the packet.
func TestOnlyAuditLetsPass(t *testing.T) {
	for name, rules := range goldenRules(t) {
		for _, c := range newRuleset(rules).chains {
			if !strings.HasPrefix(c.name, chainDenied) && !strings.HasPrefix(c.name, chainFlows) {
				continue
			}
			for i, r := range c.rules {
				last := i == len(c.rules)-1
				switch text := r.verdict.text; {
				case text == "" || strings.HasPrefix(text, "jump "+chainFlows),
					strings.HasPrefix(c.name, chainFlows) && (text == goBack.text || strings.HasPrefix(text, "goto "+chainFlows)):
					if last && strings.HasPrefix(c.name, chainDenied) {
						t.Errorf("%s: chain %s ends with %v", name, c.name, r)
					}
				case text == drop.text || strings.HasPrefix(text, "reject") || strings.HasPrefix(text, "goto "+chainDenied):
					if last && len(r.match) > 0 {
						t.Errorf("%s: chain %s does not end for all: %v", name, c.name, r)
					}
				default:
					t.Errorf("%s: chain %s: %v", name, c.name, r)
				}
			}
		}
	}
}

// Somebody empties the chain that refuses, where the kernel lets him: even then nothing
// passes.
func TestEmptyChainRefuses(t *testing.T) {
	n := newNetwork(t)
	n.guarded = open(t, ownerless, worldRules(t))
	n.open(time.Hour, 1, backend.Scope{Holder: backend.Machine})
	end := time.Now().Add(time.Second)
	for time.Now().Before(end) {
		err := tryForeign(t, func(c *nftables.Conn, table *nftables.Table) {
			c.FlushChain(&nftables.Chain{Name: "denied-output", Table: table})
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range to(2, sinkPort) {
			if conn, err := n.here.Dial(t.Context(), "udp", addr); err == nil {
				if _, err = conn.Write([]byte("x")); err == nil {
					t.Error("a packet has passed")
				}
				conn.Close()
			}
		}
	}
}
