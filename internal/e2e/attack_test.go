package e2e

import (
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// An attack is a way to reach an address that DNS has not given out, or to be given
// one that is not to be had. Each stands here with its end, also those that are let
// through.
type attack struct {
	name    string
	by      string // self, who is on the guarded machine, or client, who is behind it; empty is both
	options string // of the directive
	zone    string // more of them, in the block of the attacker's own zone
	arming  bool   // in the guard's first 30 seconds
	alone   bool   // others would suffer
	attempt func(*attacker) string
	end     string // how it ends, in attempt's words
	free    string // how it ends where nothing is guarded: or else nothing was tried
}

// How attacks end.
const (
	isRefused = "refused"
	isOpen    = "open"
	isLost    = "nothing arrives"
	arrives   = "arrives"
	inPart    = "arrives in part"

	isStripped = "stripped"
	isNothing  = "no address"
	isGiven    = "given and open"
	isOther    = "given and shut" // what is mentioned besides
	isUnheard  = "no answer"
)

// attacksIn are those to be made in a mode.
func attacksIn(m mode) (all []*attack) {
	tables := [][]attack{programs, packets, lookAlikes}
	if m.self && m.behind {
		tables = append(tables, answers, questions)
	}
	for _, table := range tables {
		for i := range table {
			a := &table[i]
			if (a.by != "self" || m.self) && (a.by != "client" || m.behind) && (a.options+a.zone == "" || m.self && m.behind) {
				all = append(all, a)
			}
		}
	}
	return all
}

// What every program can do, or those of root.
var programs = []attack{
	{name: "an address that nobody has looked up", attempt: dials("tcp", echoPort), end: isRefused, free: isOpen},
	{name: "the same over UDP", attempt: dials("udp", echoPort), end: isRefused, free: isOpen},
	{name: "a resolver of its own over UDP", attempt: dials("udp", 53), end: isRefused, free: isOpen},
	{name: "a resolver of its own over TCP", attempt: dials("tcp", 53), end: isRefused, free: isOpen},
	{name: "the guard's upstream", by: "client", attempt: to(resolver4, resolver6, dials("udp", 53)), end: isRefused, free: isOpen},
	{name: "DNS over TLS", attempt: dials("tcp", 853), end: isRefused, free: isOpen},
	{name: "DNS over QUIC", attempt: dials("udp", 853), end: isRefused, free: isOpen},
	{name: "DNS over HTTPS", attempt: dials("tcp", 443), end: isRefused, free: isOpen},
	{name: "DNS over HTTP/3", attempt: dials("udp", 443), end: isRefused, free: isOpen},
	{name: "what another resolver says, which is allowed", options: "allowedIPs " + stranger4 + " " + stranger6,
		attempt: looksUp(stranger4, stranger6), end: isOther, free: isGiven},
	{name: "what the guard's upstream says, which is allowed", options: "allowedIPs " + resolver4 + " " + resolver6,
		attempt: looksUp(resolver4, resolver6), end: isOther, free: isGiven},
	{name: "what somebody else says on the guard's port 53", by: "client", alone: true, attempt: asksImpostor, end: isOther, free: isGiven},
	{name: "an IPv4-mapped address", attempt: dialsMapped, end: isRefused, free: isOpen},
	{name: "multipath TCP", attempt: opens(unix.SOCK_STREAM, unix.IPPROTO_MPTCP, nil), end: isRefused, free: isOpen},
	{name: "TCP Fast Open", attempt: opens(unix.SOCK_STREAM, 0, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	}), end: isRefused, free: isOpen},
	{name: "ping, as every user can", attempt: opens(unix.SOCK_DGRAM, unix.IPPROTO_ICMP, nil), end: isRefused, free: isOpen},
	{name: "by way of loopback", by: "self", attempt: opens(unix.SOCK_STREAM, 0, viaLoopback), end: isRefused},
	{name: "by way of loopback, over UDP", by: "self", attempt: opens(unix.SOCK_DGRAM, 0, viaLoopback), end: isRefused},
	{name: "from a port that was reset while older connections may go on", arming: true, attempt: afterReset, end: isRefused, free: isOpen},
}

// What only root can send.
var packets = []attack{
	{name: "ping", attempt: sends(one(newICMP)), end: isLost, free: arrives},
	{name: "SYN", attempt: sends(tcpWith(syn)), end: isLost, free: arrives},
	{name: "SYN and all other flags", attempt: sends(tcpWith(syn | fin | rst | psh | ack | urg)), end: isLost, free: arrives},
	{name: "SYN and ACK, as of a reply", attempt: sends(tcpWith(syn | ack)), end: isLost, free: arrives},
	{name: "ACK, as of a live connection", attempt: sends(tcpWith(ack)), end: isLost, free: arrives},
	{name: "ACK, while older connections may go on", arming: true, attempt: sends(tcpWith(ack)), end: arrives, free: arrives},
	{name: "PSH and ACK", attempt: sends(tcpWith(psh | ack)), end: isLost, free: arrives},
	{name: "FIN and ACK", attempt: sends(tcpWith(fin | ack)), end: isLost, free: arrives},
	{name: "RST", attempt: sends(tcpWith(rst)), end: isLost, free: arrives},
	{name: "no flags", attempt: sends(tcpWith(0)), end: isLost, free: arrives},
	{name: "UDP from port 53", attempt: sends(udpFrom(53, 5353)), end: isLost, free: arrives},
	{name: "UDP from port 0", attempt: sends(udpFrom(0, echoPort)), end: isLost, free: arrives},
	{name: "SCTP", attempt: sends(one(newSCTP)), end: isLost, free: arrives},
	{name: "every protocol there may be", attempt: sends(everyProtocol), end: isLost, free: arrives},

	{name: "fragments", attempt: sends(fragments(16)), end: isLost, free: arrives},
	{name: "TCP's flags in the second fragment", attempt: sends(fragmentedSYN), end: isLost, free: arrives},
	{name: "a first fragment alone", attempt: sends(fragments(16, 0)), end: isLost, free: arrives},
	{name: "a second fragment alone", attempt: sends(fragments(16, 1)), end: isLost, free: arrives},
	{name: "fragments in disorder", attempt: sends(fragments(16, 1, 0, 0, 1)), end: isLost, free: arrives},
	{name: "fragments that overlap", attempt: sends(overlapping), end: isLost, free: arrives},
	{name: "a fragment that is all (IPv6)", attempt: sends(atomicFragment), end: isLost, free: arrives},

	{name: "IPv4 options", attempt: sends(withOptions), end: isLost, free: arrives},
	{name: "IPv6 extension headers", attempt: sends(withHeaders), end: isLost, free: arrives},
	{name: "routing by the sender (IPv4)", by: "client", attempt: forges(sourceRoute), end: isLost, free: arrives},
	{name: "routing by the sender (IPv4), with the gateway always open", by: "client", options: "allowedGatewayIPs " + gateway4,
		attempt: forges(sourceRoute), end: isLost, free: arrives},
	{name: "routing by the sender, from afar", by: "client", attempt: forges(sourceRouteOnItsWay), end: isLost, free: arrives},
	{name: "routing by the sender, from afar, with the gateway always open", by: "client", options: "allowedGatewayIPs " + gateway4,
		attempt: forges(sourceRouteOnItsWay), end: isLost, free: arrives},
	{name: "routing by the sender, along a live connection with the gateway", by: "client", attempt: alongLive, end: isLost, free: arrives},
	{name: "routing by the sender (IPv6)", by: "client", attempt: forges(routingHeaders), end: isLost},
	{name: "segment routing (IPv6)", by: "client", attempt: forges(segmentRoute), end: isLost, free: arrives},
	{name: "segment routing (IPv6), with the gateway always open", by: "client", options: "allowedGatewayIPs " + gateway6,
		attempt: forges(segmentRoute), end: isLost, free: arrives},
	{name: "a resolver that DNS has given, by fragments", attempt: givenSends(hidden), end: isLost, free: arrives},
	{name: "a resolver that DNS has given, behind options and headers", attempt: givenSends(hiddenBehind), end: isLost, free: arrives},
	{name: "a port that DNS has not given", zone: "ports tcp/443", attempt: zoneSends(otherPorts), end: isLost, free: arrives},
	{name: "a tunnel's end at the gateway", by: "client", attempt: forges(tunnels), end: isLost},

	{name: "ICMP errors about a live connection", attempt: relatedErrors, end: isLost, free: arrives},
	{name: "in the name of another network", attempt: sendsFrom("198.51.100.7", "2001:db8:51::7"), end: isLost, free: arrives},
	{name: "in the name of the upstream", attempt: sendsFrom(resolver4, resolver6), end: isLost, free: arrives},
	{name: "in the gateway's name", by: "client", attempt: sendsFrom(gateway4, gateway6), end: isLost},
	{name: "in nobody's name", by: "client", attempt: sendsFrom("0.0.0.0", "::"), end: isLost},
	{name: "in the name of loopback", by: "client", attempt: sendsFrom("127.0.0.1", "::1"), end: isLost},
	{name: "in the name of a group", by: "client", attempt: sendsFrom("224.0.0.1", "ff02::1"), end: isLost},
	{name: "from a link-local address", by: "client", attempt: sendsFrom("169.254.7.7", "fe80::7"), end: isLost},

	{name: "a frame with a priority (802.1Q)", by: "client", attempt: frames(tagged), end: isLost, free: arrives},
	{name: "a frame to everybody", by: "client", attempt: frames(toEverybody), end: isLost},
	{name: "a frame to a group", by: "client", attempt: frames(toGroup), end: isLost},
	{name: "a frame from everybody", by: "client", attempt: frames(fromEverybody), end: isLost},

	{name: "IPv4 within IPv6", attempt: each(sends(udpFrom(4000, echoPort)), "64:ff9b::c613:1", "2002:c613:1::1", "2001:0:c613:1::1"), end: isLost, free: arrives},
	{name: "an IPv4-mapped address on the wire", by: "client", attempt: each(sends(udpFrom(4000, echoPort)), "::ffff:198.19.0.1"), end: isLost},
	{name: "groups", by: "self", attempt: each(sends(udpFrom(5353, 5353)), "224.0.0.251", "239.255.255.250", "ff02::fb", "ff05::c", "ff0e::1"), end: isLost, free: arrives},
	{name: "everybody", by: "self", attempt: each(sends(udpFrom(4000, echoPort)), "255.255.255.255", "192.0.2.255", "ff02::1"), end: isLost, free: arrives},
	{name: "groups beyond the gateway", by: "client", attempt: each(sends(udpFrom(5353, 5353)), "224.0.0.251", "239.255.255.250", "ff02::fb", "ff05::c", "ff0e::1"), end: isLost},
	{name: "everybody beyond the gateway", by: "client", attempt: each(sends(udpFrom(4000, echoPort)), "192.0.2.255"), end: isLost, free: arrives},
}

// What looks like DHCP, ND or MLD and is none: it would be a way out to anywhere.
var lookAlikes = []attack{
	{name: "DHCP's ports, otherwise than a client has them", attempt: sends(dhcpAlikes), end: isLost, free: arrives},
	{name: "a client's DHCP, beyond the gateway", by: "client", attempt: sends(onlyIPv4(udpFrom(68, 67))), end: isLost, free: arrives},
	{name: "DHCP, as root can send it", by: "self", attempt: sends(onlyIPv4(udpFrom(68, 67))), end: arrives, free: arrives},
	{name: "DHCP over TCP", attempt: sends(dhcpOverTCP), end: isLost, free: arrives},
	{name: "ND and MLD from afar", attempt: sends(icmpv6s(64, mld, nd)), end: isLost, free: arrives},
	{name: "MLD to one host", by: "self", attempt: sends(icmpv6s(1, mld)), end: isLost, free: arrives},
	{name: "ND beyond the gateway", by: "client", attempt: sends(icmpv6s(255, nd)), end: isLost, free: arrives},
	{name: "MLD beyond the gateway", by: "client", attempt: sends(icmpv6s(2, mld)), end: isLost, free: arrives},
}

// A battlefield is a world with attackers in it.
type battlefield struct {
	*world
	wire    *wire
	zone    *hostileZone
	coredns *coredns
	next    int // unlisted address
}

func newBattlefield(t *testing.T) *battlefield {
	t.Helper()
	w := newWorld(t)
	b := &battlefield{world: w, wire: w.tap(), zone: new(hostileZone)}
	w.must(w.world.ServeDNS(hostilePort, b.zone))
	// What makes some of the attacks possible at all.
	for _, key := range []string{
		"net/ipv4/conf/all/accept_source_route", "net/ipv4/conf/lan0/accept_source_route",
		"net/ipv6/conf/all/seg6_enabled", "net/ipv6/conf/lan0/seg6_enabled",
		"net/ipv4/conf/all/bc_forwarding", "net/ipv4/conf/lan0/bc_forwarding",
	} {
		w.must(w.guard.Sysctl(key, "1"))
	}
	w.letPing()
	return b
}

// An attacker is somebody who attacks an address, which mostly is his alone.
type attacker struct {
	*battlefield
	party
	ifname      string
	hw, gateway net.HardwareAddr // of his interface, and where it leads
	to          string
	guarded     bool
}

// A raid is an attack by all who are to make it, over both IP versions.
type raid struct {
	*attack
	want      string
	attackers []*attacker
	ends      []string
}

func (b *battlefield) raid(a *attack, m mode, guarded bool) *raid {
	r := &raid{attack: a, want: a.end}
	if !guarded {
		r.want = a.free
	}
	for _, p := range []struct {
		by, ifname string
		party
		guarded bool
	}{{"self", "wan0", b.self(), m.self}, {"client", "eth0", b.behind(), m.behind}} {
		if !p.guarded || a.by != "" && a.by != p.by {
			continue
		}
		b.next++
		ipv4, ipv6 := unlistedAddrs(b.next)
		for _, to := range []string{ipv4, ipv6} {
			r.attackers = append(r.attackers, &attacker{b, p.party, p.ifname, b.mac(p.Host, p.ifname), b.mac(b.guard, "lan0"), to, guarded})
		}
	}
	r.ends = make([]string, len(r.attackers))
	return r
}

// make has all attackers attack at once.
func (r *raid) make() {
	var wg sync.WaitGroup
	for i, a := range r.attackers {
		wg.Go(func() { r.ends[i] = r.attempt(a) })
	}
	wg.Wait()
}

// report says how it ended.
func (r *raid) report(t *testing.T) {
	tried := 0
	for i, a := range r.attackers {
		switch r.ends[i] {
		case r.want:
			tried++
		case "": // there is no such thing in this IP version
		default:
			t.Errorf("%s upon %s: %s; it should be: %s", a.Name(), a.to, r.ends[i], r.want)
		}
	}
	if tried == 0 {
		t.Error("nobody has tried")
	}
}

// raids makes attacks, several at a time.
func (b *battlefield) raids(t *testing.T, rows []*attack, m mode, guarded bool) (all []*raid) {
	var wg sync.WaitGroup
	some := make(chan struct{}, 12)
	for _, a := range rows {
		if guarded || a.free != "" {
			all = append(all, b.raid(a, m, guarded))
		}
	}
	for _, r := range all {
		if !r.alone {
			some <- struct{}{}
			wg.Go(func() { r.make(); <-some })
		}
	}
	wg.Wait()
	for _, r := range all {
		if r.alone {
			r.make()
		}
	}
	return all
}

// A row's attack is made without the guard, if it is possible then, and with it.
func TestAttacks(t *testing.T) {
	for _, m := range modes {
		groups := map[string][]*attack{}
		for _, a := range attacksIn(m) {
			key := strings.TrimSpace(m.name + " " + a.options + a.zone)
			if a.arming {
				key += ", arming"
			}
			groups[key] = append(groups[key], a)
		}
		for _, key := range slices.Sorted(maps.Keys(groups)) {
			t.Run(key, func(t *testing.T) {
				t.Parallel()
				attackIn(t, m, groups[key])
			})
		}
	}
}

func attackIn(t *testing.T, m mode, rows []*attack) {
	b := newBattlefield(t)
	for _, r := range b.raids(t, rows, m, false) {
		t.Run("unguarded: "+r.name, r.report)
	}
	text := guardedBlock(".", guardBlock(m.name, rows[0].options), "forward . "+resolver4) + hostileBlock(rows[0].zone)
	c := b.start(text)
	if !rows[0].arming {
		b.must(c.Stop())
		b.nftables(disarm)
		c = b.start(text)
	}
	b.coredns = c
	raids := b.raids(t, rows, m, true)
	b.wire.sync()
	for _, r := range raids {
		t.Run(r.name, r.report)
		if r.arming || r.end == arrives || r.end == isGiven {
			continue
		}
		for _, a := range r.attackers {
			if n := b.wire.count(func(p packet) bool { return p.destination.String() == a.to }); n > 0 {
				t.Errorf("%s: in the end %d packets have come to %s", r.name, n, a.to)
			}
		}
	}
	// It has lived through all of it.
	guarded, _ := m.parties(b.world)
	for _, p := range guarded {
		b.lookup(p.Host, p.resolver4, p.addr4(250), 60)
		b.wantOpen(p.Host, "tcp", p.addr4(250))
	}
	wantPrintable(t, c.Output())
}

// disarm ends the 30 seconds in which TCP connections go on that are older than the
// guard.
func disarm(c *nftables.Conn) error {
	set := &nftables.Set{Name: "arming", Table: ours, HasTimeout: true, KeyType: nftables.TypeNFProto}
	return errors.Join(c.SetDeleteElements(set, []nftables.SetElement{{Key: []byte{unix.NFPROTO_IPV4}}, {Key: []byte{unix.NFPROTO_IPV6}}}), c.Flush())
}
