package nft

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A remap is what is to be done about one mapped address.
type remap struct {
	addr   ip
	want   behind
	gone   bool // it is to be mapped no more
	unbind bool // no connection to it is left, since it was
	again  bool // only put back

	real    ip   // what the kernel has
	present bool // in the map
	bound   bool
	of      []uint16 // the routes in whose sets it is
	one     [1]uint16
}

// mapPlan is what one transaction is to do to mappings.
type mapPlan struct {
	remaps  []remap
	index   map[ip]int
	changes []mapChange
}

// A mapChange is what it is to do to one set.
type mapChange struct {
	route               uint16 // noRoute is the map itself
	ipv4                bool
	removals, additions []mapping
}

// A mapping is an element on its way to or from the kernel.
type mapping struct{ addr, real ip }

func (p *mapPlan) reset() {
	p.remaps = p.remaps[:0]
	clear(p.index)
	p.changes = p.changes[:0]
}

// want plans what is to become of an address. The last one who wants something counts.
func (p *mapPlan) want(r remap) {
	if i, known := p.index[r.addr]; known {
		if !r.again && !r.unbind {
			p.remaps[i] = r
		}
		return
	}
	if p.index == nil {
		p.index = make(map[ip]int)
	}
	p.index[r.addr] = len(p.remaps)
	p.remaps = append(p.remaps, r)
}

func (p *mapPlan) of(route uint16, a *ip) *mapChange {
	ipv4 := is4(a)
	for i := range p.changes {
		if c := &p.changes[i]; c.route == route && c.ipv4 == ipv4 {
			return c
		}
	}
	if n := len(p.changes); n < cap(p.changes) { // with the memory of an earlier one
		p.changes = p.changes[:n+1]
		c := &p.changes[n]
		c.removals, c.additions = c.removals[:0], c.additions[:0]
	} else {
		p.changes = append(p.changes, mapChange{})
	}
	c := &p.changes[len(p.changes)-1]
	c.route, c.ipv4 = route, ipv4
	return c
}

// planMappings finds out what the requests want of mappings, what the kernel has, and so
// what is to be done.
func (w *writer) planMappings(reqs []*request, careful bool) error {
	p := &w.remaps
	p.reset()
	for _, r := range reqs {
		for _, m := range r.mappings {
			if err := w.rules.Mappable(m); err != nil {
				return err
			}
			p.want(remap{addr: m.Mapped.As16(), want: behind{
				real: m.Real.As16(), route: w.mapped.number(m.Route), bound: w.rules.Route(m.Route).Bound(),
			}})
		}
		for _, a := range r.unmap {
			p.want(remap{addr: a.As16(), gone: true})
		}
		for _, a := range r.unbind {
			if w.mapped.fading[a] {
				p.want(remap{addr: a, gone: true, unbind: true})
			}
		}
		for _, m := range r.lost {
			if b, ok := w.mapped.lost[m]; ok {
				p.want(remap{addr: m, want: b, again: true})
			}
		}
	}
	var made [2]int // IPv6, IPv4
	for i := range p.remaps {
		r := &p.remaps[i]
		if err := w.lookBehind(r, careful); err != nil {
			return err
		}
		if _, known := w.mapped.inForce[r.addr]; !known && !r.gone {
			v := version(&r.addr)
			if made[v]++; w.rules.MaxMappings > 0 && w.mapped.count(v == 1)+made[v] > w.rules.MaxMappings {
				if !r.again {
					return backend.ErrMappings
				}
				made[v]--
				r.gone = true // there is room for others only
			}
		}
		p.sort(r)
	}
	return nil
}

// sort turns what is wanted of an address and what is there into changes.
func (p *mapPlan) sort(r *remap) {
	stays := r.present && !r.gone && r.real == r.want.real
	if r.present && !stays {
		c := p.of(noRoute, &r.addr)
		c.removals = append(c.removals, mapping{addr: r.addr})
	}
	if !r.gone && !stays {
		c := p.of(noRoute, &r.addr)
		c.additions = append(c.additions, mapping{r.addr, r.want.real})
	}
	in := false
	for _, route := range r.of {
		if !r.gone && route == r.want.route {
			in = true
			continue
		}
		c := p.of(route, &r.addr)
		c.removals = append(c.removals, mapping{addr: r.addr})
	}
	if !r.gone && !in {
		c := p.of(r.want.route, &r.addr)
		c.additions = append(c.additions, mapping{addr: r.addr})
	}
	switch bind := !r.gone && r.want.bound; {
	case bind && !r.bound:
		c := p.of(boundSet, &r.addr)
		c.additions = append(c.additions, mapping{addr: r.addr})
	case r.bound && !bind && (!r.gone || r.unbind): // else connections may be left
		c := p.of(boundSet, &r.addr)
		c.removals = append(c.removals, mapping{addr: r.addr})
	}
}

// lookBehind finds out what the kernel has of an address.
func (w *writer) lookBehind(r *remap, careful bool) (err error) {
	b, known := w.mapped.inForce[r.addr]
	if !careful && (known && b.trust == w.mapped.trust || !known && !w.mapped.strange && !r.gone) {
		r.real, r.present, r.bound = b.real, known, b.bound || w.mapped.fading[r.addr]
		if known && b.route != noRoute {
			r.of = append(r.one[:0], b.route)
		}
		return nil
	}
	if len(w.rules.Routes) == 0 {
		return nil // nothing stands there
	}
	if r.real, r.present, err = w.standsBehind(&r.addr); err != nil {
		return err
	}
	if r.bound, err = w.isBound(&r.addr); err != nil {
		return err
	}
	a := netip.AddrFrom16(r.addr).Unmap()
	for i := range w.rules.Routes {
		route := &w.rules.Routes[i]
		if !route.Has(a) {
			continue
		}
		in, err := w.isOf(&r.addr, route.Name)
		if err != nil {
			return err
		}
		if in {
			r.of = append(r.of, w.mapped.number(route.Name))
		}
	}
	return nil
}

// sendMappings adds the plan to the batch: removals, or additions.
func (w *writer) sendMappings(typ, flags uint16) {
	for i := range w.remaps.changes {
		c := &w.remaps.changes[i]
		elements := c.additions
		if typ == unix.NFT_MSG_DELSETELEM {
			elements = c.removals
		}
		if len(elements) > 0 {
			w.batch.addMappings(typ, flags, w.rules.Table, w.mapSet(c.route, c.ipv4), c.ipv4, c.route == noRoute && typ == unix.NFT_MSG_NEWSETELEM, elements)
		}
	}
}

// mapSet is the name of the map, or of a route's set.
func (w *writer) mapSet(route uint16, ipv4 bool) string {
	switch route {
	case noRoute:
		return mappedName(ipv4, w.rules.Book)
	case boundSet:
		return forVersion(setBound, ipv4)
	}
	return routeName(w.mapped.routes[route], ipv4, w.rules.Book)
}

// mapsStand enters what the transaction has put in force.
func (w *writer) mapsStand() {
	for i := range w.remaps.remaps {
		switch r := &w.remaps.remaps[i]; {
		case r.unbind:
			delete(w.mapped.fading, r.addr)
		case r.gone:
			w.mapped.remove(r.addr, r.bound)
		default:
			w.mapped.enter(r.addr, r.want)
		}
	}
}

// carryMappings adds mappings that are to be put back to the batch that makes their sets,
// and returns how many.
func (w *writer) carryMappings(rs ruleset) int {
	p := &w.remaps
	p.reset()
	var carried [2]int // IPv6, IPv4
	for a, b := range w.mapped.lost {
		v := version(&a)
		if rs.mostMapped > 0 && carried[v] == rs.mostMapped {
			continue
		}
		if carried[v]++; len(p.remaps) == mostCarried {
			break
		}
		p.want(remap{addr: a, want: b, again: true})
		p.sort(&p.remaps[len(p.remaps)-1])
	}
	w.sendMappings(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	return len(p.remaps)
}

// someLost returns mapped addresses that are to be put back.
func (m *mapped) someLost(limit int) (some []ip) {
	for a := range m.lost {
		if len(some) == limit {
			break
		}
		some = append(some, a)
	}
	return some
}
