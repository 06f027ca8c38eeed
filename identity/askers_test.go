package identity

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func newAskers(t testing.TB, h *netlab.Host) (a *Askers) {
	t.Helper()
	must(t, h.Do(func() (err error) {
		a, err = NewAskers()
		return err
	}))
	t.Cleanup(a.Close)
	return a
}

// here is a host that asks itself: 192.0.2.1 and 2001:db8::1, and loopback.
func here(t testing.TB) (*netlab.Host, *Askers) {
	h, _ := newPair(t)
	return h, newAskers(t, h)
}

// serve listens on an address of the host, and accepts whatever comes.
func serve(t testing.TB, h *netlab.Host, network, address string) netip.AddrPort {
	t.Helper()
	if strings.HasPrefix(network, "udp") {
		conn, err := h.ListenPacket(network, address)
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	ln, err := h.Listen(network, address)
	must(t, err)
	var conns []net.Conn
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
		for _, c := range conns {
			c.Close()
		}
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// finds fails the test unless this process is found to have asked.
func finds(t *testing.T, a *Askers, network string, client, server netip.AddrPort) {
	t.Helper()
	got, err := a.Find(network, client, server)
	if err != nil || got.UID != uint32(os.Getuid()) || got.Cgroup == 0 {
		t.Errorf("%s %v -> %v: got %+v, %v", network, client, server, got, err)
	}
}

func gone(t *testing.T, a *Askers, network string, client, server netip.AddrPort) {
	t.Helper()
	if got, err := a.Find(network, client, server); !errors.Is(err, ErrGone) {
		t.Errorf("%s %v -> %v: got %+v, %v", network, client, server, got, err)
	}
}

func TestFindAsker(t *testing.T) {
	h, a := here(t)
	for _, network := range []string{"udp", "tcp"} {
		for _, address := range []string{
			"127.0.0.1:0", "127.0.0.2:0", "[::1]:0", "192.0.2.1:0", "[2001:db8::1]:0",
			"[" + linkLocal(t, h, "eth0") + "]:0",
		} {
			t.Run(network+" "+address, func(t *testing.T) {
				server := serve(t, h, network, address)
				conn, err := h.Dial(t.Context(), network, server.String())
				must(t, err)
				defer conn.Close()
				client := addrPort(conn.LocalAddr())
				if client.Addr().Zone() != server.Addr().Zone() {
					t.Errorf("from %v to %v", client, server)
				}
				finds(t, a, network, client, server)
				finds(t, a, network, mapped(client), server)
				finds(t, a, network, client, mapped(server))

				other := netip.AddrPortFrom(server.Addr(), server.Port()^1)
				gone(t, a, network, client, other)
				gone(t, a, network, netip.AddrPortFrom(client.Addr(), client.Port()^1), server)
				must(t, conn.Close())
				gone(t, a, network, client, server)
			})
		}
	}
}

func linkLocal(t testing.TB, h *netlab.Host, ifname string) (addr string) {
	t.Helper()
	must(t, h.Do(func() error {
		i, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			if ip := a.(*net.IPNet).IP; ip.IsLinkLocalUnicast() {
				addr = ip.String() + "%" + ifname
			}
		}
		return err
	}))
	return addr
}

func mapped(p netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(p.Addr().As16()).WithZone(p.Addr().Zone()), p.Port())
}

// A socket for both families reaches IPv4 by way of ::ffff:127.0.0.1.
func TestFindAskerOnDualStackSocket(t *testing.T) {
	h, a := here(t)
	for network, typ := range map[string]int{"udp": unix.SOCK_DGRAM, "tcp": unix.SOCK_STREAM} {
		server := serve(t, h, network, "127.0.0.1:0")
		must(t, h.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET6, typ, 0)
			must(t, err)
			defer unix.Close(fd)
			must(t, unix.Connect(fd, &unix.SockaddrInet6{Port: int(server.Port()), Addr: mapped(server).Addr().As16()}))
			name, err := unix.Getsockname(fd)
			must(t, err)
			in6 := name.(*unix.SockaddrInet6)
			client := netip.AddrPortFrom(netip.AddrFrom16(in6.Addr), uint16(in6.Port))
			if !client.Addr().Is4In6() {
				t.Errorf("the socket is at %v", client)
			}
			finds(t, a, network, client, server)
			return nil
		}))
	}
}

// Many programs, musl's resolver for one, send from sockets that are not connected.
func TestFindAskerOnUnconnectedSocket(t *testing.T) {
	h, a := here(t)
	server := serve(t, h, "udp", "127.0.0.1:0")
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "127.0.0.1:0"} {
		conn, err := h.ListenPacket("udp", address)
		must(t, err)
		client := netip.AddrPortFrom(server.Addr(), addrPort(conn.LocalAddr()).Port())
		finds(t, a, "udp", client, server)
		gone(t, a, "tcp", client, server)
		must(t, conn.Close())
		gone(t, a, "udp", client, server)
	}
}

// A UDP server on the wildcard address does not know which of its addresses was asked.
func TestFindAskerOfWildcardServer(t *testing.T) {
	h, a := here(t)
	server := serve(t, h, "udp", ":0")
	for _, own := range []string{"127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", linkLocal(t, h, "eth0")} {
		conn, err := h.Dial(t.Context(), "udp", netip.AddrPortFrom(netip.MustParseAddr(own), server.Port()).String())
		must(t, err)
		finds(t, a, "udp", addrPort(conn.LocalAddr()), server)
		must(t, conn.Close())
	}
}

// A socket that is bound to an interface gets packets of that only.
func TestFindAskerOnBoundSocket(t *testing.T) {
	h, a := here(t)
	server := serve(t, h, "udp", "127.0.0.1:0")
	var conn net.Conn
	must(t, h.Do(func() (err error) {
		dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), "lo") })
			return errors.Join(err, failed)
		}}
		conn, err = dialer.Dial("udp", server.String())
		return err
	}))
	defer conn.Close()
	finds(t, a, "udp", addrPort(conn.LocalAddr()), server)
}

// What remains of a closed connection has no user any more, or root for one.
func TestFindAskerAfterClose(t *testing.T) {
	h, a := here(t)
	ln, err := h.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	server := addrPort(ln.Addr())
	conn, err := h.Dial(t.Context(), "tcp", server.String())
	must(t, err)
	peer, err := ln.Accept()
	must(t, err)
	defer peer.Close()
	client := addrPort(conn.LocalAddr())

	must(t, conn.(*net.TCPConn).CloseWrite())
	finds(t, a, "tcp", client, server) // who sends no more still waits for the answer
	must(t, conn.Close())
	gone(t, a, "tcp", client, server) // FIN_WAIT2
	must(t, peer.Close())
	gone(t, a, "tcp", client, server) // TIME_WAIT
}

// A listener is at the client's address, where the client is no more.
func TestListenerDidNotAsk(t *testing.T) {
	h, a := here(t)
	client, server := serve(t, h, "tcp", "127.0.0.1:0"), serve(t, h, "tcp", "127.0.0.1:0")
	gone(t, a, "tcp", client, server)
}

func TestFindAskerRefuses(t *testing.T) {
	_, a := here(t)
	v4, v6 := netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("[::1]:53")
	zone := netip.MustParseAddrPort("[fe80::1%nosuch]:53")
	for _, tt := range []struct {
		network        string
		client, server netip.AddrPort
	}{
		{"", v4, v4}, {"unix", v4, v4}, {"udp", v4, v6}, {"tcp", v6, v4}, {"udp", netip.AddrPort{}, v4}, {"udp", zone, v6},
	} {
		if got, err := a.Find(tt.network, tt.client, tt.server); err == nil || errors.Is(err, ErrGone) {
			t.Errorf("%+v: got %+v, %v", tt, got, err)
		}
	}
}

func TestAskersAtOnceAndClosed(t *testing.T) {
	h, a := here(t)
	server := serve(t, h, "udp", "127.0.0.1:0")
	var asking sync.WaitGroup
	for range 16 {
		asking.Go(func() {
			for range 50 {
				conn, err := h.Dial(t.Context(), "udp", server.String())
				if err != nil {
					t.Error(err)
					return
				}
				finds(t, a, "udp", addrPort(conn.LocalAddr()), server)
				conn.Close()
			}
		})
	}
	asking.Wait()
	for range 8 {
		asking.Go(func() {
			for range 100 {
				if _, err := a.Find("udp", server, server); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(fmt.Errorf("got %w", err))
				}
			}
		})
	}
	a.Close()
	a.Close()
	asking.Wait()
	if _, err := a.Find("udp", server, server); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
