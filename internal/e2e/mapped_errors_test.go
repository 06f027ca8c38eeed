package e2e

import (
	"bytes"
	"context"
	bin "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// An icmpError is one as its receiver gets it: who says it, and about which packet.
type icmpError struct {
	from                netip.Addr
	kind, code          byte
	mtu                 int
	source, destination netip.Addr // of the packet that it is about
}

// Types and codes of errors.
var (
	tooBig4, tooBig6           = [2]byte{3, 4}, [2]byte{2, 0}
	exceeded4, exceeded6       = [2]byte{11, 0}, [2]byte{3, 0}
	unreachable4, unreachable6 = [2]byte{3, 3}, [2]byte{1, 4} // port
)

func readICMPError(p packet) (e icmpError, ok bool) {
	b := p.payload
	switch {
	case p.protocol == unix.IPPROTO_ICMP && len(b) >= 28 && (b[0] == 3 || b[0] == 11):
		source, _ := netip.AddrFromSlice(b[8+12 : 8+16])
		destination, _ := netip.AddrFromSlice(b[8+16 : 8+20])
		return icmpError{p.source, b[0], b[1], int(bin.BigEndian.Uint16(b[6:])), source, destination}, true
	case p.protocol == unix.IPPROTO_ICMPV6 && len(b) >= 48 && b[0] < 128:
		source, _ := netip.AddrFromSlice(b[8+8 : 8+24])
		destination, _ := netip.AddrFromSlice(b[8+24 : 8+40])
		return icmpError{p.source, b[0], b[1], int(bin.BigEndian.Uint32(b[4:])), source, destination}, true
	}
	return e, false
}

// errorsOn remembers the ICMP errors that come by at a host's interface.
type errorsOn struct {
	*world
	mu  sync.Mutex // guards all
	all []icmpError
}

func (w *world) errorsOn(h *netlab.Host, ifname string) *errorsOn {
	w.Helper()
	sniffer, err := h.Sniff(ifname)
	w.must(err)
	x := &errorsOn{world: w}
	go func() { // until the lab is closed
		for {
			frame, err := sniffer.Next(context.Background())
			if err != nil {
				return
			}
			if p, ok := readPacket(frame); ok {
				if e, ok := readICMPError(p); ok {
					x.mu.Lock()
					x.all = append(x.all, e)
					x.mu.Unlock()
				}
			}
		}
	}()
	return x
}

// next waits for an error of a kind, and forgets all there were.
func (x *errorsOn) next(kind [2]byte) (found icmpError, ok bool) {
	x.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		x.mu.Lock()
		for _, e := range x.all {
			if e.kind == kind[0] && e.code == kind[1] {
				found, ok = e, true
			}
		}
		if ok {
			x.all = nil
		}
		x.mu.Unlock()
	}
	return found, ok
}

// far is a server beyond a router, by a link on which packets are at most so large.
const (
	farMTU     = 1300
	far4, far6 = "203.0.113.7", "2001:db8:77::7"
)

func (w *world) far() *netlab.Host {
	w.Helper()
	far := w.host("far")
	w.must(w.lab.Link(far, "eth0", w.world, "far0"))
	w.must(w.world.Forward())
	w.must(w.world.Sysctl("net/ipv4/icmp_ratelimit", "0"))
	w.must(w.world.Sysctl("net/ipv6/icmp/ratelimit", "0"))
	w.addrs(w.world, "far0", "203.0.113.1/24", "2001:db8:77::1/64")
	w.addrs(far, "eth0", far4+"/24", far6+"/64")
	w.shell(w.world, fmt.Sprintf("ip link set far0 mtu %d", farMTU))
	// It asks for larger segments than can come, as who knows nothing of a tunnel in between.
	w.shell(far, fmt.Sprintf("ip link set eth0 mtu %d; ip route add default via 203.0.113.1 advmss 1460; ip -6 route add default via 2001:db8:77::1 advmss 1440", farMTU))
	w.must(far.Echo(echoPort))
	return far
}

// What routers on the way say about a packet says it about the mapped address, to the
// client that has sent it: of real ones it knows nothing. To the client it is the mapped
// address that says it, whatever router does: the kernel translates both, so a traceroute
// shows one hop.
func TestErrorsCarryTheMappedAddress(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.far()
	m.start(strings.Replace(m.corefile("nft-gateway", m.routedTo("shop.test")), "private ** ", "private ** 203.0.113.0/24 2001:db8:77::/48 ", 1))
	m.atlas.addrs("far.shop.test.", 60, far4, far6)
	m.atlas.addrs("near.shop.test.", 60, "198.18.80.1", "2001:db8:18:80::1")
	x := m.errorsOn(m.client, "eth0")
	gateway, hw := m.mac(m.guard, "lan0"), m.mac(m.client, "eth0")
	for _, ipv4 := range []bool{true, false} {
		own, guardian := client4, gateway4
		tooBig, exceeded, unreachable := tooBig4, exceeded4, unreachable4
		if !ipv4 {
			own, guardian = client6, gateway6
			tooBig, exceeded, unreachable = tooBig6, exceeded6, unreachable6
		}
		far := m.mapped(m.client, gateway4, "far.shop.test.", ipv4)[0]
		near := m.mapped(m.client, gateway4, "near.shop.test.", ipv4)[0]
		want := func(what string, kind [2]byte, from, about string) {
			t.Helper()
			e, ok := x.next(kind)
			switch {
			case !ok:
				t.Errorf("IPv4 %v: %s: the client is told nothing", ipv4, what)
			case e.source.String() != own || e.destination.String() != about:
				t.Errorf("IPv4 %v: %s: the client is told about a packet from %v to %v, which was from %s to %s", ipv4, what, e.source, e.destination, own, about)
			case from != "" && e.from.String() != from:
				t.Errorf("IPv4 %v: %s: %v says it, want %s", ipv4, what, e.from, from)
			case kind == tooBig && e.mtu != farMTU:
				t.Errorf("IPv4 %v: %s: the MTU is said to be %d, want %d", ipv4, what, e.mtu, farMTU)
			}
		}
		port := uint16(5000)
		sends := func(p packet, hops byte) {
			t.Helper()
			p.hops = hops
			m.must(m.client.Inject("eth0", p.frame(gateway, hw)))
		}
		udp := func(to string, size int) packet {
			port++
			p := newUDP(own, to, port, echoPort, make([]byte, size)...)
			p.fragment = 1 << 14 // do not
			return p
		}
		// On a first packet, and on a connection that is known.
		sends(udp(far, 1360), 64)
		want("too big, first packet", tooBig, far, far)
		sends(udp(far, 100), 2)
		want("time exceeded at a router behind, first packet", exceeded, far, far)
		sends(udp(far, 100), 1)
		want("time exceeded at the gateway itself, first packet", exceeded, far, far)
		sends(newTCP(own, far, 4100, echoPort, syn), 2)
		want("time exceeded for a SYN", exceeded, far, far)
		sends(newICMPEcho(own, far), 2)
		want("time exceeded for a ping", exceeded, far, far)
		sends(newUDP(own, near, 5100, 9), 64)
		want("nobody listens", unreachable, near, near)

		words, err := m.dial(m.client, "udp", far)
		m.must(err)
		defer words.Close()
		m.must(echo(words))
		known := uint16(words.LocalAddr().(*net.UDPAddr).Port)
		big := newUDP(own, far, known, echoPort, make([]byte, 1360)...)
		big.fragment = 1 << 14
		sends(big, 64)
		want("too big, on a connection", tooBig, far, far)
		sends(newUDP(own, far, known, echoPort), 2)
		want("time exceeded behind, on a connection", exceeded, far, far)
		sends(newUDP(own, far, known, echoPort), 1)
		want("time exceeded at the gateway, on a connection", exceeded, far, far)

		// The gateway's own refusals.
		unassigned := "100.96.9.9"
		if !ipv4 {
			unassigned = "fd00:2021:1111:8000::9:9"
		}
		sends(udp(unassigned, 10), 64)
		want("an unassigned address", unreachable, guardian, unassigned)

		// A program's connection finds the size by them.
		conn, err := m.dial(m.client, "tcp", far)
		m.must(err)
		if err = says64K(conn); err != nil {
			t.Errorf("IPv4 %v: 64 KiB where packets have to be small: %v", ipv4, err)
		}
		conn.Close()
	}
}

// The same for what the machine itself sends: its sockets hear of errors, by the mapped
// address.
func TestErrorsReachLocalSockets(t *testing.T) {
	t.Parallel()
	m := newMappedWorld(t)
	m.far()
	m.start(strings.Replace(m.corefile("nft-local", m.routedTo("shop.test")), "private ** ", "private ** 203.0.113.0/24 2001:db8:77::/48 ", 1))
	m.atlas.addrs("far.shop.test.", 60, far4, far6)
	for _, ipv4 := range []bool{true, false} {
		far := m.mapped(m.guard, "127.0.0.1", "far.shop.test.", ipv4)[0]
		conn, err := m.dial(m.guard, "tcp", far)
		m.must(err)
		if err := says64K(conn); err != nil {
			t.Errorf("IPv4 %v: 64 KiB where packets have to be small: %v", ipv4, err)
		}
		conn.Close()
		addr := netip.MustParseAddr(far)
		domain, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16(), Port: echoPort})
		if ipv4 {
			domain, to = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4(), Port: echoPort}
		}
		err = m.guard.Do(func() error {
			return connectSocket(domain, unix.SOCK_DGRAM, 0, to, bytes.Repeat([]byte("x"), 100), 2*time.Second, func(fd int) error {
				if ipv4 {
					return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
				}
				return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
			})
		})
		if err == nil || err == unix.EAGAIN {
			t.Errorf("IPv4 %v: a datagram that lives for one hop: %v, want an error", ipv4, err)
		}
	}
}

// newICMPEcho is a ping that a connection is made of.
func newICMPEcho(source, destination string) packet {
	if is4(destination) {
		return newICMP(source, destination)
	}
	return newPacket(source, destination, 64, unix.IPPROTO_ICMPV6, []byte{echoRequest, 0, 0, 0, 0, 7, 0, 1, 'p', 'i', 'n', 'g'}, 2)
}
