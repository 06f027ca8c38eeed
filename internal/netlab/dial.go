package netlab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Dial connects from the host to an IP literal with a port, over tcp or udp.
//
// Only the socket is made in the namespace, where it stays; the goroutine leaves before it connects.
// So thousands of dials may wait for an answer without holding a thread each.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, h.fail("dial", err)
	}
	leave, err := h.enter()
	if err != nil {
		return nil, err
	}
	left := false
	dialer := net.Dialer{
		KeepAlive: -1,
		// Called by net between socket and connect, on the goroutine that dials.
		Control: func(_, _ string, _ syscall.RawConn) error {
			if left {
				// net tries once more, with a second socket, when it found no free port or
				// connected to itself. That socket would be outside.
				return syscall.EADDRNOTAVAIL
			}
			left = true
			return leave()
		},
	}
	conn, err := dialer.DialContext(ctx, network, address)
	if !left {
		err = errors.Join(err, leave())
	}
	if err != nil {
		return nil, h.fail("dial", err)
	}
	return conn, nil
}

// Listen listens for connections on the host.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	err := h.Do(func() (err error) {
		config := net.ListenConfig{KeepAlive: -1}
		config.SetMultipathTCP(false) // on by default, and slower
		ln, err = config.Listen(context.Background(), network, address)
		return h.fail("listen", err)
	})
	if err != nil {
		return nil, err
	}
	return ln, nil
}

// ListenPacket listens for packets on the host.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var conn net.PacketConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenPacket(network, address)
		return h.fail("listen", err)
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}
