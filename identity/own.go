package identity

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
)

// ownAddresses are the addresses that stand on the machine's interfaces.
type ownAddresses struct {
	ledger[ownPlace] // the writer's alone, like stale
	stale            bool
	places           atomic.Pointer[map[netip.Addr][]ownPlace] // is never changed, but replaced
}

// ownPlace is where an own address stands. The kernel allows one address twice on
// one interface, with another prefix or another peer.
type ownPlace struct {
	addr, peer netip.Addr // without zones
	index      uint32
	bits       uint8
}

func (o *ownAddresses) init(limit int) {
	o.ledger.init(limit)
	o.places.Store(new(map[netip.Addr][]ownPlace))
}

// set enters an address, and reports whether there was room for it.
func (o *ownAddresses) set(at ownPlace, from source) bool {
	if !o.believes(at, from) {
		return true
	}
	known := len(o.heard)
	room := o.enter(at)
	o.stale = o.stale || len(o.heard) > known
	return room
}

func (o *ownAddresses) remove(at ownPlace, from source) {
	if o.believes(at, from) && o.strike(at) {
		o.stale = true
	}
}

// sweep removes what was not heard of since begin. All is published then, new or not:
// whoever could not make use of it before gets to try again.
func (o *ownAddresses) sweep() {
	for at := range o.unheard() {
		o.strike(at)
	}
	o.stale = true
}

// publish makes what was heard known to those who ask, and reports whether that may be
// anything new.
func (o *ownAddresses) publish() bool {
	if !o.stale {
		return false
	}
	o.stale = false
	places := make(map[netip.Addr][]ownPlace, len(o.heard))
	for at := range maps.Keys(o.heard) {
		places[at.addr] = append(places[at.addr], at)
	}
	o.places.Store(&places)
	return true
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
	places := (*w.own.places.Load())[addr.WithZone("")]
	if len(places) == 0 || addr.Zone() == "" {
		return len(places) > 0
	}
	index, known := w.index(addr.Zone())
	return known && slices.ContainsFunc(places, func(at ownPlace) bool { return at.index == index })
}

// OnLink returns the networks of the machine's own wires: those that its addresses
// stand in, without loopback and point-to-point links, sorted. What comes from
// there has not been forwarded, so its Ethernet address is its sender's.
func (w *Watcher) OnLink() []netip.Prefix {
	var all []netip.Prefix
	for addr, places := range *w.own.places.Load() {
		for _, at := range places {
			if p := netip.PrefixFrom(addr, int(at.bits)).Masked(); p.IsValid() && !p.IsSingleIP() && !addr.IsLoopback() && at.peer == addr {
				all = append(all, p)
			}
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// Changed is sent to when the machine's own addresses may have changed, and once a
// minute in any case; several changes may be one event. It is closed by Close.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// signal sends an event, unless one is still to be received.
func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}
