package identity

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// openNetlink opens a netlink socket that hears nobody but the kernel: who is
// connected to it gets no messages from other processes (netlink_getsockbyportid).
func openNetlink(protocol int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Bind(fd, kernel); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(fd, kernel); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// A requester is a netlink socket for questions that have one answer, for one
// goroutine at a time. The kernel works a question off inside sendmsg, so the
// answer is there when that returns.
type requester struct {
	fd   int
	seq  uint32
	send []byte
	recv [8 << 10]byte
}

// open starts a question. The caller appends its body to what is returned, and
// hands that to ask.
func (r *requester) open(typ uint16) []byte { return appendHeader(r.send[:0], typ, unix.NLM_F_REQUEST) }

// ask returns the body of the kernel's answer, which is good until the next
// question, or the kernel's error number.
func (r *requester) ask(question []byte) ([]byte, error) {
	r.send = question
	r.seq++
	finishMessage(question, r.seq)
	for {
		_, err := unix.Write(r.fd, question)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("sendmsg", err)
		}
		break
	}
	for {
		n, err := unix.Read(r.fd, r.recv[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvmsg", err)
		}
		for h, body := range messages(r.recv[:n]) {
			if h.Seq != r.seq {
				continue // of a question whose answer was not read
			}
			if h.Type == unix.NLMSG_ERROR {
				return nil, errnoOf(body)
			}
			return body, nil
		}
	}
}

// A pool is a few requesters for many goroutines. It bounds the threads that
// wait inside the kernel.
type pool struct {
	idle chan *requester
	done chan struct{}
	once sync.Once
}

func newPool(protocol int) (*pool, error) {
	n := min(max(runtime.GOMAXPROCS(0), 2), 8)
	p := &pool{idle: make(chan *requester, n), done: make(chan struct{})}
	for range n {
		fd, err := openNetlink(protocol)
		if err != nil {
			for range len(p.idle) {
				unix.Close((<-p.idle).fd)
			}
			return nil, err
		}
		p.idle <- &requester{fd: fd}
	}
	return p, nil
}

// get takes a requester, which has to be put back.
func (p *pool) get() (*requester, error) {
	select {
	case r := <-p.idle:
		return r, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pool) put(r *requester) { p.idle <- r }

// close waits for questions in flight.
func (p *pool) close() {
	p.once.Do(func() {
		close(p.done)
		for range cap(p.idle) {
			unix.Close((<-p.idle).fd)
		}
	})
}

// appendHeader appends a message's header. finishMessage fills in the rest.
func appendHeader(b []byte, typ, flags uint16) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

func finishMessage(b []byte, seq uint32) {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[8:], seq)
}

// messages yields the messages in b.
func messages(b []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			h := unix.NlMsghdr{
				Len:   binary.NativeEndian.Uint32(b),
				Type:  binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq:   binary.NativeEndian.Uint32(b[8:]),
				Pid:   binary.NativeEndian.Uint32(b[12:]),
			}
			if h.Len < unix.SizeofNlMsghdr || uint64(h.Len) > uint64(len(b)) {
				return
			}
			if !yield(h, b[unix.SizeofNlMsghdr:h.Len]) {
				return
			}
			b = b[min(align(int(h.Len)), len(b)):]
		}
	}
}

func align(n int) int { return (n + 3) &^ 3 }

func appendAttribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes yields the attributes in b: type without flags, and value.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[4:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// errnoOf reads the body of an NLMSG_ERROR. Nobody here asks for acknowledgements.
func errnoOf(body []byte) error {
	if len(body) < 4 {
		return unix.EBADMSG
	}
	errno := -int32(binary.NativeEndian.Uint32(body))
	if errno <= 0 {
		return fmt.Errorf("%w: an acknowledgement that nobody asked for", unix.EBADMSG)
	}
	return unix.Errno(errno)
}
