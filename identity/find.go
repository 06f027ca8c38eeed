package identity

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Find returns the Ethernet address of the neighbour with addr, and the index of the
// interface that it is at: where the kernel would send what is for addr, as its routes
// say, and nowhere else, since anybody on any wire can claim an address there. An
// address with a zone (an interface's name or index) is looked for at that interface;
// a link-local IPv6 address without one could be at any, and is not found. IPv4 mapped
// into IPv6 is IPv4.
//
// A neighbour is one that the kernel has resolved, be it a while ago (REACHABLE, STALE,
// DELAY, PROBE), or was given (PERMANENT). One that it has forgotten (above gc_thresh1
// entries, 128 by default, it does so a minute after it last heard of one) or not
// resolved yet is not found; sending it anything makes the kernel resolve it. No
// neighbour table is proof against who claims a neighbour's address on the same wire
// (ARP and neighbour discovery are not authenticated), and who answers for others
// (proxy ARP) lends them all one Ethernet address.
//
// The route is asked for, some 1 us, and what the kernel says is kept for a second,
// good or bad. The neighbour is known from the mirror; only on a miss, since what the
// kernel has just learned of a new client may be on its way still, it is asked for too.
// (On kernels before 2025 that question waits for the lock, RTNL, that changes of the
// network's configuration hold.)
func (w *Watcher) Find(addr netip.Addr) (index uint32, hw [6]byte, ok bool) {
	addr = addr.Unmap()
	switch {
	case !addr.IsValid() || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast():
		return 0, hw, false
	case addr.Zone() != "":
		index, _ = w.index(addr.Zone())
	case addr.Is4() || !addr.IsLinkLocalUnicast():
		index = w.answer(spotOf(addr, 0)).index
	}
	if index == 0 {
		return 0, hw, false
	}
	at := spotOf(addr, index)
	if hw, ok = w.neighbours.get(at); ok {
		return index, hw, true
	}
	a := w.answer(at)
	return index, a.hardware, a.ok
}

// answer returns what the kernel says to a question, or has said within a second: at
// which interface an address is, if the spot has none, or else who has it there.
func (w *Watcher) answer(q spot) answer {
	slot := w.answers.slot(q)
	now := w.answers.now()
	if a := slot.Load(); a != nil && a.question == q && now.Before(a.until) {
		return *a
	}
	r, err := w.pool.get()
	if err != nil {
		return answer{}
	}
	defer w.pool.put(r)
	a, err := ask(r, q)
	if err != nil {
		return answer{}
	}
	a.until = now.Add(answerLife)
	slot.Store(&a)
	return a
}

// ask asks the kernel. An error means that it did not say.
func ask(r *requester, q spot) (a answer, err error) {
	a.question = q
	addr := netip.AddrFrom16(q.addr).Unmap()
	if q.index == 0 {
		a.index, err = route(r, addr)
		return a, unlessAbsent(err)
	}
	b := r.open(unix.RTM_GETNEIGH)
	b = append(b, family(addr), 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, q.index)
	b = append(b, 0, 0, 0, 0) // state, flags, type
	b = appendAddress(b, unix.NDA_DST, addr)
	body, err := r.ask(b)
	if err != nil {
		return a, unlessAbsent(err)
	}
	n, ok := parseNeighbour(body)
	a.hardware, a.ok = n.hardware, ok && n.resolved && n.at == q
	return a, nil
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

type answer struct {
	question spot
	until    time.Time
	index    uint32 // 0: no neighbour's
	hardware hardware
	ok       bool
}

func (a *answers) init(now func() time.Time) { a.now, a.seed = now, maphash.MakeSeed() }

func (a *answers) slot(q spot) *atomic.Pointer[answer] {
	return &a.slots[maphash.Comparable(a.seed, q)%uint64(len(a.slots))]
}

func (a *answers) clear() {
	for i := range a.slots {
		a.slots[i].Store(nil)
	}
}
