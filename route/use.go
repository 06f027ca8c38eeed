package route

import (
	"bytes"
	"context"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Times of use, where addresses lead, and which name has the route, are written now and then. Who loses the last of
// them takes a name to be unused for a little longer than it was.
const (
	useCoarse = 3600 // seconds: what is in use all the time is written so often
	usePerTx  = 2000
)

// writeUse writes what has changed, in the order of addresses: those that stand side by
// side in the file are written together.
func (b *Book) writeUse(ctx context.Context) error {
	type placed struct {
		*entry
		first ip
	}
	var some []placed
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			if first, ok := e.unsaved(); ok {
				some = append(some, placed{e, first})
			}
		}
		s.mu.RUnlock()
	}
	slices.SortFunc(some, func(a, b placed) int { return bytes.Compare(a.first[:], b.first[:]) })
	for part := range slices.Chunk(some, usePerTx) {
		entries := make([]*entry, len(part))
		for i, p := range part {
			entries[i] = p.entry
		}
		if err := b.writeUseOf(ctx, entries); err != nil {
			return err
		}
	}
	return nil
}

// unsaved reports whether an entry has changed, and its first address.
func (e *entry) unsaved() (first ip, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.slots) == 0 || !e.dirty && int64(e.used)-useCoarse < int64(e.saved) {
		return first, false
	}
	return e.slots[0].mapped, true
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
		if err := putUse(tx, e.version(), s.mapped, zero.Add(time.Duration(e.used)*time.Second), s.real, e.by); err != nil {
			return err
		}
	}
	e.saved, e.dirty = e.used, false
	return nil
}
