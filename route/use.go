package route

import (
	"context"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Times of use, and where addresses lead, are written now and then. Who loses the last of
// them takes a name to be unused for a little longer than it was.
const (
	useCoarse = 3600 // seconds: what is in use all the time is written so often
	usePerTx  = 2000
)

// writeUse writes what has changed.
func (b *Book) writeUse(ctx context.Context) error {
	var some []*entry
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			if e.unsaved() {
				some = append(some, e)
			}
		}
		s.mu.RUnlock()
		for len(some) >= usePerTx || len(some) > 0 && i == len(b.shards)-1 {
			n := min(len(some), usePerTx)
			if err := b.writeUseOf(ctx, some[:n]); err != nil {
				return err
			}
			some = some[n:]
		}
	}
	return nil
}

func (e *entry) unsaved() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.slots) > 0 && (e.dirty || int64(e.used)-useCoarse >= int64(e.saved))
}

func (b *Book) writeUseOf(ctx context.Context, entries []*entry) error {
	err := b.store.do(ctx, func(tx *bolt.Tx) error {
		zero := b.now().Add(-time.Duration(b.since()) * time.Second)
		for _, e := range entries {
			if err := e.writeUse(tx, zero); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for _, e := range entries {
			e.mu.Lock()
			e.dirty = true
			e.mu.Unlock()
		}
	}
	return err
}

func (e *entry) writeUse(tx *bolt.Tx, zero time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead {
		return nil
	}
	for _, s := range e.slots {
		if err := putUse(tx, e.version(), s.mapped, zero.Add(time.Duration(e.used)*time.Second), s.real); err != nil {
			return err
		}
	}
	e.saved, e.dirty = e.used, false
	return nil
}
