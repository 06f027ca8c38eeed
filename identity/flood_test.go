package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func floodAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }

// flood gives neighbours from first up to end the link addresses from shift on.
func (w *watched) flood(index, first, end, shift int) {
	w.t.Helper()
	for i := first; i < end; i++ {
		w.neighbour(index, floodAddr(i).String(), mac(i+shift), unix.NUD_PERMANENT)
	}
}

// wrong returns a neighbour that the mirror does not have as flood has left it.
func (w *watched) wrong(first, end, shift int) string {
	for i := first; i < end; i++ {
		if hw, ok := w.Link(floodAddr(i)); !ok || hw != mac(i+shift) {
			return fmt.Sprintf("%v is at %s, want %s", floodAddr(i), hex(hw), hex(mac(i+shift)))
		}
	}
	return ""
}

// The watcher is held up while more happens than its socket's buffer takes.
func TestOverrunIsMadeUpFor(t *testing.T) {
	const n = 5000
	w := watch(t, newHost(t))
	d0 := w.port("d0")
	w.flood(d0, 0, n, 0)
	eventually(t, "all neighbours are known", func() bool { return w.wrong(0, n, 0) == "" })
	if errs := w.logged(); len(errs) > 0 {
		t.Errorf("the buffer does not hold %d events: %v", n, errs)
	}

	must(t, w.control.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	}))
	w.holdUp(floodAddr(0))
	w.flood(d0, 0, n, 7)
	for i := range n / 2 {
		w.removeNeighbour(d0, floodAddr(i).String())
	}
	w.address(w.nl.AddrAdd, "d0", "198.51.100.7/24")
	w.letGo(floodAddr(0))
	w.owns("198.51.100.7", true)
	eventually(t, "half is gone", func() bool {
		for i := range n / 2 {
			if _, ok := w.Link(floodAddr(i)); ok {
				return false
			}
		}
		return true
	})
	if wrong := w.wrong(n/2, n, 7); wrong != "" {
		t.Error(wrong)
	}
	if !slices.ContainsFunc(w.logged(), func(err error) bool { return errors.Is(err, ErrOverrun) }) {
		t.Error("nothing has overrun, so nothing was tested")
	}
}

// holdUp keeps the reader from going on when it hears of addr, until letGo.
func (w *watched) holdUp(addr netip.Addr) { w.neighbours.shard(keyOf(addr)).mu.RLock() }

func (w *watched) letGo(addr netip.Addr) { w.neighbours.shard(keyOf(addr)).mu.RUnlock() }

// Events go on while everything is read anew, again and again. (What a dump says was
// true before events that come ahead of it.)
func TestReadAgainUnderLoad(t *testing.T) {
	const n = 500
	w := watch(t, newHost(t))
	d0 := w.port("d0")
	for shift := range 24 {
		for part := range 5 {
			must(t, w.events.SetReadDeadline(time.Now())) // as if a minute had passed
			w.flood(d0, n*part/5, n*(part+1)/5, shift)
		}
		w.removeNeighbour(d0, floodAddr(shift).String())
		eventually(t, "the last state is known", func() bool {
			_, ok := w.Link(floodAddr(shift))
			return !ok && w.wrong(shift+1, n, shift) == ""
		})
		w.flood(d0, shift, shift+1, shift)
	}
	if errs := w.logged(); len(errs) > 0 {
		t.Error(errors.Join(errs...))
	}
}

// What the mirror has wrongly, however that came, lasts until all is read again.
func TestReadAgainCorrects(t *testing.T) {
	ghost := netip.MustParseAddr("198.51.100.66")
	w := watchWith(t, newHost(t), func(w *Watcher) {
		w.neighbours.set(keyOf(ghost), 66, mac(66), event)
		w.own.set(keyOf(ghost), ownPlace{index: 66}, struct{}{}, event)
		w.reader.links.enter(66)
		w.reader.names[66] = "ghost"
	})
	if _, ok := w.Link(ghost); ok || w.Own(ghost) {
		t.Error("the ghost is still there")
	}
	if _, ok := w.index("ghost"); ok {
		t.Error("the ghost's interface is still there")
	}
	if index, ok := w.index("lo"); !ok || index != 1 {
		t.Error("lo is not")
	}
}

func TestMirrorIsBounded(t *testing.T) {
	m := newMirror[uint32, hardware](3)
	for i := range 5 {
		if ok := m.set(keyOf(floodAddr(i)), 1, mac(i), event); ok != (i < 3) {
			t.Errorf("entry %d: room is %v", i, ok)
		}
	}
	if !m.set(keyOf(floodAddr(1)), 1, mac(9), event) || m.get(keyOf(floodAddr(1)))[0].value != mac(9) {
		t.Error("what is known cannot change")
	}
	if m.set(keyOf(floodAddr(1)), 2, mac(9), event) {
		t.Error("one address on many interfaces is not bounded")
	}
	m.remove(keyOf(floodAddr(0)), 1, event)
	m.remove(keyOf(floodAddr(0)), 1, event)
	if !m.set(keyOf(floodAddr(4)), 1, mac(4), event) {
		t.Error("no room after a removal")
	}
	m.begin()
	m.set(keyOf(floodAddr(1)), 1, mac(9), event)
	m.sweep()
	if len(m.heard) != 1 || len(m.get(keyOf(floodAddr(4)))) != 0 || len(m.get(keyOf(floodAddr(1)))) != 1 {
		t.Errorf("left: %v", m.heard)
	}
}

// Above the bound, Find still knows.
func TestFindAboveTheBound(t *testing.T) {
	w := watchWith(t, newHost(t), func(w *Watcher) { w.neighbours.limit = 1 })
	d0 := w.port("d0")
	w.address(w.nl.AddrAdd, "d0", "10.1.0.1/16")
	w.neighbour(d0, floodAddr(7).String(), mac(7), unix.NUD_PERMANENT)
	w.links(floodAddr(7).String(), mac(7))
	w.neighbour(d0, floodAddr(8).String(), mac(8), unix.NUD_PERMANENT)
	eventually(t, "it is told", func() bool { return len(w.logged()) > 0 })
	if !errors.Is(w.logged()[0], ErrFull) {
		t.Error(w.logged())
	}
	if _, ok := w.Link(floodAddr(8)); ok {
		t.Error("there was room")
	}
	if hw, ok := w.Find(floodAddr(8)); !ok || hw != mac(8) {
		t.Errorf("found %s, %v", hex(hw), ok)
	}
}
