package main

import (
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// packets is a batch of UDP packets for one system call. A Go net.UDPConn takes
// a call and a trip through the poller for each, which is more than the servers
// that are to be measured.
type packets struct {
	bufs  [][]byte
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet4
	msgs  []mmsghdr
}

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

const packetSize = 512

// newPackets makes room for n packets, with the peer's address where the socket
// is not connected.
func newPackets(n int, named bool) *packets {
	p := &packets{
		bufs: make([][]byte, n), iovs: make([]unix.Iovec, n),
		names: make([]unix.RawSockaddrInet4, n), msgs: make([]mmsghdr, n),
	}
	for i := range n {
		p.bufs[i] = make([]byte, packetSize)
		p.iovs[i].Base = &p.bufs[i][0]
		p.msgs[i].hdr.Iov = &p.iovs[i]
		p.msgs[i].hdr.SetIovlen(1)
		if named {
			p.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&p.names[i]))
		}
	}
	return p
}

// receive waits for at least one packet, unless flags say otherwise.
func (p *packets) receive(fd, limit, flags int) (int, error) {
	limit = min(limit, len(p.msgs))
	for i := range limit {
		p.iovs[i].SetLen(packetSize)
		if p.msgs[i].hdr.Name != nil {
			p.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet4
		}
	}
	n, _, errno := syscall.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.msgs[0])), uintptr(limit), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// packet is the i-th packet received.
func (p *packets) packet(i int) []byte { return p.bufs[i][:p.msgs[i].len] }

// send sends the first n packets, whose lengths are set.
func (p *packets) send(fd, n int) {
	for at := 0; at < n; {
		sent, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.msgs[at])), uintptr(n-at), 0, 0, 0)
		switch {
		case errno == 0:
			at += int(sent)
		case errno == unix.EINTR:
		default:
			at++ // lost, as on any network
		}
	}
}

func (p *packets) setLen(i, n int) { p.iovs[i].SetLen(n) }

// noAddress leaves a socket unbound or unconnected.
var noAddress netip.AddrPort

// udpSocket opens a blocking socket on a host; its descriptor is the caller's.
func udpSocket(h *netlab.Host, local, remote netip.AddrPort, options ...func(fd int) error) (fd int, err error) {
	err = h.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		for _, o := range append(options, bigBuffers) {
			if err := o(fd); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		if local.IsValid() {
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}); err != nil {
				return os.NewSyscallError("bind", err)
			}
		}
		if remote.IsValid() {
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()}); err != nil {
				return os.NewSyscallError("connect", err)
			}
		}
		return nil
	})
	if err != nil && fd > 0 {
		unix.Close(fd)
	}
	return fd, err
}

func bigBuffers(fd int) error {
	const size = 8 << 20
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], size) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], size)
		}
	}
	return nil
}

func receiveTimeout(usec int64) func(fd int) error {
	return func(fd int) error {
		tv := unix.NsecToTimeval(usec * 1000)
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	}
}

func reusePort(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
