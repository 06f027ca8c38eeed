package ipdestinationguard

import (
	"context"
	"fmt"

	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// Mapped addresses that no route has any more lead nowhere. Whoever remembers one, and may
// connect to it still, would send there by whatever way the machine has.

// unrouted are those that the routes in force had, or at first an earlier process's, and that
// these routes have not; nil is none.
func (g *guard) unrouted(routes []*namedRoute) *netipx.IPSet {
	var b netipx.IPSetBuilder
	for _, r := range g.rules.Routes {
		for _, pool := range r.Pools {
			b.AddPrefix(pool)
		}
	}
	if !g.armed() {
		for _, o := range g.rules.Origins {
			b.AddPrefix(o.Pool)
		}
	}
	for _, r := range routes {
		for _, pool := range r.pools {
			b.RemovePrefix(pool)
		}
	}
	set, _ := b.IPSet() // errors only on invalid prefixes
	if len(set.Ranges()) == 0 {
		return nil
	}
	return set
}

// shut ends the grants of addresses, which nobody may give out meanwhile.
func (g *guard) shut(addrs *netipx.IPSet) error {
	revoker, ok := g.backend.(backend.Revoker)
	if addrs == nil || !ok {
		return nil
	}
	n, err := revoker.Revoke(context.Background(), func(grant backend.Grant) bool { return addrs.Contains(grant.Addr) })
	grantsRevoked.Add(float64(n))
	if err != nil {
		return fmt.Errorf("mapped addresses that no route has any more cannot be closed: %w", err)
	}
	if n > 0 {
		log.Infof("Ended %s of mapped addresses that no route has any more", why.Number(n, "grant"))
	}
	return nil
}
