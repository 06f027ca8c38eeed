package route

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"slices"
)

// Shun says that somebody may connect to these addresses because of what was said by
// another book, or by none that is left. No name has them any more when it has returned, and
// none gets them before a Tidy finds that nobody may.
func (b *Book) Shun(ctx context.Context, addrs []netip.Addr) error {
	b.tidying.Lock()
	defer b.tidying.Unlock()
	now := b.since()
	var shunned []rest
	owners := make(map[*entry]struct{})
	b.mu.Lock()
	for _, addr := range addrs {
		v, a := version(addr), addr.As16()
		switch e := b.pages[v].get(a); {
		case e == isResting:
			continue
		case e.real():
			owners[e] = struct{}{}
			continue
		case e == isFree:
			b.withdrawLocked(v, a)
		}
		if s := b.spaceOfLocked(v, a); s != nil {
			s.free -= min(s.free, 1)
		}
		b.pages[v].set(a, isResting)
		shunned = append(shunned, rest{addr: a, at: now + rests})
	}
	b.resting = append(b.resting, shunned...)
	b.mu.Unlock()
	for e := range owners {
		switch err := b.takeSettled(ctx, e); {
		case errors.Is(err, errDead):
		case err != nil:
			return err
		default:
			b.buryTaken(e, math.MaxInt32)
			for _, s := range e.slots {
				shunned = append(shunned, rest{addr: s.mapped, at: now + rests}) // Tidy does it as well, if it comes to that
			}
			e.release()
		}
	}
	return b.putUnowned(ctx, kindRests, shunned)
}

// withdrawLocked takes an address off those that anybody may have.
func (b *Book) withdrawLocked(version int, a ip) {
	is := func(r rest) bool { return r.addr == a }
	if s := b.spaceOfLocked(version, a); s != nil {
		s.back = slices.DeleteFunc(s.back, is)
	}
	b.loose[version] = slices.DeleteFunc(b.loose[version], is)
}
