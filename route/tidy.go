package route

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	// rests is the least time that an address is nobody's before it is somebody else's.
	rests = 60

	// settles is how long after a start all names count as just used. Nobody knows what
	// clients still remember, and the clock may have been wrong.
	settles = 3600

	mostTidied = 20_000 // names, at once
	perUnmap   = 1000
)

// Tidy takes their addresses from names that have not been asked for in so long, to which
// nothing is connected and nobody may connect any more: who has remembered one would be let
// through to the next name's server. What connects to such an address nevertheless, while
// it is being taken, is ended. A later call, after a minute at least, that finds nothing
// connected makes the address free for another name. It is to be called every few minutes.
// No grant may last for longer than unused.
//
// It returns how many addresses have become free.
func (b *Book) Tidy(ctx context.Context, unused time.Duration) (freed int, err error) {
	b.tidying.Lock()
	defer b.tidying.Unlock()
	if err := b.writeUse(ctx); err != nil {
		return 0, err
	}
	now := b.since()
	seconds := int32(unused / time.Second)
	old := b.unused(now, seconds)
	b.mu.Lock()
	idle := len(old)+len(b.leaving)+len(b.resting) == 0
	b.mu.Unlock()
	if idle {
		return 0, nil
	}
	busy, err := b.look(ctx, old)
	if err != nil {
		return 0, err
	}
	freed, err = b.release(ctx, now, busy)
	return freed, errors.Join(err, b.giveBack(ctx, now, seconds, old))
}

// unused lists entries that have not been answered for so long, and when they were.
func (b *Book) unused(now, long int32) map[*entry]int32 {
	old := make(map[*entry]int32)
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			if len(old) == mostTidied {
				break
			}
			e.mu.Lock()
			if len(e.slots) > 0 && e.turn == nil && e.used <= now-long && (e.used > 0 || now >= settles) {
				old[e] = e.used
			}
			e.mu.Unlock()
		}
		s.mu.RUnlock()
	}
	return old
}

// look takes those from old to which something is connected, or may connect, and ends what
// is connected to resting addresses. It returns those of them of which one was so.
func (b *Book) look(ctx context.Context, old map[*entry]int32) (busy map[ip]struct{}, err error) {
	busy = make(map[ip]struct{})
	err = b.router.Granted(ctx, func(mapped netip.Addr) {
		e := b.pages[version(mapped.Unmap())].get(mapped.As16())
		if e == isResting {
			busy[mapped.As16()] = struct{}{}
		}
		delete(old, e)
	})
	if err != nil {
		return nil, err
	}
	err = b.router.Connections(ctx, func(mapped, _ netip.Addr) bool {
		e := b.pages[version(mapped.Unmap())].get(mapped.As16())
		if e == isResting {
			busy[mapped.As16()] = struct{}{}
			return true
		}
		delete(old, e)
		return false
	})
	return busy, err
}

// release makes addresses free that have rested for long enough.
func (b *Book) release(ctx context.Context, now int32, busy map[ip]struct{}) (int, error) {
	b.mu.Lock()
	var rested []rest
	for _, r := range b.resting {
		if _, ok := busy[r.addr]; !ok && !r.mapped && now >= r.at && len(rested) < mostTidied {
			r.at = now
			rested = append(rested, r)
		}
	}
	b.mu.Unlock()
	if rested == nil {
		return 0, nil
	}
	if err := b.putUnowned(ctx, kindFree, rested); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	done := make(map[ip]struct{}, len(rested))
	for _, r := range rested {
		done[r.addr] = struct{}{}
		b.freeLocked(versionOf(r.addr), r)
	}
	b.resting = slices.DeleteFunc(b.resting, func(r rest) bool { _, ok := done[r.addr]; return ok })
	return len(rested), nil
}

// giveBack has the addresses of old names, and those that no name has a use for, rest. The
// latter were answered until a moment ago, so they rest until what clients have been granted
// has ended, too.
func (b *Book) giveBack(ctx context.Context, now, unused int32, old map[*entry]int32) error {
	longest := func(a, b *entry) int {
		return cmp.Or(cmp.Compare(old[a], old[b]), strings.Compare(a.key, b.key))
	}
	for _, e := range slices.SortedFunc(maps.Keys(old), longest) {
		b.bury(e, now-unused)
	}
	b.mu.Lock()
	leaving := b.leaving[:min(len(b.leaving), MaxSlots*mostTidied)]
	b.mu.Unlock()
	if len(leaving) > 0 {
		resting := make([]rest, len(leaving))
		for i, h := range leaving {
			resting[i] = rest{addr: h.addr, at: now + rests, mapped: true}
			if h.late {
				resting[i].at = now + max(rests, unused)
			}
		}
		if err := b.putUnowned(ctx, kindRests, resting); err != nil {
			return err
		}
		b.mu.Lock()
		for _, h := range leaving {
			b.pages[h.version].set(h.addr, isResting)
			b.unshareLocked(h)
		}
		b.resting = append(b.resting, resting...)
		if b.leaving = b.leaving[len(leaving):]; len(b.leaving) == 0 {
			b.leaving = nil
		}
		b.mu.Unlock()
	}
	return b.unmap(ctx)
}

// bury takes an entry out of the book, unless it has been answered again.
func (b *Book) bury(e *entry, until int32) {
	if e.tryTake() {
		b.buryTaken(e, until)
		e.release()
	}
}

// buryTaken is bury for who has its turn.
func (b *Book) buryTaken(e *entry, until int32) {
	s := b.shard([]byte(e.key))
	s.mu.Lock()
	defer s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.used > until {
		return
	}
	e.dead = true
	delete(s.entries, e.key)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaveLocked(e, e.slots, false)
}

// unmap ends the translation of addresses that rest, and what is connected to them.
func (b *Book) unmap(ctx context.Context) error {
	var mapped []netip.Addr
	b.mu.Lock()
	for _, r := range b.resting {
		if r.mapped {
			mapped = append(mapped, addrOf(versionOf(r.addr), r.addr))
		}
	}
	b.mu.Unlock()
	if mapped == nil {
		return nil
	}
	for some := range slices.Chunk(mapped, perUnmap) {
		if err := b.router.Unmap(ctx, some); err != nil {
			return err
		}
	}
	now := b.since()
	b.mu.Lock()
	for i := range b.resting {
		if r := &b.resting[i]; r.mapped {
			r.mapped, r.at = false, max(r.at, now+rests)
			b.count[versionOf(r.addr)]--
		}
	}
	b.mu.Unlock()
	_, err := b.look(ctx, nil)
	return err
}

// putUnowned writes that addresses rest or are free.
func (b *Book) putUnowned(ctx context.Context, kind byte, all []rest) error {
	zero := b.now().Add(-time.Duration(b.since()) * time.Second)
	for some := range slices.Chunk(all, usePerTx) {
		err := b.store.do(ctx, func(tx *bolt.Tx) error {
			for _, r := range some {
				if err := putUnowned(tx, versionOf(r.addr), r.addr, kind, zero.Add(time.Duration(r.at)*time.Second)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
