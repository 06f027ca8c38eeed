package nft

import (
	"maps"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// bridges are the old rules with all that the lists of either name. Resolvers are the
// last to come: they are shut to others, unless those may reach them as allowed, and
// that has to be seen first.
func bridges(old, r backend.Rules) (all []backend.Rules) {
	b := old
	b.Allowed = slices.Concat(old.Allowed, r.Allowed)
	b.AllowedLocal = slices.Concat(old.AllowedLocal, r.AllowedLocal)
	b.AllowedGateway = slices.Concat(old.AllowedGateway, r.AllowedGateway)
	b.OnLink = slices.Concat(old.OnLink, r.OnLink)
	b.Classes = make(map[backend.Class]backend.Predicates)
	maps.Copy(b.Classes, r.Classes)
	for n, p := range old.Classes {
		p.Units = slices.Concat(p.Units, r.Classes[n].Units) // the cgroups they had, and those they have
		b.Classes[n] = p
	}
	b.Routes = closing(old.Routes, r)
	all = append(all, b)
	if len(r.Upstream) > 0 && !slices.Equal(old.Upstream, r.Upstream) && (len(old.Upstream) == 0 || old.Self == r.Self) {
		b.Upstream, b.Self = slices.Concat(old.Upstream, r.Upstream), r.Self
		all = append(all, b)
	}
	return all
}

// closing are routes, where those that go let nothing out any more. The kernel exchanges
// chain after chain: a packet that the first new one does not mark any more must not leave
// by the last old one.
func closing(old []backend.Route, r backend.Rules) (routes []backend.Route) {
	for _, route := range old {
		if route.Bound() && r.Route(route.Name) == nil {
			route.Out = noInterface
		}
		routes = append(routes, route)
	}
	return routes
}

// noInterface is what no interface can be called (dev_valid_name).
const noInterface = "/"
