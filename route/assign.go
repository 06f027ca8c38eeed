package route

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Assign returns the mapped addresses that stand for the real ones of a name, which are of
// one IP version. When it has returned, they are on disk as the name's and lead to the
// real ones; or it says why not, or that within has passed, or what ctx says.
//
// by is the name that has the route: one that name leads to, or name itself, as is empty.
// Rehome goes by what the last answer has said.
//
// An address that leads to one of the real ones stays as it is; others of the name are
// pointed to them. An answer like the one before writes nothing and asks nobody.
//
// asker is a hash of who asks, 0 for nobody in particular. Names that an asker was the
// first to ask for never get more addresses than there are still free: one who makes up
// names has half of the pool at most, the next one a quarter. It should be 0 where nobody
// can make up names, since the route has them literally. It is not remembered across
// restarts.
func (b *Book) Assign(ctx context.Context, r *Route, name, by string, asker uint64, reals []netip.Addr, within time.Duration) (Answer, error) {
	if len(reals) == 0 {
		return Answer{}, nil
	}
	var room [128]byte
	key, err := appendKey(room[:0], version(reals[0]), r.Name, name)
	if err == nil && len(by) > maxKey {
		err = ErrName
	}
	if err != nil {
		return Answer{}, err
	}
	if strings.EqualFold(by, name) {
		by = ""
	}
	if e := b.shard(key).find(key); e != nil {
		if mapped := e.unchanged(r, by, reals, b.router.Epoch()+1, b.since()); mapped != nil {
			return Answer{Mapped: mapped}, nil
		}
	}
	c := change{Book: b, route: r, by: by, asker: share(asker), reals: distinct(reals), outer: ctx, until: time.Now().Add(within)}
	return c.do(key)
}

// share is a hash as entries have it: never 0 for somebody.
func share(asker uint64) uint32 {
	if asker == 0 {
		return 0
	}
	return max(1, uint32(asker^asker>>32))
}

func distinct(reals []netip.Addr) []netip.Addr {
	seen := make(map[netip.Addr]struct{}, len(reals))
	once := make([]netip.Addr, 0, len(reals))
	for _, a := range reals {
		if _, ok := seen[a]; !ok {
			seen[a] = struct{}{}
			once = append(once, a)
		}
	}
	return once
}

// change is an answer that needs more than a look.
type change struct {
	*Book
	route *Route
	by    string // empty is the entry's own name
	asker uint32
	reals []netip.Addr // each once

	outer context.Context
	until time.Time
	ctx   context.Context // outer, until then
}

func (c *change) do(key []byte) (Answer, error) {
	ctx, cancel := context.WithDeadlineCause(c.outer, c.until, ErrLate)
	defer cancel()
	c.ctx = ctx
	for {
		e := c.enter(key)
		if err := e.take(ctx); err != nil {
			c.dropIdle(e)
			return Answer{}, err
		}
		answer, err := c.turn(e)
		e.release()
		c.dropIdle(e)
		if err != errDead {
			return answer, err
		}
	}
}

// turn answers, and has the entry's turn.
func (c *change) turn(e *entry) (Answer, error) {
	if err := e.settle(c.ctx); err != nil {
		return Answer{}, err
	}
	c.retire(e)
	k := min(c.route.Slots, len(c.reals))
	if have := len(e.slots); have < k {
		err := c.extend(e, k-have)
		full := errors.Is(err, ErrPoolFull) || errors.Is(err, ErrShare)
		if err != nil && (have == 0 || !full) {
			return Answer{}, err
		}
		k = min(k, len(e.slots))
	}
	return c.point(e, k)
}

// retire takes the slots from an entry that are not of the route's pools any more. Tidy
// gives them back.
func (c *change) retire(e *entry) {
	var kept, gone []slot
	for _, s := range e.slots {
		if contains(c.route.Pools, e.addr(s.mapped)) {
			kept = append(kept, s)
		} else {
			gone = append(gone, s)
		}
	}
	if gone == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slots = kept
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaveLocked(e, gone, true)
}

// extend gives an entry up to n more slots, on disk.
func (c *change) extend(e *entry, n int) error {
	addrs, err := c.reserve(e, c.route.Pools, n, c.asker)
	if err != nil {
		return err
	}
	j, err := c.store.putOwned(e, addrs, func(err error) { c.extended(e, addrs, err) })
	if err != nil {
		c.extended(e, addrs, err)
		return err
	}
	select {
	case <-j.done:
		return j.err
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// extended is called when the disk has the new slots, or has failed.
func (b *Book) extended(e *entry, addrs []ip, err error) {
	if err != nil {
		b.unreserve(e, addrs)
	}
	e.mu.Lock()
	if err == nil {
		slots := make([]slot, 0, len(e.slots)+len(addrs))
		slots = append(slots, e.slots...)
		for _, a := range addrs {
			slots = append(slots, slot{mapped: a})
		}
		e.slots, e.used = slots, b.since()
	}
	e.turn.writing = nil
	e.idleLocked()
	e.mu.Unlock()
	b.dropIdle(e)
}

// point has the slots lead to the real addresses, the first k to one each.
func (c *change) point(e *entry, k int) (Answer, error) {
	force := c.router.Epoch() + 1
	e.mu.Lock()
	slots, was := slices.Clone(e.slots), e.force
	e.mu.Unlock()

	changed := aim(slots, c.reals, k)
	answer := Answer{Stale: c.stale(e, was == vague)}
	if was != force {
		changed = ^uint64(0)
	}
	route, _ := e.names()
	var mappings []backend.Mapping
	for i, s := range slots {
		if changed>>i&1 != 0 {
			mappings = append(mappings, backend.Mapping{Route: route, Mapped: e.addr(s.mapped), Real: e.addr(s.real)})
		}
	}
	if mappings != nil {
		if err := c.router.Map(c.outer, mappings, time.Until(c.until)); err != nil {
			e.mu.Lock()
			e.force = vague
			e.mu.Unlock()
			return Answer{}, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dirty = e.dirty || !slices.Equal(e.slots, slots)
	e.slots, e.force, e.used = slots, force, c.since()
	e.ledLocked(c.by)
	for _, real := range c.reals {
		to := real.As16()
		for _, s := range slots[:k] {
			if s.real == to {
				answer.Mapped = append(answer.Mapped, e.addr(s.mapped))
			}
		}
	}
	return answer, nil
}

// stale lists all slots, if one has led to what is not the name's any more, or if that is
// not known: connections may go there by any of them, since a slot can have been pointed
// elsewhere while where it led before was still the name's.
func (c *change) stale(e *entry, unknown bool) (all []netip.Addr) {
	for _, s := range e.slots {
		unknown = unknown || s.real != (ip{}) && !leads(c.reals, s.real)
		all = append(all, e.addr(s.mapped))
	}
	if !unknown {
		return nil
	}
	return all
}

// aim has the first k slots lead to one of the real addresses each, and the others to any,
// and leaves alone what does so already. It returns the set of those that it has changed.
func aim(slots []slot, reals []netip.Addr, k int) (changed uint64) {
	covered := make(map[ip]bool, len(reals)) // of the real ones: whether one of the first k leads there
	for _, a := range reals {
		covered[a.As16()] = false
	}
	var astray []int
	for i := range slots {
		taken, known := covered[slots[i].real]
		switch {
		case i >= k && known:
		case i < k && known && !taken:
			covered[slots[i].real] = true
		default:
			astray = append(astray, i)
		}
	}
	next := 0
	for _, i := range astray {
		changed |= 1 << i
		if i >= k {
			slots[i].real = reals[i%len(reals)].As16()
			continue
		}
		for covered[reals[next].As16()] {
			next++
		}
		slots[i].real = reals[next].As16()
		next++
	}
	return changed
}
