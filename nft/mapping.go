package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Router = (*Backend)(nil)

// Map implements [backend.Router]. Concurrent calls share transactions, with those of
// Grant as well.
func (b *Backend) Map(ctx context.Context, mappings []backend.Mapping, within time.Duration) error {
	return b.ask(ctx, &request{mappings: mappings, late: time.Now().Add(within), done: make(chan error, 1)})
}

// Unmap implements [backend.Router].
func (b *Backend) Unmap(ctx context.Context, mapped []netip.Addr) error {
	return b.ask(ctx, &request{unmap: mapped, done: make(chan error, 1)})
}

// Origins implements [backend.Router].
func (b *Backend) Origins(table string) (all []backend.Origin, err error) {
	p, err := readTable(table)
	switch {
	case errors.Is(err, unix.ENOENT): // deleted meanwhile, and its grants with it
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("table inet %s: reading: %w", table, explain(err))
	}
	for name := range p.sets {
		if o, ok := originOf(name); ok {
			all = append(all, o)
		}
	}
	return all, nil
}

// Epoch implements [backend.Router].
func (b *Backend) Epoch() uint64 { return b.epoch.Load() }

// mapped is what the writer believes of the kernel's mappings, as the table of what is in
// force is for grants.
type mapped struct {
	inForce map[ip]behind
	lost    map[ip]behind // to be put back after somebody emptied the sets
	fading  map[ip]bool   // mapped no more, and still bound: connections may be left
	routes  []string      // their names, at their numbers; "" where one has gone
	v4      int           // of those in force
	trust   uint32        // what entries have that are not in doubt
	strange bool          // the kernel may have some that are not known
}

// An ip is an address; IPv4 in mapped form.
type ip = [16]byte

// behind is what stands behind a mapped address.
type behind struct {
	real  ip
	route uint16 // its number; noRoute where that has gone: the address leads nowhere
	bound bool
	trust uint32
}

// Numbers that no route has.
const (
	noRoute  = 0
	boundSet = math.MaxUint16
)

// number returns the number of a route that the rules have.
func (m *mapped) number(route string) uint16 {
	if len(m.routes) == 0 {
		m.routes = []string{noRoute: ""}
	}
	if i := slices.Index(m.routes, route); i > noRoute {
		return uint16(i)
	}
	for i := range m.routes {
		if i > noRoute && m.routes[i] == "" {
			m.routes[i] = route
			return uint16(i)
		}
	}
	m.routes = append(m.routes, route)
	return uint16(len(m.routes) - 1)
}

// enter notes what the kernel has now.
func (m *mapped) enter(a ip, b behind) {
	if m.inForce == nil {
		m.inForce = make(map[ip]behind)
	}
	if _, again := m.inForce[a]; !again && is4(&a) {
		m.v4++
	}
	b.trust = m.trust
	m.inForce[a] = b
	delete(m.lost, a)
	delete(m.fading, a)
}

func (m *mapped) remove(a ip, bound bool) {
	if bound {
		if m.fading == nil {
			m.fading = make(map[ip]bool)
		}
		m.fading[a] = true
	}
	if _, there := m.inForce[a]; there && is4(&a) {
		m.v4--
	}
	delete(m.inForce, a)
	delete(m.lost, a)
}

// count is how many there are, of one version of IP.
func (m *mapped) count(ipv4 bool) int {
	if ipv4 {
		return m.v4
	}
	return len(m.inForce) - m.v4
}

func is4(a *ip) bool { return netip.AddrFrom16(*a).Is4In6() }

// version is 1 for IPv4, and 0 for IPv6.
func version(a *ip) int {
	if is4(a) {
		return 1
	}
	return 0
}

// putBackMappings lets sweep make all mappings anew. Until then none is in force.
func (w *writer) putBackMappings() {
	m := &w.mapped
	if len(m.inForce) == 0 {
		return
	}
	if len(m.lost) == 0 {
		m.lost, m.inForce = m.inForce, nil
	} else {
		maps.Copy(m.lost, m.inForce)
		m.inForce = nil
	}
	maps.DeleteFunc(m.lost, func(_ ip, b behind) bool { return b.route == noRoute })
	m.v4 = 0
	w.epoch.Add(1)
}

// forgetMappings takes out what the rules do not have any more. An address whose route has
// gone stays in the map, and leads nowhere.
func (w *writer) forgetMappings(r *backend.Rules) {
	m := &w.mapped
	if len(m.inForce)+len(m.lost)+len(m.fading) == 0 {
		m.routes = nil
		return
	}
	if len(r.Routes) == 0 || r.Book != w.rules.Book {
		*m = mapped{trust: m.trust, strange: len(r.Routes) > 0} // what was bound stays
		w.epoch.Add(1)
		return
	}
	gone := make([]bool, len(m.routes))
	some := false
	for i, name := range m.routes {
		if name != "" && !slices.ContainsFunc(r.Routes, func(route backend.Route) bool { return route.Name == name }) {
			m.routes[i], gone[i], some = "", true, true
		}
	}
	if !some {
		return
	}
	for a, b := range m.inForce {
		if gone[b.route] {
			b.route = noRoute
			m.inForce[a] = b
		}
	}
	maps.DeleteFunc(m.lost, func(_ ip, b behind) bool { return gone[b.route] })
	w.epoch.Add(1)
}

// holdsMappings asks the kernel for some of the mappings that should be there, a few of each
// route and version of IP. Whoever empties a map or a set takes them all; what single ones
// somebody takes, the next answer for them finds out.
func (w *writer) holdsMappings() bool {
	const some, few = 1000, 2
	type share struct {
		route   uint16
		version int
	}
	seen, asked := 0, map[share]int{}
	for a, b := range w.mapped.inForce {
		if seen++; seen > some {
			break
		}
		of := share{b.route, version(&a)}
		if asked[of]++; b.route == noRoute || asked[of] > few {
			continue
		}
		real, found, err := w.standsBehind(&a)
		if err == nil && (!found || real != b.real) {
			return false
		}
		if in, err := w.isOf(&a, w.mapped.routes[b.route]); err == nil && !in {
			return false
		}
		if in, err := w.isBound(&a); err == nil && in != b.bound {
			return false
		}
	}
	return true
}
