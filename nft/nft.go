// Package nft enforces grants with nftables: one table with the guard's rules
// and sets of grants whose elements the kernel expires by itself.
package nft

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// Backend is the nftables backend. Its writer owns the connection to the kernel
// and does everything that changes something there, on the goroutine of whoever
// has the turn: an answer that finds nobody at work commits by itself.
type Backend struct {
	inForce *backend.InForce
	events  backend.Observer
	epoch   atomic.Uint64 // see Epoch

	turn   sync.Mutex
	writer writer // with the turn only

	wake chan struct{} // requests are pending and nobody has the turn
	stop chan struct{}

	mu      sync.Mutex
	pending []*request // for the next transaction
	taken   []*request // by whoever has the turn
	waiting int        // grants and mappings in pending
	clock   *time.Timer
	ticking bool // the clock is set
	closed  bool
}

var _ backend.Backend = (*Backend)(nil)

// A request is the grants of one answer, or its mappings, waiting for the kernel.
type request struct {
	grants   []backend.Grant
	mappings []backend.Mapping
	unmap    []netip.Addr

	again  []expiry.Ended[backend.Key] // grants to be restored, instead
	lost   []ip                        // mappings to be restored
	unbind []ip                        // addresses that no connection is left of

	late time.Time  // nobody waits any longer; never, where it is zero
	done chan error // holds one; nil where nobody waits
}

func (r *request) size() int { return len(r.grants) + len(r.mappings) + len(r.unmap) + len(r.unbind) }

// settle tells the result to whoever waits. Only the first one counts.
func (r *request) settle(err error) {
	select {
	case r.done <- err:
	default:
	}
}

// maxWaiting bounds the grants and mappings that wait: a kernel that answers nobody must not
// cost memory without end.
const maxWaiting = 1 << 16

// New starts what looks after the rules; it touches nothing before Open. The
// table of what is in force must have no other writer.
func New(inForce *backend.InForce, events backend.Observer) *Backend {
	b := &Backend{inForce: inForce, events: events, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	b.writer.Backend, b.writer.ownership, b.writer.seed = b, tableOwned, maphash.MakeSeed()
	b.clock = time.AfterFunc(time.Hour, b.settleLate)
	b.clock.Stop()
	go b.run()
	return b
}

// run serves those who wait while somebody else has the turn, and watches.
func (b *Backend) run() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-b.wake:
			b.turn.Lock()
			b.writer.company = expectCompany
			b.writer.serve()
		case <-tick.C:
			b.turn.Lock()
			b.writer.watch()
			b.writer.sweep()
		}
		b.endTurn()
	}
}

// endTurn sees to it that none who came meanwhile waits for ever.
func (b *Backend) endTurn() {
	opened := b.writer.opened // before, they wait for Open
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.taken)
	b.taken = b.taken[:0]
	b.turn.Unlock() // from here on, whoever comes can have it
	if opened && len(b.pending) > 0 {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// Check implements [backend.Backend]: the kernel itself tries the transaction,
// up to the commit.
func (b *Backend) Check(r backend.Rules) error {
	return b.do(func(w *writer) error { return w.check(r) })
}

// Open implements [backend.Backend].
func (b *Backend) Open(r backend.Rules) error {
	return b.do(func(w *writer) error { return w.open(r) })
}

// Grant implements [backend.Backend]. Concurrent calls share transactions.
func (b *Backend) Grant(ctx context.Context, grants []backend.Grant, within time.Duration) error {
	return b.ask(ctx, &request{grants: grants, late: time.Now().Add(within), done: make(chan error, 1)})
}

// ask has a request served, and returns what came of it.
func (b *Backend) ask(ctx context.Context, r *request) error {
	if err := b.enqueue(r); err != nil {
		return err
	}
	if b.turn.TryLock() {
		b.lead()
		select {
		case err := <-r.done:
			return err
		default: // others came first
		}
	}
	if ctx.Done() == nil { // most have none, and a plain receive costs half as much
		return <-r.done
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lead commits what is pending. A panic ends the process, as it would in run:
// CoreDNS recovers from those of queries, and nobody would have the turn again.
func (b *Backend) lead() {
	defer func() {
		if r := recover(); r != nil {
			go panic(fmt.Sprintf("%v\n%s", r, debug.Stack()))
			select {}
		}
	}()
	b.writer.serve()
	b.endTurn()
}

// enqueue lets whoever has the turn next find the request.
func (b *Backend) enqueue(r *request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return backend.ErrClosed
	case b.waiting > 0 && b.waiting+r.size() > maxWaiting:
		return backend.ErrBusy
	}
	b.pending = append(b.pending, r)
	b.waiting += r.size()
	if !b.ticking {
		b.ticking = true
		b.clock.Reset(lateInterval)
	}
	return nil
}

// lateInterval is how often the waiting are looked at, and so how late ErrLate
// may be. One clock for all costs an answer less than a timer of its own.
const lateInterval = 20 * time.Millisecond

// settleLate lets those go who have waited long enough, whatever the kernel does.
func (b *Backend) settleLate() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, waiting := range [][]*request{b.pending, b.taken} {
		for _, r := range waiting {
			if !r.late.IsZero() && now.After(r.late) {
				r.settle(backend.ErrLate)
			}
		}
	}
	if b.ticking = len(b.pending)+len(b.taken) > 0; b.ticking {
		b.clock.Reset(lateInterval)
	}
}

// List implements [backend.Backend] by dumping the kernel's sets.
func (b *Backend) List() ([]backend.Grant, error) {
	var rules backend.Rules
	if err := b.do(func(w *writer) error { rules = w.rules; return nil }); err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer s.close()
	var grants []backend.Grant
	for _, set := range newGrantSets(rules).all() {
		if err := s.dump(rules.Table, set, func(part []element) bool {
			now := time.Now()
			for _, e := range part {
				grants = append(grants, e.key.Grant(now.Add(e.left)))
			}
			return true
		}); err != nil {
			return nil, err
		}
	}
	return grants, nil
}

// Close implements [backend.Backend].
func (b *Backend) Close(leave backend.Leave) error {
	err := b.do(func(w *writer) error { return w.close(leave) })
	if errors.Is(err, backend.ErrClosed) {
		return nil
	}
	b.mu.Lock()
	b.closed = true
	left := b.pending
	b.pending = nil
	b.mu.Unlock()
	for _, r := range left {
		r.settle(backend.ErrClosed)
	}
	return err
}

// do runs f with the turn.
func (b *Backend) do(f func(*writer) error) error {
	b.turn.Lock()
	defer b.endTurn()
	select {
	case <-b.stop:
		return backend.ErrClosed
	default:
		return f(&b.writer)
	}
}

// take returns requests that together have about limit grants and mappings.
func (b *Backend) take(limit int) []*request {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, size := 0, 0
	for n < len(b.pending) && size < limit {
		size += b.pending[n].size()
		n++
	}
	b.taken = append(b.taken[:0], b.pending[:n]...)
	b.pending = slices.Delete(b.pending, 0, n)
	b.waiting -= size
	return b.taken
}
