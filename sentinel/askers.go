package sentinel

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// askers are who may ask: the machine itself, and what the Corefile adds. Linux takes packets for any of its addresses
// from every wire, so that a sentinel listens on lo does not keep strangers away. That a source is not forged, the
// kernel sees to for IPv4: it drops what comes by a wire with an address of the machine as its source. For IPv6 see
// sendToTCP.
type askers struct {
	from []netip.Prefix
	list func() ([]net.Addr, error)
	now  func() time.Time

	mu     sync.Mutex // guards what follows
	own    []netip.Addr
	looked time.Time
}

// may reports whether an address may ask the sentinel. Mostly it is that sentinel's: the kernel chooses the address
// that it sends to as the source as well.
func (a *askers) may(addr, sentinel netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	if addr == sentinel || addr.IsLoopback() {
		return true
	}
	if slices.ContainsFunc(a.from, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return true
	}
	return a.isOwn(addr)
}

// isOwn looks at the machine's addresses again when one is unknown, once a second.
func (a *askers) isOwn(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if !slices.Contains(a.own, addr) && now.Sub(a.looked) >= time.Second {
		a.looked = now
		list, err := a.list()
		if err != nil {
			return false // who cannot be told from a stranger is one
		}
		a.own = a.own[:0]
		for _, l := range list {
			if p, ok := l.(*net.IPNet); ok {
				if own, ok := netip.AddrFromSlice(p.IP); ok {
					a.own = append(a.own, own.Unmap())
				}
			}
		}
	}
	return slices.Contains(a.own, addr)
}
