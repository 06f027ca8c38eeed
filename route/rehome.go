package route

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

const (
	perMove = 1000 // names whose answers wait at the same time
	mapWait = 5 * time.Second
)

// Rehome moves names to other routes, with their addresses: to says which, or nil to leave
// one where it is, and is told which name has the route by what was last answered: mostly
// name itself. It is for a reload or a restart that changes how a route leaves, once the
// new rules are in force. Names that have no address of the new route's pools stay. Those
// of its addresses that lead somewhere are mapped again, to the same real ones as before. A
// name that has addresses in its new route already, has them first and the others besides.
func (b *Book) Rehome(ctx context.Context, to func(route, name, by string) *Route) error {
	b.tidying.Lock()
	defer b.tidying.Unlock()
	var moves []move
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			route, name := e.names()
			if other := to(route, name, e.ledBy(name)); other != nil && other.Name != route && e.fits(other) {
				moves = append(moves, move{from: e, route: other})
			}
		}
		s.mu.RUnlock()
	}
	stands, failed := b.standing(ctx, moves)
	for len(moves) > 0 {
		n, err := b.move(ctx, moves)
		if err != nil {
			return errors.Join(failed, err)
		}
		failed = errors.Join(failed, b.remap(ctx, moves[:n], stands))
		b.moveDone(moves[:n])
		moves = moves[n:]
	}
	return failed
}

// fits reports whether the entry has addresses that a route can have.
func (e *entry) fits(r *Route) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.slots, func(s slot) bool { return contains(r.Pools, e.addr(s.mapped)) })
}

// standing asks the router where addresses lead that an earlier process has mapped, or that
// are in doubt.
func (b *Book) standing(ctx context.Context, moves []move) (map[ip]ip, error) {
	stands := make(map[ip]ip)
	for _, m := range moves {
		m.from.mu.Lock()
		if m.from.force == vague {
			for _, s := range m.from.slots {
				stands[s.mapped] = ip{}
			}
		}
		m.from.mu.Unlock()
	}
	if len(stands) == 0 {
		return nil, nil
	}
	err := b.router.Mapped(ctx, func(mapped, real netip.Addr) {
		if _, asked := stands[mapped.As16()]; asked {
			stands[mapped.As16()] = real.As16()
		}
	})
	return stands, err
}

// ledBy is the name that has the route.
func (e *entry) ledBy(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return cmp.Or(e.by, name)
}

// move is an entry on its way to another route.
type move struct {
	from  *entry
	route *Route
	to    *entry // whose turn is taken, as that of from is; nil if there is nothing to move
	first int    // where the addresses of from are in it
}

// moveDone gives back the turns.
func (b *Book) moveDone(moves []move) {
	for _, m := range moves {
		if m.to != nil {
			m.from.release()
			m.to.release()
			b.dropIdle(m.to)
		}
	}
}

// move moves the addresses of the first n entries, whose turns it has taken when it
// returns, if there is no error.
func (b *Book) move(ctx context.Context, moves []move) (n int, err error) {
	defer func() {
		if err != nil {
			b.moveDone(moves[:n])
		}
	}()
	taken := make(map[*entry]bool)
	for n < min(len(moves), perMove) {
		ok, err := b.prepare(ctx, &moves[n], taken)
		if err != nil {
			return n, err
		}
		if !ok {
			break
		}
		n++
	}
	moves = moves[:n]
	err = b.store.do(context.WithoutCancel(ctx), func(tx *bolt.Tx) error {
		for _, m := range moves {
			if m.to == nil {
				continue
			}
			for i, s := range m.from.slots {
				if err := putOwned(tx, m.to.version(), s.mapped, m.to.last+1+uint16(i), m.to.key[1:]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return n, err
	}
	for i := range moves {
		if moves[i].to != nil {
			b.moved(&moves[i])
		}
	}
	return n, nil
}

// prepare takes the turns that a move needs, unless others of the same transaction have
// them: then it has to wait for the next one. Nobody else ever waits for a second turn.
func (b *Book) prepare(ctx context.Context, m *move, taken map[*entry]bool) (ok bool, err error) {
	_, name := m.from.names()
	key, err := appendKey(nil, m.from.version(), m.route.Name, name)
	if err != nil {
		return false, fmt.Errorf("%q: %w", m.route.Name, err)
	}
	if taken[m.from] {
		return false, nil
	}
	switch err := b.takeSettled(ctx, m.from); {
	case err == errDead:
		return true, nil
	case err != nil:
		return false, err
	}
	for {
		to := b.enter(key)
		if taken[to] {
			m.from.release()
			return false, nil
		}
		switch err := b.takeSettled(ctx, to); {
		case err == errDead:
			continue
		case err != nil:
			m.from.release()
			b.dropIdle(to)
			return false, err
		}
		taken[m.from], taken[to] = true, true
		m.to, m.first = to, len(to.slots)
		return true, nil
	}
}

// takeSettled takes the turn of an entry that has no slots on their way to the disk.
func (b *Book) takeSettled(ctx context.Context, e *entry) error {
	if err := e.take(ctx); err != nil {
		return err
	}
	if err := e.settle(ctx); err != nil {
		e.release()
		return err
	}
	return nil
}

// moved: the disk has it.
func (b *Book) moved(m *move) {
	from, to := m.from, m.to
	s := b.shard([]byte(from.key))
	s.mu.Lock()
	from.mu.Lock()
	from.dead = true
	delete(s.entries, from.key)
	used, by := from.used, from.by
	from.mu.Unlock()
	s.mu.Unlock()

	to.mu.Lock()
	defer to.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range from.slots {
		b.pages[to.version()].set(s.mapped, to)
	}
	if len(to.slots) == 0 {
		to.asker, to.used, to.by = from.asker, used, by
	}
	room := min(max(0, MaxSlots-len(to.slots)), len(from.slots))
	b.leaveLocked(from, from.slots[room:], true)
	to.slots = slices.Concat(to.slots, from.slots[:room])
	to.last += uint16(len(from.slots))
	to.used, to.dirty = max(to.used, used), true
	if to.force != vague {
		to.force = unforced
	}
	if from.force == vague {
		to.force = vague
	}
}

func (e *entry) forced() bool { return e.force != unforced && e.force != vague }

// remap puts what leads somewhere there again; stands is where that is in doubt.
func (b *Book) remap(ctx context.Context, moves []move, stands map[ip]ip) error {
	force := b.router.Epoch() + 1
	var mappings []backend.Mapping
	for _, m := range moves {
		if m.to == nil {
			continue
		}
		for _, s := range m.to.slots[m.first:] {
			real, mapped := s.real, m.to.addr(s.mapped)
			if !m.from.forced() {
				real = stands[s.mapped]
			}
			if real != (ip{}) && contains(m.route.Pools, mapped) {
				mappings = append(mappings, backend.Mapping{Route: m.route.Name, Mapped: mapped, Real: m.to.addr(real)})
			}
		}
	}
	if mappings == nil {
		return nil
	}
	if err := b.router.Map(ctx, mappings, mapWait); err != nil {
		return err
	}
	for _, m := range moves {
		if m.to != nil && m.from.forced() && m.first == 0 {
			m.to.mu.Lock()
			m.to.force = force
			m.to.mu.Unlock()
		}
	}
	return nil
}
