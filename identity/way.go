package identity

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Way is how packets leave this machine.
type Way struct {
	Out   string // the interface; empty is any
	Mark  uint32 // for policy routing
	Fixed bool   // the source address is given, whatever the interface has
}

// Ways remembers for some seconds which addresses this machine has a way to. Its methods
// may be called at the same time; one that finds the answer makes no system call. The zero
// value is ready.
type Ways struct {
	mu    sync.RWMutex
	known map[wayTo]verdict
}

type wayTo struct {
	Way
	to netip.Addr
}

type verdict struct {
	leads bool
	until time.Time
}

const (
	wayKept  = 5 * time.Second
	mostWays = 1 << 12 // half a megabyte: more are looked up anew
)

// Lead reports whether a packet to an address can leave this machine. What cannot be found
// out counts as a way.
func (w *Ways) Lead(to netip.Addr, way Way, now time.Time) bool {
	key := wayTo{way, to}
	w.mu.RLock()
	v, ok := w.known[key]
	w.mu.RUnlock()
	if ok && now.Before(v.until) {
		return v.leads
	}
	leads, err := way.leads(to)
	if err != nil {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known == nil || len(w.known) >= mostWays {
		w.known = make(map[wayTo]verdict)
	}
	w.known[key] = verdict{leads, now.Add(wayKept)}
	return leads
}

// leads asks the kernel, by connecting a UDP socket: that finds a route and a source
// address, and sends nothing.
func (way Way) leads(to netip.Addr) (bool, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: 443, Addr: to.As16()})
	if to.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: 443, Addr: to.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if way.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(way.Mark)); err != nil {
			return false, err
		}
	}
	if way.Out != "" {
		if err := unix.BindToDevice(fd, way.Out); errors.Is(err, unix.ENODEV) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	switch err := unix.Connect(fd, sa); {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EADDRNOTAVAIL),
		errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL): // the last two from routes of type prohibit and blackhole
		return false, nil
	case err != nil:
		return false, err
	}
	if way.Fixed || to.IsLinkLocalUnicast() {
		return true, nil
	}
	// An interface with nothing but a link-local address is chosen as well, and nobody
	// answers that from afar.
	from, err := unix.Getsockname(fd)
	if err != nil {
		return false, err
	}
	if from, ok := from.(*unix.SockaddrInet6); ok {
		return !netip.AddrFrom16(from.Addr).IsLinkLocalUnicast(), nil
	}
	return true, nil
}
