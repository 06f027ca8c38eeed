package identity

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// hearLink takes in what an interface is called.
func (w *Watcher) hearLink(typ uint16, body []byte, from source) {
	// A port that leaves its bridge is announced as a deletion of family AF_BRIDGE.
	if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
		return
	}
	r := &w.reader
	index := binary.NativeEndian.Uint32(body[4:])
	if !r.links.believes(index, from) {
		return
	}
	if typ == unix.RTM_DELLINK {
		r.links.strike(index)
		delete(r.names, index)
		w.nameLinks()
		return
	}
	for typ, value := range attributes(body[unix.SizeofIfInfomsg:]) {
		if typ != unix.IFLA_IFNAME || len(value) < 2 {
			continue
		}
		if !r.links.enter(index) {
			w.tell(ErrFull)
			return
		}
		name := value[:len(value)-1] // it ends in a zero
		if r.names[index] != string(name) {
			r.names[index] = string(name)
			if from == event { // or else once for all
				w.nameLinks()
			}
		}
	}
}

// nameLinks makes the interfaces' names known to those who ask.
func (w *Watcher) nameLinks() {
	names := make(map[string]uint32, len(w.reader.names))
	for index, name := range w.reader.names {
		names[name] = index
	}
	w.interfaces.Store(&names)
}

// hearAddress takes in that an address stands on an interface, or no more.
func (w *Watcher) hearAddress(typ uint16, body []byte, from source) {
	if len(body) < unix.SizeofIfAddrmsg || body[0] != unix.AF_INET && body[0] != unix.AF_INET6 {
		return
	}
	flags := uint32(body[2])
	at := ownPlace{index: binary.NativeEndian.Uint32(body[4:]), bits: body[1]}
	for typ, value := range attributes(body[unix.SizeofIfAddrmsg:]) {
		addr, ok := netip.AddrFromSlice(value)
		switch {
		case typ == unix.IFA_LOCAL && ok:
			at.addr = addr.Unmap()
		case typ == unix.IFA_ADDRESS && ok:
			at.peer = addr.Unmap()
		case typ == unix.IFA_FLAGS && len(value) == 4:
			flags = binary.NativeEndian.Uint32(value)
		}
	}
	// On a point-to-point link the address is the peer's.
	if !at.addr.IsValid() {
		at.addr = at.peer
	}
	if !at.addr.IsValid() {
		return
	}
	tentative := flags&unix.IFA_F_TENTATIVE != 0 && flags&unix.IFA_F_OPTIMISTIC == 0
	if typ == unix.RTM_DELADDR || tentative || flags&unix.IFA_F_DADFAILED != 0 {
		w.own.remove(at, from)
		return
	}
	if !w.own.set(at, from) {
		w.tell(ErrFull)
	}
}

// hearNeighbour takes in what is known of a neighbour.
func (w *Watcher) hearNeighbour(typ uint16, body []byte, from source) {
	n, ok := parseNeighbour(body)
	if !ok {
		return
	}
	if typ == unix.RTM_DELNEIGH || !n.resolved {
		w.neighbours.remove(n.at, from)
		return
	}
	if !w.neighbours.set(n.at, n.hardware, from) {
		w.tell(ErrFull)
	}
}

type neighbour struct {
	at       spot
	hardware hardware
	resolved bool
}

// parseNeighbour reads the body of RTM_NEWNEIGH. There are entries of other kinds:
// of bridges (AF_BRIDGE), and addresses that the machine answers for (NTF_PROXY).
func parseNeighbour(body []byte) (n neighbour, ok bool) {
	if len(body) < unix.SizeofNdMsg || body[0] != unix.AF_INET && body[0] != unix.AF_INET6 || body[10]&unix.NTF_PROXY != 0 {
		return neighbour{}, false
	}
	n.at.index = binary.NativeEndian.Uint32(body[4:])
	for typ, value := range attributes(body[unix.SizeofNdMsg:]) {
		switch {
		case typ == unix.NDA_DST:
			var addr netip.Addr
			addr, ok = netip.AddrFromSlice(value)
			n.at.addr = addr.As16()
		case typ == unix.NDA_LLADDR && len(value) == len(n.hardware):
			n.hardware = hardware(value)
		}
	}
	const usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	n.resolved = binary.NativeEndian.Uint16(body[8:])&usable != 0 && n.hardware != hardware{}
	return n, ok
}
