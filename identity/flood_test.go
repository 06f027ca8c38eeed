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
func (w *watched) wrong(index, first, end, shift int) string {
	for i := first; i < end; i++ {
		if hw, ok := w.mirrors(index, floodAddr(i)); !ok || hw != mac(i+shift) {
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
	eventually(t, "all neighbours are known", func() bool { return w.wrong(d0, 0, n, 0) == "" })
	if errs := w.logged(); len(errs) > 0 {
		t.Errorf("the buffer does not hold %d events: %v", n, errs)
	}

	must(t, w.control.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	}))
	w.holdUp(spotOf(floodAddr(0), uint32(d0)))
	w.flood(d0, 0, n, 7)
	for i := range n / 2 {
		w.removeNeighbour(d0, floodAddr(i).String())
	}
	w.address(w.nl.AddrAdd, "d0", "198.51.100.7/24")
	w.letGo(spotOf(floodAddr(0), uint32(d0)))
	w.owns("198.51.100.7", true)
	eventually(t, "half is gone", func() bool {
		for i := range n / 2 {
			if _, ok := w.mirrors(d0, floodAddr(i)); ok {
				return false
			}
		}
		return true
	})
	if wrong := w.wrong(d0, n/2, n, 7); wrong != "" {
		t.Error(wrong)
	}
	if !slices.ContainsFunc(w.logged(), func(err error) bool { return errors.Is(err, ErrOverrun) }) {
		t.Error("nothing has overrun, so nothing was tested")
	}
}

// holdUp keeps the reader from going on when it hears of a spot, until letGo.
func (w *watched) holdUp(at spot) { w.neighbours.shard(at).mu.RLock() }

func (w *watched) letGo(at spot) { w.neighbours.shard(at).mu.RUnlock() }

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
			_, ok := w.mirrors(d0, floodAddr(shift))
			return !ok && w.wrong(d0, shift+1, n, shift) == ""
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
		w.neighbours.set(spotOf(ghost, 66), mac(66), event)
		w.own.set(ownPlace{addr: ghost, index: 66}, event)
		w.reader.links.enter(66)
		w.reader.names[66] = "ghost"
	})
	if _, ok := w.mirrors(66, ghost); ok || w.Own(ghost) {
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
	m := newMirror(3)
	at := func(i int) spot { return spotOf(floodAddr(i), 1) }
	for i := range 5 {
		if ok := m.set(at(i), mac(i), event); ok != (i < 3) {
			t.Errorf("entry %d: room is %v", i, ok)
		}
	}
	if hw, _ := m.get(at(1)); !m.set(at(1), mac(9), event) || hw != mac(1) {
		t.Error("what is known cannot change")
	}
	if m.set(spotOf(floodAddr(1), 2), mac(9), event) {
		t.Error("one address on many interfaces is not bounded")
	}
	m.remove(at(0), event)
	m.remove(at(0), event)
	if !m.set(at(4), mac(4), event) {
		t.Error("no room after a removal")
	}
	m.begin()
	m.set(at(1), mac(9), event)
	m.sweep()
	hw, there := m.get(at(1))
	if _, left := m.get(at(4)); len(m.heard) != 1 || left || !there || hw != mac(9) {
		t.Errorf("left: %v", m.heard)
	}
}

func TestOwnIsBounded(t *testing.T) {
	var o ownAddresses
	o.init(3)
	at := func(i int) ownPlace { return ownPlace{addr: floodAddr(i)} }
	for i := range 5 {
		if ok := o.set(at(i), event); ok != (i < 3) {
			t.Errorf("address %d: room is %v", i, ok)
		}
	}
	if !o.publish() || o.publish() || len(*o.places.Load()) != 3 {
		t.Errorf("known: %v", *o.places.Load())
	}
	o.begin()
	if !o.set(at(1), event) || o.publish() {
		t.Error("what is heard again is news")
	}
	o.sweep()
	if !o.publish() || len(*o.places.Load()) != 1 {
		t.Errorf("left: %v", *o.places.Load())
	}
}

// Above the bound, Find still knows.
func TestFindAboveTheBound(t *testing.T) {
	w := watchWith(t, newHost(t), func(w *Watcher) { w.neighbours.limit = 1 })
	d0 := w.port("d0")
	w.address(w.nl.AddrAdd, "d0", "10.1.0.1/16")
	w.neighbour(d0, floodAddr(7).String(), mac(7), unix.NUD_PERMANENT)
	w.links(d0, floodAddr(7).String(), mac(7))
	w.neighbour(d0, floodAddr(8).String(), mac(8), unix.NUD_PERMANENT)
	eventually(t, "it is told", func() bool { return len(w.logged()) > 0 })
	if !errors.Is(w.logged()[0], ErrFull) {
		t.Error(w.logged())
	}
	if _, ok := w.mirrors(d0, floodAddr(8)); ok {
		t.Error("there was room")
	}
	if index, hw, ok := w.Find(floodAddr(8)); !ok || hw != mac(8) || index != uint32(d0) {
		t.Errorf("found %s at %d, %v", hex(hw), index, ok)
	}
}
