package identity

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher mirrors the machine's own addresses and the neighbours of a network
// namespace. It hears of changes by subscription (rtnetlink), and reads everything
// anew when it may have missed one, and once a minute in any case: before 2026 Linux
// could announce two changes of one neighbour in the wrong order.
//
// Own and Link read the mirror: no system call, no allocation, and a lock that
// only addresses of the same shard share. All methods may be called at any time,
// also after Close, when nothing is known any more.
type Watcher struct {
	own        *mirror[ownPlace, struct{}]
	neighbours *mirror[uint32, hardware] // by interface index
	interfaces atomic.Pointer[map[string]uint32]
	answers    answers
	pool       *pool

	events  *os.File // the subscription
	control syscall.RawConn
	reader  reader
	log     func(error)
	closed  chan struct{}
	changed chan struct{} // see Changed
	ended   sync.WaitGroup
	once    sync.Once
}

// hardware is an Ethernet address.
type hardware = [6]byte

// ownPlace is where an own address stands. The kernel allows one address twice on
// one interface, with another prefix or another peer.
type ownPlace struct {
	index uint32
	bits  uint8
	peer  key
}

// maxAddresses bounds either mirror, some 10 MB. The kernel's own bound on
// neighbours (gc_thresh3, 1,024 by default) leaves out permanent entries.
const maxAddresses = 1 << 16

// eventBuffer holds some ten thousand events. Without CAP_NET_ADMIN in the first
// user namespace the kernel grants no more than net.core.rmem_max.
const eventBuffer = 8 << 20

// firstRead bounds how long Watch takes.
const firstRead = 10 * time.Second

// Watch starts a watcher on the calling thread's network namespace, and returns
// when everything has been read. It needs no privileges. What goes wrong later is
// told to log, at most once a minute and kind: [ErrOverrun], [ErrFull], or an
// error of the socket. Close ends it.
func Watch(log func(error)) (*Watcher, error) {
	w, err := openWatcher(log)
	if err == nil {
		err = w.start()
	}
	if err != nil {
		return nil, fmt.Errorf("watch addresses and neighbours: %w", err)
	}
	return w, nil
}

func (w *Watcher) start() error {
	if err := w.readAll(firstRead); err != nil {
		w.Close()
		return err
	}
	w.ended.Go(w.run)
	return nil
}

// openWatcher returns a watcher that has read nothing yet.
func openWatcher(log func(error)) (*Watcher, error) {
	w := &Watcher{
		own:        newMirror[ownPlace, struct{}](maxAddresses),
		neighbours: newMirror[uint32, hardware](maxAddresses),
		log:        log,
		closed:     make(chan struct{}),
		changed:    make(chan struct{}, 1),
	}
	w.answers.init(time.Now)
	w.reader.init(time.Now, maxAddresses)
	w.interfaces.Store(new(map[string]uint32))
	fd, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	w.events = os.NewFile(uintptr(fd), "rtnetlink") // non-blocking, so Close wakes who reads
	if w.control, err = w.events.SyscallConn(); err == nil {
		w.reader.port, err = subscribe(fd)
	}
	if err == nil {
		w.pool, err = newPool(unix.NETLINK_ROUTE)
	}
	if err != nil {
		w.events.Close()
		return nil, err
	}
	return w, nil
}

// subscribe comes before the first read, so that nothing falls in between. It
// returns the socket's number, by which answers are told from events.
func subscribe(fd int) (port uint32, err error) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
	}
	for _, group := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_NEIGH} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return 0, os.NewSyscallError("setsockopt", err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return name.(*unix.SockaddrNetlink).Pid, nil
}

// Close ends the watcher. It may be called more than once.
func (w *Watcher) Close() {
	w.once.Do(func() {
		close(w.closed)
		w.events.Close()
		w.ended.Wait()
		close(w.changed)
		w.pool.close()
		w.forget()
	})
}

// Own reports whether addr is the machine's own: a loopback address (127.0.0.0/8,
// ::1), or one that stands on an interface. IPv4 mapped into IPv6 is IPv4. An
// address with a zone (an interface's name or index) has to stand on that
// interface. A tentative IPv6 address, or one that a neighbour has too, is not own;
// neither is one that only a route makes local (AnyIP).
func (w *Watcher) Own(addr netip.Addr) bool {
	addr = addr.Unmap()
	if addr.IsLoopback() {
		return true
	}
	list := w.own.get(keyOf(addr))
	if len(list) == 0 || addr.Zone() == "" {
		return len(list) > 0
	}
	index, known := w.index(addr.Zone())
	for _, it := range list {
		if known && it.place.index == index {
			return true
		}
	}
	return false
}

// Link returns the Ethernet address of the neighbour with addr, which the kernel
// has resolved, be it a while ago (REACHABLE, STALE, DELAY, PROBE), or was given
// (PERMANENT). IPv4 mapped into IPv6 is IPv4.
//
// An address with a zone (an interface's name or index) is looked up on that
// interface. Without one it is ambiguous, and ok is false, if interfaces disagree.
// No neighbour table is proof against who claims a neighbour's address (ARP and
// neighbour discovery are not authenticated): the answer is as good as the link. Who
// answers for others (proxy ARP) lends them all one Ethernet address.
func (w *Watcher) Link(addr netip.Addr) (hw [6]byte, ok bool) {
	hw, found := w.link(addr.Unmap())
	return hw, found == one
}

type found int

const (
	none found = iota
	one
	many // and they disagree
)

func (w *Watcher) link(addr netip.Addr) (hw hardware, n found) {
	if !addr.IsValid() {
		return hardware{}, none
	}
	list := w.neighbours.get(keyOf(addr))
	if len(list) == 0 {
		return hardware{}, none
	}
	if zone := addr.Zone(); zone != "" {
		index, known := w.index(zone)
		for _, it := range list {
			if known && it.place == index {
				return it.value, one
			}
		}
		return hardware{}, none
	}
	for _, it := range list[1:] {
		if it.value != list[0].value {
			return hardware{}, many
		}
	}
	return list[0].value, one
}

// index returns the index of the interface that a zone names. Zones of interfaces
// whose name was not known are numbers (net.UDPAddr, RFC 4007 section 11.2).
func (w *Watcher) index(zone string) (uint32, bool) {
	if index, ok := (*w.interfaces.Load())[zone]; ok {
		return index, true
	}
	if zone == "" || zone[0] < '1' || zone[0] > '9' {
		return 0, false // strconv would allocate an error for a name
	}
	index, err := strconv.ParseUint(zone, 10, 31)
	return uint32(index), err == nil
}
