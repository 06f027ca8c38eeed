package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// frameMax holds what a veth hands over: one frame of 64 KiB where segmentation is left to hardware
// that does not exist.
const frameMax = 64<<10 + 256

// Sniffer captures all frames of an interface, in both directions.
type Sniffer struct {
	host   *Host
	socket *os.File

	mu  sync.Mutex // guards buf, and makes the socket's deadline one caller's
	buf [frameMax]byte
}

// Sniff captures the frames of an interface from now on. Frames which the kernel made have no
// checksums yet when they come by.
func (h *Host) Sniff(ifname string) (*Sniffer, error) {
	index, err := h.index(ifname)
	if err != nil {
		return nil, h.fail("sniff", err)
	}
	var fd int
	err = h.Do(func() (err error) {
		// Of protocol 0, it gets nothing before it is bound, and then only from the interface.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return h.fail("sniff", err)
	})
	if err != nil {
		return nil, err
	}
	s := &Sniffer{host: h, socket: os.NewFile(uintptr(fd), "packet:"+ifname)}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // as far as the machine allows
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		return nil, h.fail("sniff", errors.Join(err, s.socket.Close()))
	}
	if err := h.keep(s); err != nil {
		return nil, h.fail("sniff", errors.Join(err, s.Close()))
	}
	return s, nil
}

// Next returns the next frame, which is the caller's, or an error when the context or the capture
// ends first.
func (s *Sniffer) Next(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket.SetReadDeadline(time.Time{}) != nil {
		return nil, s.host.fail("sniff", net.ErrClosed)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = s.socket.SetReadDeadline(time.Unix(1, 0)) // fails only when the socket is closed
	})
	n, err := s.socket.Read(s.buf[:])
	if !stop() {
		<-woken // or it would spoil the deadline of the next call
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, s.host.fail("sniff", context.Cause(ctx))
	case errors.Is(err, os.ErrClosed):
		return nil, s.host.fail("sniff", net.ErrClosed)
	case err != nil:
		return nil, s.host.fail("sniff", err)
	}
	return append([]byte(nil), s.buf[:n]...), nil
}

// Close ends the capture, and a Next which waits.
func (s *Sniffer) Close() error {
	s.host.drop(s)
	if err := s.socket.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return s.host.fail("sniff", err)
	}
	return nil
}

// Inject sends Ethernet frames, headers included, out of an interface.
func (h *Host) Inject(ifname string, frames ...[]byte) error {
	index, err := h.index(ifname)
	if err != nil {
		return h.fail("inject", err)
	}
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return h.fail("inject", err)
		}
		defer unix.Close(fd)
		for _, frame := range frames {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
				return h.fail("inject", err)
			}
		}
		return nil
	})
}

func (h *Host) index(ifname string) (index int, err error) {
	err = h.onLink(ifname, func(_ *netlink.Handle, link netlink.Link) error {
		index = link.Attrs().Index
		return nil
	})
	return index, err
}

// networkOrder is htons: sll_protocol is big-endian.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// EthertypeMark is free for experiments (IEEE 802).
const EthertypeMark = 0x88b5

// Mark sends a frame of that type out of an interface from each CPU, of which each has a queue of
// its own, and returns how many. When all have come by at the other end, all that waited anywhere
// before has been taken up; what that led to comes by before the frames of a second call.
func (h *Host) Mark(ifname string) (frames int, err error) {
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, EthertypeMark >> 8, EthertypeMark & 0xff}, "mark"...)
	err = h.Do(func() error { // on one thread
		var all unix.CPUSet
		if err := unix.SchedGetaffinity(0, &all); err != nil {
			return h.fail("mark", err)
		}
		for cpu := 0; frames < all.Count(); cpu++ {
			if !all.IsSet(cpu) {
				continue
			}
			var one unix.CPUSet
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return h.fail("mark", err)
			}
			if err := h.Inject(ifname, frame); err != nil {
				return errors.Join(err, unix.SchedSetaffinity(0, &all))
			}
			frames++
		}
		return h.fail("mark", unix.SchedSetaffinity(0, &all))
	})
	return frames, err
}
