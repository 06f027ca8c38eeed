package identity

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Find is Link that asks the kernel: on a miss, since what it has just learned of a
// new client may be on its way still, and on a hit, since anybody on any wire can
// claim an address there, and the kernel's routes say which wire counts. What it says
// is kept for a second, good or bad, so that it does not cost system calls with every
// query; but only as long as the mirror still has what it said. Addresses that belong
// to one interface, by a zone or as link-local ones, are Link's alone.
//
// The kernel is asked on which interface it would reach addr, and then for the
// neighbour there: some 3 us, though on kernels before 2025 the second question waits
// for the lock (RTNL) that changes of the network's configuration hold.
//
// A neighbour that the kernel has forgotten (above gc_thresh1 entries, 128 by
// default, it does so a minute after it last heard of one) or not resolved yet is
// not found; sending it anything makes the kernel resolve it.
func (w *Watcher) Find(addr netip.Addr) (hw [6]byte, ok bool) {
	addr = addr.Unmap()
	hw, n := w.link(addr)
	switch {
	case n != none && (addr.Zone() != "" || addr.IsLinkLocalUnicast()):
		return hw, n == one
	case !addr.IsValid() || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast():
		return hw, false
	}
	var index uint32
	if zone := addr.Zone(); zone != "" {
		if index, ok = w.index(zone); !ok {
			return hw, false
		}
	}
	q := question{keyOf(addr), index}
	slot := w.answers.slot(q)
	if a := slot.Load(); a != nil && a.question == q && w.answers.now().Before(a.until) && (n == none || a.ok && w.has(addr, a.hardware)) {
		return a.hardware, a.ok
	}
	hw, ok, err := w.ask(addr, index)
	if err == nil {
		slot.Store(&answer{q, w.answers.now().Add(answerLife), hw, ok})
	}
	return hw, ok
}

// has reports whether addr is a neighbour with hw, on whatever interface.
func (w *Watcher) has(addr netip.Addr, hw hardware) bool {
	return slices.ContainsFunc(w.neighbours.get(keyOf(addr)), func(it item[uint32, hardware]) bool { return it.value == hw })
}

// ask asks the kernel. An error means that it did not say.
func (w *Watcher) ask(addr netip.Addr, index uint32) (hw hardware, ok bool, err error) {
	r, err := w.pool.get()
	if err != nil {
		return hw, false, err
	}
	defer w.pool.put(r)
	if index == 0 {
		if index, err = route(r, addr); err != nil || index == 0 {
			return hw, false, unlessAbsent(err)
		}
	}
	b := r.open(unix.RTM_GETNEIGH)
	b = append(b, family(addr), 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, index)
	b = append(b, 0, 0, 0, 0) // state, flags, type
	b = appendAddress(b, unix.NDA_DST, addr)
	body, err := r.ask(b)
	if err != nil {
		return hw, false, unlessAbsent(err)
	}
	n, ok := parseNeighbour(body)
	ok = ok && n.resolved && n.key == keyOf(addr) && n.index == index
	return n.hardware, ok, nil
}

// route returns the interface on which addr is a neighbour. 0 means that it is
// behind a router, or not to be reached.
func route(r *requester, addr netip.Addr) (index uint32, err error) {
	b := r.open(unix.RTM_GETROUTE)
	b = append(b, family(addr), byte(addr.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendAddress(b, unix.RTA_DST, addr)
	body, err := r.ask(b)
	if err != nil || len(body) < unix.SizeofRtMsg || body[7] != unix.RTN_UNICAST {
		return 0, err
	}
	for typ, value := range attributes(body[unix.SizeofRtMsg:]) {
		switch {
		case typ == unix.RTA_OIF && len(value) == 4:
			index = binary.NativeEndian.Uint32(value)
		case typ == unix.RTA_GATEWAY || typ == unix.RTA_VIA:
			return 0, nil
		}
	}
	return index, nil
}

// unlessAbsent turns the kernel's ways to say no into no error.
func unlessAbsent(err error) error {
	switch err {
	case unix.ENOENT, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ENODEV:
		return nil
	}
	return err
}

func family(addr netip.Addr) byte {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func appendAddress(b []byte, typ uint16, addr netip.Addr) []byte {
	if addr.Is4() {
		v := addr.As4()
		return appendAttribute(b, typ, v[:])
	}
	v := addr.As16()
	return appendAttribute(b, typ, v[:])
}

// answers keeps what the kernel has said of late. Each question has one slot, from
// which another may push it: so it is bounded, whatever is asked.
type answers struct {
	now   func() time.Time
	seed  maphash.Seed
	slots [8192]atomic.Pointer[answer]
}

const answerLife = time.Second

type question struct {
	key   key
	index uint32 // of an interface; 0 is any
}

type answer struct {
	question question
	until    time.Time
	hardware hardware
	ok       bool
}

func (a *answers) init(now func() time.Time) { a.now, a.seed = now, maphash.MakeSeed() }

func (a *answers) slot(q question) *atomic.Pointer[answer] {
	return &a.slots[maphash.Comparable(a.seed, q)%uint64(len(a.slots))]
}

func (a *answers) clear() {
	for i := range a.slots {
		a.slots[i].Store(nil)
	}
}
