package ipdestinationguard

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// routing is what routes are in force, from one Corefile to the next.
type routing struct {
	policies []*policy // of the Corefile
	routes   map[*namedRoute]bool
	pools    []pool
	classes  []backend.Class // that there may be grants for mapped addresses in
	book     string          // the name of all books
	changed  chan struct{}   // closed when there is a newer one
}

// pool is addresses that are a route's.
type pool struct {
	netip.Prefix
	*book
}

func newRouting() *routing { return &routing{changed: make(chan struct{})} }

// add adds the routes' pools, each once.
func (t *routing) add(routes []*namedRoute) {
	for _, r := range routes {
		for _, prefix := range r.pools {
			if p := (pool{prefix, r.book}); !slices.Contains(t.pools, p) {
				t.pools = append(t.pools, p)
			}
		}
	}
}

// find returns the pool that an address is of, if it is of one.
func (t *routing) find(addr netip.Addr) *pool {
	for i := range t.pools {
		if t.pools[i].Contains(addr) {
			return &t.pools[i]
		}
	}
	return nil
}

// owner returns the name that has a mapped address.
func (t *routing) owner(addr netip.Addr) (name string, ok bool) {
	if p := t.find(addr); p != nil {
		return p.NameOf(addr)
	}
	return "", false
}

// of returns the route that a name has by what is in force, or else that of the one that it
// has led to, or nil. If server blocks differ in that, it is the one that is called so in the
// kernel, or else the first.
func (t *routing) of(name, by, kernel string) (first *namedRoute) {
	for _, p := range t.policies {
		r := p.of(name)
		if r == nil {
			r = p.of(by)
		}
		if r != nil && r.kernel.Name == kernel {
			return r
		}
		if first == nil {
			first = r
		}
	}
	return first
}

// awaitRoute returns the route that a name has now: r, once it is in force, or the one that
// stands for it. A new Corefile's handlers answer before its routes are in force, and those
// of an old one may be late and answer after.
func (g *guard) awaitRoute(ctx context.Context, r *namedRoute, name string) (*namedRoute, error) {
	var late <-chan time.Time
	for {
		t := g.routing.Load()
		if t.routes[r] {
			return r, nil
		}
		if other := t.of(name, name, r.kernel.Name); other != nil {
			return other, nil
		}
		if late == nil {
			timer := time.NewTimer(g.settings.Load().hold)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-t.changed:
		case <-late:
			return nil, backend.ErrRoute
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// errTakenOver says that a route has been taken over by another since.
var errTakenOver = errors.New("another Corefile has taken the route over")

// errPooled says that an address is a route's to give out, since the answer was looked at.
var errPooled = errors.New("an address in the answer has become one of a route's pool at this moment")

// givers are answers that give out mapped addresses at this moment. Nearly all answers come by
// here, so they are spread.
type givers [16]struct {
	sync.RWMutex
	_ [64 - 24]byte
}

// give holds off that other books take over until done is unlocked, if the route is in force.
func (g *guard) give(r *namedRoute) (done *sync.RWMutex, err error) {
	done = g.givers.one()
	if !g.routing.Load().routes[r] {
		done.RUnlock()
		return nil, errTakenOver
	}
	return done, nil
}

// giveReal holds off that routes get addresses that are none of theirs.
func (g *guard) giveReal(targets []target) (done *sync.RWMutex, err error) {
	done = g.givers.one()
	t := g.routing.Load()
	for i := range targets {
		if t.find(targets[i].key.Addr()) != nil {
			done.RUnlock()
			return nil, errPooled
		}
	}
	return done, nil
}

func (g *givers) one() *sync.RWMutex {
	one := &g[rand.N(len(g))].RWMutex
	one.RLock()
	return one
}

// pause has answers wait for other routes than those that were, and returns when none gives
// out an address of theirs any more, nor one that the next ones have.
func (g *guard) pause(was *routing, next []*namedRoute) *routing {
	t := newRouting()
	t.pools, t.classes, t.book = slices.Clip(was.pools), was.classes, was.book
	t.add(next)
	g.routing.Store(t)
	close(was.changed)
	for i := range g.givers {
		g.givers[i].Lock()
		g.givers[i].Unlock() //lint:ignore SA2001 to have waited is all
	}
	return t
}

// resume goes on as before the pause, if there is one.
func (g *guard) resume(was *routing) {
	paused := g.routing.Load()
	if paused == was {
		return
	}
	t := *was
	t.changed = make(chan struct{})
	g.routing.Store(&t)
	close(paused.changed)
}

// bridge are the routes of a Corefile, and those of the one before, which go on until their
// names have other routes.
func bridge(routes, before []backend.Route) []backend.Route {
	if len(routes) == 0 {
		return nil
	}
	all := slices.Clone(routes)
	for _, k := range before {
		if !slices.ContainsFunc(routes, func(r backend.Route) bool { return r.Name == k.Name }) {
			all = append(all, k)
		}
	}
	return all
}

// takeOver has names and answers go by the routes of a Corefile, which are in the rules by
// now, instead of those that were. Answers may have been paused.
func (g *guard) takeOver(s *settings, was *routing) error {
	routes := s.found.routes
	if len(routes) == 0 && len(was.pools) == 0 {
		return nil
	}
	last := g.routing.Load()
	if all := strangersOf(routes); all != nil {
		if last == was {
			last = g.pause(was, routes)
		}
		if err := g.endStrangers(all); err != nil {
			return err
		}
	}
	g.unused.Store(max(g.unused.Load(), int64(s.unused())))
	t := newRouting()
	t.policies, t.routes, t.book = s.found.policies, map[*namedRoute]bool{}, s.found.book
	for _, r := range routes {
		t.routes[r] = true
		if !slices.Contains(t.classes, r.class) {
			t.classes = append(t.classes, r.class)
		}
		r.book.SetMax(s.limits.mappings)
	}
	t.add(routes)
	for _, b := range t.books() {
		var listed []*route.Route
		for _, r := range routes {
			if r.book == b {
				listed = append(listed, &r.listed)
			}
		}
		b.Use(listed)
	}
	// Names that are asked for from here on have their new route, and then addresses of
	// before besides; the other way round, they might have some of a route that goes.
	g.routing.Store(t)
	close(last.changed)
	if was.book != "" && was.book != t.book {
		t.restore()
	}
	if !t.asBefore(was) {
		g.rehome(t, len(was.routes) == 0)
	}
	if g.stopWork == nil {
		var ctx context.Context
		ctx, g.stopWork = context.WithCancel(context.Background())
		g.working.Go(func() { g.tidy(ctx) })
		g.working.Go(func() { g.cuts.run(ctx, g.router) })
	}
	return nil
}

// asBefore reports whether all names have the same routes as before.
func (t *routing) asBefore(was *routing) bool {
	return slices.EqualFunc(t.policies, was.policies, func(p, q *policy) bool {
		return slices.EqualFunc(p.routes, q.routes, func(r, s *namedRoute) bool {
			return slices.Equal(r.patterns, s.patterns) && r.kernel.Name == s.kernel.Name && r.book == s.book
		})
	})
}

// rehome gives names that have another route now to that, with the addresses that they
// have. Only at the first time, these may be of routes that have gone long since.
func (g *guard) rehome(t *routing, first bool) {
	for _, b := range t.books() {
		err := b.Rehome(context.Background(), func(old, name, by string) *route.Route {
			now := t.of(name, by, old)
			if now == nil || now.kernel.Name == old || now.book != b {
				return nil
			}
			if !first && !slices.ContainsFunc(g.rules.Routes, func(k backend.Route) bool { return k.Name == old }) {
				return nil // it has had another one since
			}
			return &now.listed
		})
		if err != nil {
			log.Errorf("%s: names whose route has changed may lose their addresses: %v", b.path, err)
		}
	}
}

// books are those of the pools, each once.
func (t *routing) books() (all []*book) {
	for _, p := range t.pools {
		if !slices.Contains(all, p.book) {
			all = append(all, p.book)
		}
	}
	return all
}

// restore has books map their addresses again that the kernel has forgotten because there
// is another book than before.
func (t *routing) restore() {
	for _, b := range t.books() {
		if err := b.Restore(context.Background()); err != nil {
			log.Errorf("%s: clients have to ask again before they get to mapped addresses: %v", b.path, err)
		}
	}
}

// warnOverlap tells of addresses that the machine has got since it started.
func (g *guard) warnOverlap(s *settings) {
	if len(s.found.routes) == 0 {
		return
	}
	machine := g.addresses()
	for _, r := range s.found.routes {
		for _, pool := range r.pools {
			if on, ok := overlapped(pool, machine); ok {
				g.overlaps.Do(func() {
					log.Warningf("%s: pool %s overlaps %s, where this machine now has the address %s: one of the two does not work. Give the route another pool", r.place, pool, on.Masked(), on.Addr())
				})
			}
		}
	}
}
