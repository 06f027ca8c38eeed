package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// socket is a netlink socket to nfnetlink, for one goroutine at a time.
//
// The kernel works off a request inside sendmsg, so its answers are there when
// send returns, and nothing here ever waits for one.
type socket struct {
	fd   int
	seq  uint32
	recv []byte
}

// errUnknown means that the kernel's answer was lost: the transaction may be in
// force or not.
var errUnknown = errors.New("the kernel's answer was lost")

// sendBuffer bounds one transaction. Without CAP_NET_ADMIN in the first user
// namespace the kernel grants no more than net.core.wmem_max, twice.
const sendBuffer = 16 << 20

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &socket{fd: fd, recv: make([]byte, 1<<16)}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Bind(fd, kernel); err != nil {
		s.close()
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(fd, kernel); err != nil {
		s.close()
		return nil, os.NewSyscallError("connect", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
	// Errors need not carry the whole request back, but may say what was wrong.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	return s, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// send hands the kernel a buffer of messages.
func (s *socket) send(b []byte) error {
	for {
		_, err := unix.Write(s.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EMSGSIZE {
			return fmt.Errorf("%w: %d bytes in one transaction (raise net.core.wmem_max)", err, len(b))
		}
		return err
	}
}

// receive calls each for every message that waits, and returns when none does or
// each wants no more. If the kernel had more to say than there was room for, that comes
// first, and what there was room for, the beginning, after it: a refused table makes it
// refuse each of its rules as well.
func (s *socket) receive(each func(header unix.NlMsghdr, data []byte) (more bool)) error {
	var lost error
	for {
		n, err := unix.Read(s.fd, s.recv)
		switch err {
		case nil:
		case unix.EAGAIN:
			return lost
		case unix.EINTR:
			continue
		case unix.ENOBUFS:
			lost = errUnknown
			continue
		default:
			return os.NewSyscallError("recvfrom", err)
		}
		for b := s.recv[:n]; len(b) >= unix.SizeofNlMsghdr; {
			h := unix.NlMsghdr{
				Len:   binary.NativeEndian.Uint32(b),
				Type:  binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq:   binary.NativeEndian.Uint32(b[8:]),
			}
			if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
				return fmt.Errorf("netlink message of %d bytes in %d", h.Len, len(b))
			}
			if !each(h, b[unix.SizeofNlMsghdr:h.Len]) {
				return nil
			}
			b = b[min(align(int(h.Len)), len(b)):]
		}
	}
}

// kernelError is an errno with what the kernel says of it, if it does.
type kernelError struct {
	errno unix.Errno
	text  string
	seq   uint32 // of the message that was refused
}

func (e *kernelError) Error() string {
	if e.text != "" {
		return fmt.Sprintf("%v (%s)", e.errno, e.text)
	}
	return e.errno.Error()
}

func (e *kernelError) Unwrap() error { return e.errno }

// parseError reads the body of an NLMSG_ERROR; an acknowledgement gives nil.
func parseError(h unix.NlMsghdr, data []byte) error {
	if len(data) < 4+unix.SizeofNlMsghdr {
		return unix.EBADMSG
	}
	errno := int32(binary.NativeEndian.Uint32(data))
	if errno == 0 {
		return nil
	}
	e := &kernelError{errno: unix.Errno(-errno), seq: h.Seq}
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 {
		rest := data[4+unix.SizeofNlMsghdr:]
		if h.Flags&unix.NLM_F_CAPPED == 0 {
			size := int(binary.NativeEndian.Uint32(data[4:]))
			rest = data[min(4+align(size), len(data)):]
		}
		for typ, value := range attributes(rest) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.text = cString(value)
			}
		}
	}
	return e
}

// transact sends a batch and returns once it is in force or refused.
func (s *socket) transact(b *batch) error {
	first := s.seq
	last := first + b.count // the one that asks for an acknowledgement
	s.seq += b.count + 2
	if err := s.send(b.finish(first)); err != nil {
		return err
	}
	var refused error
	acknowledged := false
	err := s.receive(func(h unix.NlMsghdr, data []byte) bool {
		if h.Type != unix.NLMSG_ERROR || h.Seq-first > last+1-first {
			return true // of an earlier transaction
		}
		if err := parseError(h, data); err == nil {
			acknowledged = true
		} else if refused == nil {
			if refused = err; errors.Is(err, unix.EPERM) && h.Seq != first {
				refused = &takenError{err} // who may do nothing hears it at the begin
			}
		}
		return h.Seq != last // what the kernel says of the others comes before
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return err
	case !acknowledged && !b.dryRun:
		return errUnknown
	}
	return nil
}

// request sends one message and hands the attributes of each answer to each,
// until that wants no more.
func (s *socket) request(typ, flags uint16, family byte, attrs []byte, each func(data []byte) (more bool)) error {
	return s.requestOf(unix.NFNL_SUBSYS_NFTABLES, typ, flags, family, attrs, each)
}

// requestOf is request to any part of nfnetlink.
func (s *socket) requestOf(part, typ, flags uint16, family byte, attrs []byte, each func(data []byte) (more bool)) error {
	s.seq++
	b := appendHeader(nil, part<<8|typ, unix.NLM_F_REQUEST|flags, s.seq, family, 0)
	b = append(b, attrs...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	if err := s.send(b); err != nil {
		return err
	}
	var refused error
	err := s.receive(func(h unix.NlMsghdr, data []byte) bool {
		switch {
		case h.Seq != s.seq:
		case h.Type == unix.NLMSG_ERROR:
			refused = parseError(h, data)
			return false // nothing comes after it
		case h.Type == unix.NLMSG_DONE:
		case len(data) >= 4:
			return each(data[4:])
		}
		return true
	})
	if refused != nil {
		return refused
	}
	return err
}

// works reports whether the kernel answers over this socket.
func (s *socket) works() bool {
	_, err := s.generation()
	var refused *kernelError
	return err == nil || errors.As(err, &refused)
}

// generation asks for the ruleset's generation, which every transaction on this
// network namespace raises by one.
func (s *socket) generation() (id uint32, err error) {
	err = s.request(unix.NFT_MSG_GETGEN, 0, unix.NFPROTO_UNSPEC, nil, func(data []byte) bool {
		for typ, value := range attributes(data) {
			if typ == unix.NFTA_GEN_ID && len(value) == 4 {
				id = binary.BigEndian.Uint32(value)
			}
		}
		return true
	})
	return id, err
}
