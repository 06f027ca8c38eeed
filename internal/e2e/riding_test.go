package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A rider uses the grant of a victim: another client, behind another router or on a
// wire of the gateway, perhaps his own.
type rider struct {
	name   string
	victim string // routed; or wired, with an Ethernet address on one of the gateway's wires; or new, if the gateway does not know it yet
	by     string // client, on another wire, or thief, on the victim's wire
	forge  func(r *ride) []byte
	end    string
}

// A ride is what one has to do with.
type ride struct {
	own, victim station
	gateway     net.HardwareAddr // of the rider's wire
	to          string
}

// A station is a host on a wire.
type station struct {
	*netlab.Host
	ifname     string
	ipv4, ipv6 string
	hw         net.HardwareAddr
}

func (s station) addr(like string) string {
	if is4(like) {
		return s.ipv4
	}
	return s.ipv6
}

var riders = []rider{
	{"by his own address", "wired", "thief", func(r *ride) []byte { return r.frame(r.own, r.own.hw) }, isLost},
	{"by the victim's IP address", "wired", "thief", func(r *ride) []byte { return r.frame(r.victim, r.own.hw) }, isLost},
	{"by the victim's Ethernet address", "wired", "thief", func(r *ride) []byte { return r.frame(r.own, r.victim.hw) }, arrives},
	{"by both", "wired", "thief", func(r *ride) []byte { return r.frame(r.victim, r.victim.hw) }, arrives},
	{"from another wire, by the victim's IP address", "wired", "client", func(r *ride) []byte { return r.frame(r.victim, r.own.hw) }, isLost},
	{"from another wire, by the victim's Ethernet address", "wired", "client", func(r *ride) []byte { return r.frame(r.own, r.victim.hw) }, isLost},
	{"from another wire, by both", "wired", "client", func(r *ride) []byte { return r.frame(r.victim, r.victim.hw) }, isLost},
	{"from another wire, by the IP address of who has just come", "new", "client", func(r *ride) []byte { return r.frame(r.victim, r.own.hw) }, isLost},
	{"from another wire, by the IP address of who is routed", "routed", "client", func(r *ride) []byte { return r.frame(r.victim, r.own.hw) }, isLost},
	{"from another wire, by the router's Ethernet address", "routed", "client", func(r *ride) []byte { return r.frame(r.own, r.victim.hw) }, isLost},
}

// frame is a packet to the address in somebody's name.
func (r *ride) frame(from station, hw net.HardwareAddr) []byte {
	return newUDP(from.addr(r.to), r.to, 4000, echoPort).frame(r.gateway, hw)
}

// wires are more of them: a switch with a victim and a thief, whose router is the
// guard.
func (w *world) wires() (victim, thief station) {
	w.Helper()
	hub := w.host("switch")
	w.must(w.lab.Link(hub, "up", w.guard, "lan2"))
	w.addrs(w.guard, "lan2", "192.168.53.1/24", "fd53::1/64")
	w.must(w.world.Route("192.168.53.0/24", guard4))
	w.must(w.world.Route("fd53::/64", guard6))
	for i, s := range []*station{&victim, &thief} {
		name := []string{"victim", "thief"}[i]
		*s = station{ifname: "eth0", ipv4: fmt.Sprintf("192.168.53.%d", 2+i), ipv6: fmt.Sprintf("fd53::%d", 2+i)}
		s.Host = w.host(name)
		w.must(w.lab.Link(s.Host, s.ifname, hub, name))
		w.addrs(s.Host, s.ifname, s.ipv4+"/24", s.ipv6+"/64")
		w.must(s.Route("0.0.0.0/0", "192.168.53.1"))
		w.must(s.Route("::/0", "fd53::1"))
		s.hw = w.mac(s.Host, s.ifname)
	}
	w.must(hub.Bridge("br0", "up", "victim", "thief"))
	return victim, thief
}

// forget has the guard's kernel not know a neighbour any more.
func (w *world) forget(addr string) {
	w.Helper()
	w.must(w.guard.Do(func() error {
		neighbours, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		for _, n := range neighbours {
			if n.IP.String() == addr {
				err = errors.Join(err, netlink.NeighDel(&n))
			}
		}
		return err
	}))
}

func TestRiders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, routedHost := w.moreClients()
	victim, thief := w.wires()
	routed := station{routedHost, "eth0", routed4, routed6, w.mac(neighbour, "eth0")}
	client := station{w.client, "eth0", client4, client6, w.mac(w.client, "eth0")}
	x := w.tap()
	w.start(corefile("ipdestinationguard nft-gateway"))
	for i, row := range riders {
		for _, to := range []string{w.behind().addr4(100 + i), w.behind().addr6(100 + i)} {
			r := &ride{own: thief, victim: victim, gateway: w.mac(w.guard, "lan2"), to: to}
			resolver := map[bool]string{true: "192.168.53.1", false: "fd53::1"}[is4(to)]
			if row.victim == "routed" {
				r.victim = routed
				resolver = map[bool]string{true: neighbourGateway4, false: neighbourGateway6}[is4(to)]
			}
			if row.by == "client" {
				r.own, r.gateway = client, w.mac(w.guard, "lan0")
			}
			if row.victim == "new" {
				w.forget(r.victim.addr(to))
			}
			w.lookup(r.victim.Host, resolver, to, 60)
			came := func(p packet) bool { return p.destination.String() == to }
			w.must(r.own.Inject(r.own.ifname, row.forge(r)))
			end := isLost
			if x.seen(came) > 0 {
				end = arrives
			}
			if end != row.end {
				t.Errorf("%s, to %s: %s; it should be: %s", row.name, to, end, row.end)
			}
			w.wantOpen(r.victim.Host, "tcp", to)
		}
	}
}

// A question in somebody else's name opens nothing to who has sent it. It may to
// somebody else, who does not hear of it.
func TestQuestionsInAnothersName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.moreClients()
	victim, thief := w.wires()
	w.start(corefile(guardBlock("nft-both")))
	gateway := w.mac(w.guard, "lan2")
	names := []struct {
		ipv4, ipv6 string
		whose      *netlab.Host // nil is somebody else's
	}{
		{victim.ipv4, victim.ipv6, victim.Host},
		{client4, client6, w.client},
		{routed4, routed6, nil},
		{gateway4, gateway6, nil},
		{"192.168.53.1", "fd53::1", nil}, // the gateway on this wire
		{"127.0.0.1", "::1", nil},
		{"0.0.0.0", "::", nil},
		{resolver4, resolver6, nil},
	}
	asked := map[string]*netlab.Host{}
	for i, name := range names {
		for _, to := range []string{w.behind().addr4(150 + i), w.behind().addr6(150 + i)} {
			asked[to] = name.whose
			qtype, source, server := dns.TypeAAAA, name.ipv6, "fd53::1"
			if is4(to) {
				qtype, source, server = dns.TypeA, name.ipv4, "192.168.53.1"
			}
			question, err := new(dns.Msg).SetQuestion(nameOf(60, to), qtype).Pack()
			w.must(err)
			w.must(thief.Inject(thief.ifname, newUDP(source, server, 4000, 53, question...).frame(gateway, thief.hw)))
		}
	}
	w.eventually("what can be opened is open", func() bool {
		granted := w.grants()
		for to, whose := range asked {
			if _, ok := granted[netip.MustParseAddr(to)]; whose != nil && !ok {
				return false
			}
		}
		return true
	})
	for to, whose := range asked {
		w.wantShut(thief.Host, to)
		if whose != nil {
			w.wantOpen(whose, "tcp", to)
		}
	}
}
