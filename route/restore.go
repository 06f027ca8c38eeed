package route

import (
	"context"
	"errors"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Restore maps again what was in force, to where it led. It is for a reload after which the
// router knows nothing of it any more; otherwise each name would do so with its next
// answer, and clients that have one would be refused until then.
func (b *Book) Restore(ctx context.Context) error {
	b.tidying.Lock()
	defer b.tidying.Unlock()
	var all []*entry
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			e.mu.Lock()
			if e.forced() {
				all = append(all, e)
			}
			e.mu.Unlock()
		}
		s.mu.RUnlock()
	}
	for some := range slices.Chunk(all, perMove) {
		err := b.restore(ctx, some)
		if errors.Is(err, backend.ErrRoute) { // some name has no route any more
			err = nil
			for _, one := range some {
				if failed := b.restore(ctx, []*entry{one}); failed != nil && !errors.Is(failed, backend.ErrRoute) {
					err = failed
					break
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Book) restore(ctx context.Context, entries []*entry) error {
	var mappings []backend.Mapping
	force := b.router.Epoch() + 1
	taken := make([]*entry, 0, len(entries))
	defer func() {
		for _, e := range taken {
			e.release()
		}
	}()
	for _, e := range entries {
		switch err := b.takeSettled(ctx, e); {
		case err == errDead:
			continue
		case err != nil:
			return err
		}
		if !e.forced() { // an answer has failed meanwhile, and the next one has to say so
			e.release()
			continue
		}
		taken = append(taken, e)
		route, _ := e.names()
		for _, s := range e.slots {
			if s.real != (ip{}) {
				mappings = append(mappings, backend.Mapping{Route: route, Mapped: e.addr(s.mapped), Real: e.addr(s.real)})
			}
		}
	}
	if mappings == nil {
		return nil
	}
	if err := b.router.Map(ctx, mappings, mapWait); err != nil {
		return err
	}
	for _, e := range taken {
		e.mu.Lock()
		e.force = force
		e.mu.Unlock()
	}
	return nil
}
