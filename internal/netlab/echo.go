package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// echo is a server which sends back what it gets, on one port of all addresses of both families.
type echo struct {
	tcp      net.Listener
	udp      *net.UDPConn
	accepted *atomic.Uint64
	wg       sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// Echo answers TCP and UDP on a port of every address of the host with what it gets. A UDP answer
// comes from the address that was asked.
func (h *Host) Echo(port int) error {
	address := fmt.Sprintf(":%d", port)
	tcp, err := h.Listen("tcp", address)
	if err != nil {
		return err
	}
	udp, err := h.ListenPacket("udp", address)
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	e := &echo{tcp: tcp, udp: udp.(*net.UDPConn), accepted: &h.accepted, conns: make(map[net.Conn]struct{})}
	if err := reportDestination(e.udp); err != nil {
		return h.fail("echo", errors.Join(err, tcp.Close(), udp.Close()))
	}
	e.wg.Go(e.accept)
	e.wg.Go(e.packets)
	if err := h.keep(e); err != nil {
		return h.fail("echo", errors.Join(err, e.Close()))
	}
	return nil
}

// Close ends the server and its connections.
func (e *echo) Close() error {
	err := errors.Join(e.tcp.Close(), e.udp.Close())
	e.mu.Lock()
	for conn := range e.conns {
		conn.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.wg.Wait()
	return err
}

func (e *echo) accept() {
	for {
		conn, err := e.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(5 * time.Millisecond) // out of descriptors: wait for some to be closed
			continue
		}
		e.accepted.Add(1)
		e.wg.Go(func() { e.serve(conn) })
	}
}

func (e *echo) serve(conn net.Conn) {
	defer conn.Close()
	e.mu.Lock()
	if e.conns == nil {
		e.mu.Unlock()
		return
	}
	e.conns[conn] = struct{}{}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.conns, conn)
	}()

	// Not io.Copy, which would splice by way of a pipe: three descriptors for each connection.
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (e *echo) packets() {
	buf, oob := make([]byte, 64<<10), make([]byte, 128)
	for {
		n, oobn, _, from, err := e.udp.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		// An answer without a route is lost, as on any network.
		_, _, _ = e.udp.WriteMsgUDPAddrPort(buf[:n], fromDestination(oob[:oobn]), from)
	}
}

// reportDestination has the kernel tell the address each packet was sent to. The socket is of both
// families, and tells an IPv4 address as an IPv4-mapped one.
func reportDestination(udp *net.UDPConn) error {
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	})
	return errors.Join(err, failed)
}

// fromDestination turns the report about a packet into the order to send from that address. The
// interface is left open: the way back may be another one.
func fromDestination(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			addr := netip.AddrFrom16([16]byte(m.Data[:16]))
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: addr.As16()})
		}
	}
	return nil
}
