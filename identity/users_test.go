package identity

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFindAskersOfTwoUsers(t *testing.T) {
	h, a := here(t)
	server := serve(t, h, "udp", "127.0.0.1:0")
	tcpServer := serve(t, h, "tcp", "[::1]:0")
	for _, uid := range []int{1000, 2000} {
		must(t, asUser(t, uid, func() error {
			for network, server := range map[string]netip.AddrPort{"udp": server, "tcp": tcpServer} {
				conn, err := h.Dial(t.Context(), network, server.String())
				must(t, err)
				defer conn.Close()
				got, err := a.Find(network, addrPort(conn.LocalAddr()), server)
				if err != nil || got.UID != uint32(uid) {
					t.Errorf("%s: got %+v, %v, want user %d", network, got, err, uid)
				}
			}
			return nil
		}))
	}
}

// asUser makes the calling thread make files as the user.
func asUser(t testing.TB, uid int, f func() error) error {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Setfsuid(uid)
	defer func() { _ = unix.Setfsuid(os.Geteuid()) }()
	if now, _ := unix.SetfsuidRetUid(-1); now != uid {
		cannot(t, "only root can be another user")
	}
	return f()
}

// Two sockets may have one address if both allow it. The kernel finds the latest.
func TestSharedAddress(t *testing.T) {
	h, a := here(t)
	server := serve(t, h, "udp", "127.0.0.1:0")
	share := func(option int, address string) (conn net.PacketConn, err error) {
		err = h.Do(func() (err error) {
			config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
				var failed error
				err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1) })
				return errors.Join(err, failed)
			}}
			conn, err = config.ListenPacket(context.Background(), "udp", address)
			return err
		})
		return conn, err
	}
	for name, option := range map[string]int{"SO_REUSEADDR": unix.SO_REUSEADDR, "SO_REUSEPORT": unix.SO_REUSEPORT} {
		t.Run(name, func(t *testing.T) {
			var first, second net.PacketConn
			var err error
			must(t, asUser(t, 1000, func() error { first, err = share(option, "127.0.0.1:0"); return err }))
			defer first.Close()
			client := addrPort(first.LocalAddr())
			err = asUser(t, 2000, func() error { second, err = share(option, client.String()); return err })
			if option == unix.SO_REUSEPORT {
				if !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("another user got the same address: %v", err)
				}
				return
			}
			must(t, err)
			defer second.Close()
			if got, err := a.Find("udp", client, server); err != nil || got.UID != 2000 {
				t.Errorf("got %+v, %v", got, err)
			}
			// Who is connected cannot be mistaken.
			must(t, connect(first, server))
			if got, err := a.Find("udp", client, server); err != nil || got.UID != 1000 {
				t.Errorf("connected: got %+v, %v", got, err)
			}
		})
	}
}

func connect(conn net.PacketConn, to netip.AddrPort) error {
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.Connect(int(fd), &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	})
	return errors.Join(err, failed)
}
