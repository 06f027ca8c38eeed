package ipdestinationguard

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// Where mapped addresses lead, for people.

// placeOf returns what the book of a mapped address has of it.
func (t *routing) placeOf(mapped netip.Addr) (place route.Place, ok bool) {
	if p := t.find(mapped); p != nil {
		return p.PlaceOf(mapped)
	}
	return place, false
}

// routeOf returns the route that a mapped address leaves by, as the rules have it, or nil.
func (t *routing) routeOf(mapped netip.Addr, rules *backend.Rules) *backend.Route {
	place, _ := t.placeOf(mapped)
	return rules.Route(place.Route)
}

// lineOf is where the Corefile has the route of a mapped address, or nothing.
func (t *routing) lineOf(mapped netip.Addr) string {
	name, _ := t.owner(mapped)
	place, ok := t.placeOf(mapped)
	if r := t.of(name, place.By, place.Route); ok && r != nil && r.kernel.Name == place.Route {
		return r.place
	}
	return ""
}

// leading finds out where those of some addresses lead that are of pools.
func (a *administration) leading(ctx context.Context, addrs []netip.Addr, rules *backend.Rules) (map[netip.Addr]*admin.Mapped, error) {
	all, t := map[netip.Addr]*admin.Mapped{}, a.guard.routing.Load()
	for _, addr := range addrs {
		if rules.Pooled(addr) {
			name, _ := t.owner(addr)
			all[addr] = &admin.Mapped{Name: why.Plain(name), Text: "leads nowhere now"}
		}
	}
	if len(all) == 0 {
		return all, nil
	}
	err := a.guard.router.Mapped(ctx, func(mapped, real netip.Addr) {
		if m := all[mapped]; m != nil {
			if r := t.routeOf(mapped, rules); r != nil {
				describeRoute(m, r, real, t.lineOf(mapped))
			}
		}
	})
	return all, err
}

// describeRoute says where a mapped address leads, and how what goes there leaves.
func describeRoute(m *admin.Mapped, r *backend.Route, real netip.Addr, place string) {
	m.To, m.Out, m.Mark, m.Route = real, r.Out, r.Mark, place
	leaves := "with the address of its interface"
	if i := slices.IndexFunc(r.Egress, func(e netip.Addr) bool { return e.Is4() == real.Is4() }); i >= 0 {
		m.Egress = r.Egress[i]
		leaves = "as " + m.Egress.String()
	} else if r.Transparent {
		leaves = "with the address that it is sent with"
	}
	m.Text = fmt.Sprintf("leads to %v, leaves %s", real, leaves)
	if r.Out != "" {
		m.Text += " by " + r.Out
	}
	if r.Mark != 0 {
		m.Text += fmt.Sprintf(", mark %#x", r.Mark)
	}
	if place != "" {
		m.Text += fmt.Sprintf(" (route at %s)", place)
	}
}
