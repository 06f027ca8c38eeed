package ipdestinationguard

import (
	"fmt"
	"net/netip"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// What a route lets leave by one interface only is refused where the kernel's way is by another.

// stray asks the kernel whether what begins a connection would leave by its route, and says why
// it would not.
func (g *guard) stray(rules *backend.Rules, f *why.Flow) string {
	place, _ := g.routing.Load().placeOf(f.To)
	r := rules.Route(place.Route)
	if r == nil || r.Out == "" || !place.Real.IsValid() || g.host.leaves == nil {
		return ""
	}
	p := identity.Packet{To: place.Real, Mark: r.Mark}
	if f.Forwarded {
		p.From, p.In = f.Client, f.In
	}
	out, err := g.host.leaves(p)
	if err != nil || out == r.Out {
		return ""
	}
	if out == "" {
		return strayText(r, "the kernel has none")
	}
	return strayText(r, "the kernel's way is by "+out)
}

// strayed is whose a mapped address is that something was refused to because it would have
// strayed from its route, and how to say so.
func (g *guard) strayed(mapped netip.Addr) (name, text string) {
	t := g.routing.Load()
	owner, _ := t.owner(mapped)
	place, _ := t.placeOf(mapped)
	g.arming.Lock()
	r := g.rules.Route(place.Route)
	g.arming.Unlock()
	text = "its route is not there any more, or the address led nowhere for the moment: live connections wait until it does"
	if r != nil && r.Out != "" {
		text = strayText(r, "the kernel's way was another")
	}
	if owner == "" {
		return "", text
	}
	name = why.Plain(owner)
	return name, fmt.Sprintf("mapped address of %s: %s", name, text)
}

// strayText says that the kernel's way is not that of a route.
func strayText(r *backend.Route, way string) string {
	rule := "no ip rule leads there"
	if r.Mark != 0 {
		rule = fmt.Sprintf("no ip rule for the mark %d leads there", r.Mark)
	}
	return fmt.Sprintf("its route leaves by %s only, and %s: %[1]s is down, or %[3]s", r.Out, way, rule)
}
