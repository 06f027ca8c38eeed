package identity

import (
	"fmt"
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
// Own takes no lock, and Find one that only addresses of the same shard share; but for
// what Find asks the kernel, once a second and address, they make no system call and
// allocate nothing. All methods may be called at any time, also after Close, when
// nothing is known any more.
type Watcher struct {
	own        ownAddresses
	neighbours *mirror
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

// maxAddresses bounds either table, some 10 MB. The kernel's own bound on
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
		neighbours: newMirror(maxAddresses),
		log:        log,
		closed:     make(chan struct{}),
		changed:    make(chan struct{}, 1),
	}
	w.own.init(maxAddresses)
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
