package e2e

import (
	"fmt"
	"net"
	"testing"
)

// A thief goes for a mapped address that another client has been given. They are easy to
// guess: pools are handed out in sequence.
type thief struct {
	name  string
	by    string // "on the wire" of the victim, or "elsewhere", on another wire of the gateway
	forge func(r *theft) [][]byte
	end   string
}

// A theft is what one has to do with.
type theft struct {
	own, victim station
	gateway     net.HardwareAddr // of the thief's wire
	to          string           // the mapped address
	port        uint16           // of a live connection of the victim
}

// frames are packets in somebody's name.
func (r *theft) frames(from station, hw net.HardwareAddr, forge func(source, to string) []packet) (all [][]byte) {
	for _, p := range forge(from.addr(r.to), r.to) {
		all = append(all, p.frame(r.gateway, hw))
	}
	return all
}

// begins are packets that begin a connection: by UDP, TCP, ping, SCTP.
func begins(source, to string) []packet {
	return []packet{newUDP(source, to, 4000, mirrorPort), newTCP(source, to, 4001, mirrorPort, syn), newICMP(source, to), newSCTP(source, to)}
}

// odd is everything that the kernel may take for something else than it is.
func odd(source, to string) (all []packet) {
	for _, forge := range []func(source, to string) []packet{
		tcpWith(syn | fin | rst | psh | ack | urg), tcpWith(syn | ack), tcpWith(ack), tcpWith(psh | ack), tcpWith(fin | ack), tcpWith(rst), tcpWith(0),
		udpFrom(53, 5353), udpFrom(0, echoPort), everyProtocol,
		fragments(16), fragmentedSYN, fragments(16, 0), fragments(16, 1), fragments(16, 1, 0, 0, 1), overlapping, atomicFragment,
		withOptions, withHeaders, hidden, hiddenBehind, otherPorts,
	} {
		all = append(all, forge(source, to)...)
	}
	return all
}

var thieves = []thief{
	{"guesses, on another wire", "elsewhere", func(r *theft) [][]byte { return r.frames(r.own, r.own.hw, begins) }, isLost},
	{"guesses, on the same wire", "on the wire", func(r *theft) [][]byte { return r.frames(r.own, r.own.hw, begins) }, isLost},
	{"sends what is odd, on another wire", "elsewhere", func(r *theft) [][]byte { return r.frames(r.own, r.own.hw, odd) }, isLost},
	{"sends what is odd, on the same wire", "on the wire", func(r *theft) [][]byte { return r.frames(r.own, r.own.hw, odd) }, isLost},
	{"by the victim's IP address, on another wire", "elsewhere", func(r *theft) [][]byte { return r.frames(r.victim, r.own.hw, begins) }, isLost},
	{"by the victim's Ethernet address, on another wire", "elsewhere", func(r *theft) [][]byte { return r.frames(r.own, r.victim.hw, begins) }, isLost},
	{"by both, on another wire", "elsewhere", func(r *theft) [][]byte { return r.frames(r.victim, r.victim.hw, begins) }, isLost},
	{"by the victim's IP address, on the same wire", "on the wire", func(r *theft) [][]byte { return r.frames(r.victim, r.own.hw, begins) }, isLost},
	{"by both, on the same wire", "on the wire", func(r *theft) [][]byte { return r.frames(r.victim, r.victim.hw, begins) }, arrives}, // nobody could tell
	{"SYN on the ports of a live connection, on another wire", "elsewhere", func(r *theft) [][]byte { return r.frames(r.victim, r.own.hw, r.synAgain) }, isLost},
	{"SYN on the ports of a live connection, on the same wire", "on the wire", func(r *theft) [][]byte { return r.frames(r.victim, r.own.hw, r.synAgain) }, isLost},
	{"its own SYN on the ports of a live connection", "elsewhere", func(r *theft) [][]byte { return r.frames(r.own, r.own.hw, r.synAgain) }, isLost},
}

func (r *theft) synAgain(source, to string) []packet {
	return []packet{newTCP(source, to, r.port, mirrorPort, syn)}
}

// What one client has been given is of no use to another, however it is tried: nothing
// comes out, and the victim's own connections go on.
func TestThievesOfMappedAddresses(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	victim, onWire := m.wires()
	elsewhere := station{m.client, "eth0", client4, client6, m.mac(m.client, "eth0")}
	x := m.tap()
	// That the real addresses are open to everybody makes no difference.
	file := m.corefile("nft-gateway", "allowedGatewayIPs 198.18.70.0/24 2001:db8:18:70::/64", m.routedTo("shop.test"))
	c := m.start(file)
	m.must(c.Stop()) // older connections than the guard are of no matter here
	m.nftables(disarm)
	m.start(file)
	for i, row := range thieves {
		for _, ipv4 := range []bool{true, false} {
			real, resolver := fmt.Sprintf("198.18.70.%d", i+1), "192.168.53.1"
			if !ipv4 {
				real, resolver = fmt.Sprintf("2001:db8:18:70::%d", i+1), "fd53::1"
			}
			name := fmt.Sprintf("n%d.shop.test.", i)
			m.atlas.addrs(name, 60, real)
			addr := m.mapped(victim.Host, resolver, name, ipv4)[0]
			f := m.flow(victim.Host, addr, real)
			r := &theft{own: onWire, victim: victim, gateway: m.mac(m.guard, "lan2"), to: addr, port: uint16(f.LocalAddr().(*net.TCPAddr).Port)}
			if row.by == "elsewhere" {
				r.own, r.gateway = elsewhere, m.mac(m.guard, "lan0")
			}
			came := func(p packet) bool {
				return p.destination.String() == real || pool4.Contains(p.destination) || pool6.Contains(p.destination)
			}
			before := x.seen(came)
			m.must(r.own.Inject(r.own.ifname, row.forge(r)...))
			end, n := isLost, x.seen(came)-before
			if n > 0 {
				end = arrives
			}
			if end != row.end {
				t.Errorf("%s, to %s: %s (%d packets); it should be: %s", row.name, addr, end, n, row.end)
			}
			if err := echo(f); err != nil {
				t.Errorf("%s, to %s: the victim's connection: %v", row.name, addr, err)
			}
			m.wantSight(victim.Host, addr, real, map[bool]string{true: routeEgress4, false: routeEgress6}[ipv4])
		}
	}
	// Those who are honest about it are told at once.
	m.wantReset(m.client, "100.96.0.2")
}
