package ipdestinationguard

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

var errNoRouter = errors.New("this kind of firewall cannot translate addresses, which routes need: leave them out")

// prepareRoutes makes all ready for routes to be put in force.
func (g *guard) prepareRoutes(s *settings) error {
	var routes []*namedRoute
	for _, p := range s.found.policies {
		routes = append(routes, p.routes...)
	}
	if len(routes) == 0 {
		return nil
	}
	if g.router == nil {
		return fmt.Errorf("%s: %w", routes[0].place, errNoRouter)
	}
	if err := s.settleRoutes(routes, g.addresses(), log.Warningf); err != nil {
		return err
	}
	if err := g.openBooks(routes); err != nil {
		return err
	}
	s.found.book = bookID(routes)
	return nil
}

// addresses are those of the machine, with their networks.
func (g *guard) addresses() []netip.Prefix {
	if g.host.addresses == nil {
		return nil
	}
	return g.host.addresses()
}

// ownAddresses are those of the machine now, with their networks. What cannot be known
// counts as none.
func ownAddresses() (all []netip.Prefix) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// settleRoutes fills in what routes have from the settings, and reports the first two
// things of the Corefile or the machine that cannot both be.
func (s *settings) settleRoutes(routes []*namedRoute, machine []netip.Prefix, warn func(format string, args ...any)) error {
	for i, r := range routes {
		if r.state == "" {
			r.state = s.statePath()
		}
		r.kernel = s.kernelRoute(r)
		r.listed = route.Route{Name: r.kernel.Name, Pools: r.pools, Slots: r.slots}
		for _, pool := range r.pools {
			if err := s.conflict(r, pool, machine); err != nil {
				return err
			}
			for _, other := range routes[:i] {
				if err := r.clash(pool, other); err != nil {
					return err
				}
			}
		}
		if _, err := net.InterfaceByName(r.out); r.out != "" && err != nil {
			warn("%s: out %s: there is no such interface now, and what this route's names lead to is refused until there is one", r.place, r.out)
		}
		for _, addr := range r.egress {
			if !slices.ContainsFunc(machine, func(p netip.Prefix) bool { return p.Addr() == addr }) {
				warn("%s: egress %s is no address of this machine now: replies find back only if it is routed here", r.place, addr)
			}
			for _, other := range routes {
				if contains(other.pools, addr) {
					return fmt.Errorf("%s: egress %s is in the pool of the route at %s, and packets to it would be refused: take an address of this machine", r.place, addr, other.place)
				}
			}
		}
	}
	s.found.routes = routes
	return nil
}

// kernelRoute is what the kernel has to know of a route. Its name says all of it.
func (s *settings) kernelRoute(r *namedRoute) backend.Route {
	k := backend.Route{
		Pools: r.pools, Egress: r.egress, Out: r.out, Mark: r.mark,
		Transparent: !r.masquerade && len(r.egress) == 0 && !s.gateway(),
	}
	hash := sha256.Sum256(fmt.Appendf(nil, "%v %v %v %q %d", k.Pools, k.Egress, k.Transparent, k.Out, k.Mark))
	k.Name = hex.EncodeToString(hash[:8])
	return k
}

// conflict reports what else the addresses of a pool are.
func (s *settings) conflict(r *namedRoute, pool netip.Prefix, machine []netip.Prefix) error {
	for _, allowed := range []struct {
		option   string
		networks []netip.Prefix
	}{{"allowedIPs", s.allowed}, {"allowedLocalIPs", s.allowedLocal}, {"allowedGatewayIPs", s.allowedGateway}} {
		for _, network := range allowed.networks {
			if network.Overlaps(pool) {
				return fmt.Errorf("%s: pool %s overlaps %s %s of %s: mapped addresses are open to those only who have asked. Give the route another pool, or take it out of %[3]s",
					r.place, pool, allowed.option, network, s.place)
			}
		}
	}
	for _, up := range s.upstreams {
		if pool.Contains(up.Addr()) {
			return fmt.Errorf("%s: upstream %v of %s is in pool %s: give the route another pool", r.place, up.Addr(), s.place, pool)
		}
	}
	if on, ok := overlapped(pool, machine); ok {
		return fmt.Errorf("%s: pool %s overlaps %s, where this machine has its address %s: give the route another pool, that nobody uses here", r.place, pool, on.Masked(), on.Addr())
	}
	return nil
}

// overlapped returns the first address of the machine, with its network, that has something
// to do with a pool. Sentinels have not: no name has their addresses.
func overlapped(pool netip.Prefix, machine []netip.Prefix) (netip.Prefix, bool) {
	i := slices.IndexFunc(machine, func(on netip.Prefix) bool {
		return on.Overlaps(pool) && !(on.IsSingleIP() && contains(backend.Sentinels, on.Addr()))
	})
	if i < 0 {
		return netip.Prefix{}, false
	}
	return machine[i], true
}

// clash reports whether two routes have a pool in common in another way than that both
// have it, and keep it in one book.
func (r *namedRoute) clash(pool netip.Prefix, other *namedRoute) error {
	for _, theirs := range other.pools {
		switch {
		case !pool.Overlaps(theirs):
		case pool != theirs:
			return fmt.Errorf("%s: pool %s overlaps pool %s of the route at %s: routes have the same pool, or none in common", r.place, pool, theirs, other.place)
		case r.state != other.state:
			return fmt.Errorf("%s: pool %s is that of the route at %s too, and their states are two files, %s and %s: each would give the addresses of the other to its names. Write the same state, or another pool",
				r.place, pool, other.place, r.state, other.state)
		case !slices.Equal(sameVersion(r.pools, pool), sameVersion(other.pools, pool)):
			return fmt.Errorf("%s: pool %s is that of the route at %s too, and one of them has more: routes have all pools of an IP version in common, or none", r.place, pool, other.place)
		}
	}
	return nil
}

func sameVersion(pools []netip.Prefix, as netip.Prefix) (same []netip.Prefix) {
	for _, pool := range pools {
		if pool.Addr().Is4() == as.Addr().Is4() {
			same = append(same, pool)
		}
	}
	return same
}

// statePath is where mapped addresses are kept unless a route says otherwise: where systemd
// has made room, or else by the name of the table.
func (s *settings) statePath() string {
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); dir != "" {
		return filepath.Join(dir, "mappings.db")
	}
	return filepath.Join("/var/lib/ipdestinationguard", s.table+".db")
}
