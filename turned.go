package ipdestinationguard

import (
	"context"
	"fmt"
	"net/netip"

	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// Mapped addresses that no route has any more lead nowhere. Whoever remembers one, and may
// connect to it still, would send there by whatever way the machine has. And whoever had one
// opened before a route had it, by a name of his own, would get to the server of its name.

// turned are the addresses that the routes in force have, or at first an earlier process's, or
// that these routes have, but not both; nil is none.
func (g *guard) turned(routes []*namedRoute) *netipx.IPSet {
	was, now := routedIn(g.rules.Origins), routedBy(routes)
	var b netipx.IPSetBuilder
	b.AddSet(minus(was, now))
	b.AddSet(minus(now, was))
	set := ipSet(&b)
	if len(set.Ranges()) == 0 {
		return nil
	}
	return set
}

// routedBy are the addresses that routes have.
func routedBy(routes []*namedRoute) *netipx.IPSet {
	var pools []netip.Prefix
	for _, r := range routes {
		pools = append(pools, r.pools...)
	}
	return setOf(pools)
}

// routedIn are those that routes had, as the rules say.
func routedIn(origins []backend.Origin) *netipx.IPSet {
	var pools []netip.Prefix
	for _, o := range origins {
		if !o.Gone {
			pools = append(pools, o.Pool)
		}
	}
	return setOf(pools)
}

func setOf(networks []netip.Prefix) *netipx.IPSet {
	var b netipx.IPSetBuilder
	for _, n := range networks {
		b.AddPrefix(n)
	}
	return ipSet(&b)
}

// minus are the addresses that are in one set, and not in the other.
func minus(set, other *netipx.IPSet) *netipx.IPSet {
	var b netipx.IPSetBuilder
	b.AddSet(set)
	b.RemoveSet(other)
	return ipSet(&b)
}

func ipSet(b *netipx.IPSetBuilder) *netipx.IPSet {
	set, _ := b.IPSet() // errors only on invalid prefixes
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
		return fmt.Errorf("addresses that routes have now, or no longer, cannot be closed: %w", err)
	}
	if n > 0 {
		log.Infof("Ended %s of addresses that routes have now, or no longer", why.Number(n, "grant"))
	}
	return nil
}
