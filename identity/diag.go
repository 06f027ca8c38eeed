package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// A diagSocket is a socket as the kernel describes it (struct inet_diag_msg).
type diagSocket struct {
	state         byte
	local, remote netip.AddrPort
	inode         uint32
	asker         Asker
}

// asks reports whether the socket is what sends from client to server.
func (s *diagSocket) asks(network string, client, server netip.AddrPort) bool {
	// What no file holds any more has no user either, and the kernel says root. Nor
	// do connections that are no full sockets (TIME_WAIT, NEW_SYN_RECV).
	if s.inode == 0 || s.state == tcpTimeWait || s.state == tcpNewSynRecv {
		return false
	}
	if network == "tcp" { // else it is a listener on the client's address
		return s.local == client && s.remote == server
	}
	return s.local.Port() == client.Port() &&
		(s.local.Addr() == client.Addr() || s.local.Addr().IsUnspecified()) &&
		(s.remote == server || s.remote.Port() == 0 && s.remote.Addr().IsUnspecified())
}

const (
	tcpTimeWait   = 6
	tcpNewSynRecv = 12

	sizeofDiagMessage = 4 + sizeofSockID + 20
	sizeofSockID      = 48
	diagCgroupID      = 21 // INET_DIAG_CGROUP_ID
)

// lookup asks for the socket that gets packets from server to client.
func lookup(r *requester, network string, client, server netip.AddrPort, index uint32) (s diagSocket, err error) {
	protocol, source, destination := byte(unix.IPPROTO_TCP), client, server
	switch network {
	case "tcp":
	case "udp": // "src and dst are swapped for historical reasons" (udp_dump_one)
		protocol, source, destination = unix.IPPROTO_UDP, server, client
	default:
		return s, fmt.Errorf("network %q: %w", network, unix.EINVAL)
	}
	b := append(r.open(unix.SOCK_DIAG_BY_FAMILY), family(client.Addr()), protocol, 0, 0)
	b = append(b, 0xff, 0xff, 0xff, 0xff) // any state
	b = binary.BigEndian.AppendUint16(b, source.Port())
	b = binary.BigEndian.AppendUint16(b, destination.Port())
	b = appendPadded(b, source.Addr())
	b = appendPadded(b, destination.Addr())
	b = binary.NativeEndian.AppendUint32(b, index)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // INET_DIAG_NOCOOKIE
	body, err := r.ask(b)
	if errors.Is(err, unix.ENOENT) {
		return s, ErrGone
	}
	if err != nil {
		return s, err
	}
	return parseSocket(body)
}

func appendPadded(b []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		v := addr.As4()
		return append(append(b, v[:]...), make([]byte, 12)...)
	}
	v := addr.As16()
	return append(b, v[:]...)
}

func parseSocket(body []byte) (s diagSocket, err error) {
	if len(body) < sizeofDiagMessage {
		return s, os.NewSyscallError("sock_diag", unix.EBADMSG)
	}
	id := body[4:]
	s.state = body[1]
	s.local = netip.AddrPortFrom(diagAddr(body[0], id[4:]), binary.BigEndian.Uint16(id))
	s.remote = netip.AddrPortFrom(diagAddr(body[0], id[20:]), binary.BigEndian.Uint16(id[2:]))
	rest := body[4+sizeofSockID:]
	s.asker.UID = binary.NativeEndian.Uint32(rest[12:])
	s.inode = binary.NativeEndian.Uint32(rest[16:])
	for typ, value := range attributes(body[sizeofDiagMessage:]) {
		if typ == diagCgroupID && len(value) == 8 {
			s.asker.Cgroup = binary.NativeEndian.Uint64(value)
		}
	}
	return s, nil
}

func diagAddr(family byte, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}

// probe looks up a socket of our own. (For a kind of socket that it cannot look up
// the kernel says the same as for one that does not exist.)
func (a *Askers) probe() error {
	r, err := a.pool.get()
	if err != nil {
		return err
	}
	defer a.pool.put(r)
	for network, typ := range map[string]int{"udp": unix.SOCK_DGRAM, "tcp": unix.SOCK_STREAM} {
		if err := probe(r, network, typ); err != nil {
			return fmt.Errorf("probe of sock_diag for %s: %w", network, err)
		}
	}
	return nil
}

func probe(r *requester, network string, typ int) error {
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if typ == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 1); err != nil {
			return os.NewSyscallError("listen", err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	here := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	if _, err = lookup(r, network, here, here, 1); errors.Is(err, ErrGone) {
		return ErrUnsupported
	}
	return err
}
