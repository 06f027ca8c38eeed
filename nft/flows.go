package nft

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Connections implements [backend.Router]. It does not keep grants waiting. Addresses that
// are mapped no more, and have no connections left, are bound no more.
func (b *Backend) Connections(ctx context.Context, each func(mapped, real netip.Addr) (end bool)) error {
	var rules backend.Rules
	var fading map[ip]bool
	if err := b.do(func(w *writer) error {
		rules, fading = w.rules, maps.Clone(w.mapped.fading)
		return nil
	}); err != nil {
		return err
	}
	if len(rules.Routes) == 0 {
		return nil
	}
	own, err := ownAddrs()
	if err != nil {
		return err
	}
	filter := appendUint32(nil, ctaStatus, statusDNAT)
	filter = appendUint32(filter, ctaStatusMask, statusDNAT)
	err = eachTracked(ctx, filter, func(t *tracked) bool {
		mapped := t.original.To.Addr()
		if t.status&statusDNAT == 0 || !rules.Pooled(mapped) || own[t.real] {
			return false // what leads here is captured DNS
		}
		if each(mapped, t.real) {
			return true
		}
		delete(fading, mapped.As16())
		return false
	})
	if err == nil && len(fading) > 0 {
		return b.ask(ctx, &request{unbind: slices.Collect(maps.Keys(fading)), done: make(chan error, 1)})
	}
	return err
}

// ownAddrs are those of this machine.
func ownAddrs() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	own := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			addr, _ := netip.AddrFromSlice(n.IP)
			own[addr.Unmap()] = true
		}
	}
	return own, err
}
