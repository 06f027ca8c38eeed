package nft

import (
	"net/netip"
	"strings"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// origins are empty sets: their names are for who takes the table over, and its grants.
func origins(r *backend.Rules) (sets []set) {
	for _, o := range r.Origins {
		sets = append(sets, set{name: originName(o), key: selector{ipProtocol}, comment: "which book has given out addresses of " + o.Pool.String()})
	}
	return sets
}

// originName is a name that nft can read, without colons.
func originName(o backend.Origin) string {
	name := setOrigin + o.Book + "-" + strings.ReplaceAll(o.Pool.String(), ":", "_")
	if o.Gone {
		name += originGone
	}
	return name
}

// originOf reads such a name.
func originOf(set string) (o backend.Origin, ok bool) {
	if set, ok = strings.CutPrefix(set, setOrigin); !ok {
		return o, false
	}
	set, gone := strings.CutSuffix(set, originGone)
	book, pool, _ := strings.Cut(set, "-")
	prefix, err := netip.ParsePrefix(strings.ReplaceAll(pool, "_", ":"))
	return backend.Origin{Book: book, Pool: prefix, Gone: gone}, err == nil
}

// mappings are the sets of mapped addresses: what stands behind each, and of which route it
// is. They have no size, though nothing comes in when MaxMappings are there: for a set with
// one and without timeouts, the kernel takes memory for so many from the beginning.
func mappings(r *backend.Rules, bound bool) (sets []set) {
	if bound {
		for _, ipv4 := range versions {
			sets = append(sets, set{
				name: forVersion(setBound, ipv4), comment: "mapped addresses of routes with a way out or a mark: live connections take no other way",
				key: selector{destination(ipv4)}, kept: true,
			})
		}
	}
	if len(r.Routes) == 0 {
		return sets
	}
	for _, ipv4 := range versions {
		sets = append(sets, set{
			name: mappedName(ipv4, r.Book), comment: "what real address stands behind a mapped one",
			key: selector{destination(ipv4)}, data: destination(ipv4).key, kept: true,
		})
	}
	for i := range r.Routes {
		for _, ipv4 := range versions {
			sets = append(sets, set{
				name: routeName(r.Routes[i].Name, ipv4, r.Book), comment: "mapped addresses of the route " + r.Routes[i].String(),
				key: selector{destination(ipv4)}, kept: true,
			})
		}
	}
	return sets
}

// mappedName is the name of the map from mapped to real addresses.
func mappedName(ipv4 bool, book string) string { return forVersion(setMapped, ipv4) + "-" + book }

// routeName is the name of a set of a route's mapped addresses.
func routeName(route string, ipv4 bool, book string) string {
	return forVersion(setRoute+route, ipv4) + "-" + book
}
