package nft

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// dialFrom connects from a port of the host's.
func (n *network) dialFrom(h *netlab.Host, port int, network, addr string) (conn net.Conn, err error) {
	n.Helper()
	own := []string{client4, client6}
	if h == n.here {
		own = []string{from4, from6}
	}
	source := netip.MustParseAddr(own[1])
	if netip.MustParseAddrPort(addr).Addr().Is4() {
		source = netip.MustParseAddr(own[0])
	}
	at := netip.AddrPortFrom(source, uint16(port))
	err = h.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(at), Timeout: 2 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(at)
		}
		conn, err = d.Dial(network, addr)
		return err
	})
	if err == nil {
		n.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// Two names on one real address stay apart where everything else about two connections is
// the same; and by neither, the real address itself is reached.
func TestSamePortToTwoNames(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	defer n.dump()
	n.mapTo("open", 1, 1)
	n.mapTo("open", 2, 1)
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			n.openMapped(1, s.holder)
			n.openMapped(2, s.holder)
			for _, network := range []string{"udp", "tcp"} {
				for i := range versions {
					first, err := n.dialFrom(s.Host, 4711, network, toMapped(1, 443)[i])
					if err != nil {
						t.Fatal(err)
					}
					second, err := n.dialFrom(s.Host, 4711, network, toMapped(2, 443)[i])
					if err != nil {
						t.Fatal(err)
					}
					n.talks(true, first, second, first)
					if third, err := n.dialFrom(s.Host, 4711, network, to(1, 443)[i]); err == nil {
						n.talks(false, third)
					}
				}
			}
		})
	}
}

// What was said to one server is never said to the next one behind the same address: where a
// connection has been ended, its packets lead nowhere.
func TestNothingReachesTheNextServer(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	defer n.dump()
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			n.mapTo("open", 1, 1)
			n.openMapped(1, s.holder)
			live := n.dials(s, "tcp", toMapped(1, 443)...)
			n.mapTo("open", 1, 2)
			n.connections(func(_, real netip.Addr) bool { return real == both(addrs(1))[0] || real == both(addrs(1))[1] })
			sniffed := n.countsTo(both(addrs(2)))
			n.talks(false, live...)
			if leaked := sniffed(); leaked > 0 {
				t.Errorf("%d packets have got to the next server", leaked)
			}
			n.seen(s, 1, 2, s.as[:]...)
		})
	}
}

// Who says that he is a client on another wire has nothing of the client's.
func TestForgedSourceToMapped(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	defer n.dump()
	n.mapTo("one", 1, 1)
	n.openMapped(1, backend.ClientScope(netip.MustParseAddr(client4)), backend.ClientScope(netip.MustParseAddr(client6)))
	n.seen(n.client, 1, 1, egressOne4, egressOne6)
	for _, cidr := range []string{client4 + "/32", client6 + "/128"} {
		if err := n.other.Addr("eth0", cidr); err != nil {
			t.Fatal(err)
		}
	}
	sniffed := n.counts()
	for i := range versions {
		for _, network := range []string{"tcp", "udp"} {
			conn, err := n.dialFrom(n.other, 4712, network, toMapped(1, whoPort)[i])
			if err != nil {
				continue
			}
			n.talks(false, conn)
		}
	}
	if leaked := sniffed(); leaked > 0 {
		t.Errorf("%d packets have got through", leaked)
	}
}
