package identity

import (
	"net/netip"
	"slices"
)

// OnLink returns the networks of the machine's own wires: those that its addresses
// stand in, without loopback and point-to-point links, sorted. What comes from
// there has not been forwarded, so its Ethernet address is its sender's.
func (w *Watcher) OnLink() []netip.Prefix {
	var all []netip.Prefix
	for i := range w.own.shards {
		s := &w.own.shards[i]
		s.mu.RLock()
		for k, list := range s.m {
			addr := netip.AddrFrom16(k).Unmap()
			for _, it := range list {
				if p := netip.PrefixFrom(addr, int(it.place.bits)).Masked(); p.IsValid() && !p.IsSingleIP() && !addr.IsLoopback() && it.place.peer == k {
					all = append(all, p)
				}
			}
		}
		s.mu.RUnlock()
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// Changed is sent to when the machine's own addresses may have changed; several
// changes may be one event. It is closed by Close.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

func (w *Watcher) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}
