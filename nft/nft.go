// Package nft enforces grants with nftables: one table with the guard's rules
// and two sets whose elements the kernel expires by itself.
package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Backend is the nftables backend. One goroutine, the writer, owns the
// connection to the kernel and does everything that changes something there.
type Backend struct {
	inForce *backend.InForce
	events  backend.Observer

	// wake says that requests are pending; control carries work for the
	// writer; stop ends what runs beside it.
	wake    chan struct{}
	control chan func(*writer)
	stop    chan struct{}
	stopped chan struct{}

	mu      sync.Mutex
	pending []*request
	waiting int // grants in pending
	closed  bool
}

var _ backend.Backend = (*Backend)(nil)

// A request is the grants of one answer, waiting for the kernel.
type request struct {
	grants []backend.Grant
	done   chan error // holds one; nil where nobody waits
}

func (r *request) settle(err error) {
	if r.done != nil {
		r.done <- err
	}
}

// maxWaiting bounds the grants that wait: a kernel that answers nobody must not
// cost memory without end.
const maxWaiting = 1 << 16

// New starts the writer; it touches nothing before Open. The table of what is in
// force must have no other writer.
func New(inForce *backend.InForce, events backend.Observer) *Backend {
	b := &Backend{
		inForce: inForce, events: events,
		wake: make(chan struct{}, 1), control: make(chan func(*writer)),
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	go b.run()
	return b
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
func (b *Backend) Grant(ctx context.Context, grants []backend.Grant) error {
	r := &request{grants: grants, done: make(chan error, 1)}
	if err := b.enqueue(r); err != nil {
		return err
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enqueue lets the writer find the request.
func (b *Backend) enqueue(r *request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return backend.ErrClosed
	case b.waiting > 0 && b.waiting+len(r.grants) > maxWaiting:
		return backend.ErrBusy
	}
	b.pending = append(b.pending, r)
	b.waiting += len(r.grants)
	b.nudge()
	return nil
}

// List implements [backend.Backend] by dumping the kernel's sets.
func (b *Backend) List() ([]backend.Grant, error) {
	var table string
	if err := b.do(func(w *writer) error { table = w.rules.Table; return nil }); err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer s.close()
	var grants []backend.Grant
	for _, ipv4 := range []bool{true, false} {
		if err := s.dump(table, ipv4, func(part []element) bool {
			now := time.Now()
			for _, e := range part {
				grants = append(grants, backend.Grant{Addr: e.key.Addr(), Until: now.Add(e.left)})
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

// do runs f on the writer's goroutine.
func (b *Backend) do(f func(*writer) error) error {
	result := make(chan error, 1)
	select {
	case b.control <- func(w *writer) { result <- f(w) }:
		return <-result
	case <-b.stopped:
		return backend.ErrClosed
	}
}

// nudge wakes the writer.
func (b *Backend) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns requests that together have about limit grants.
func (b *Backend) take(limit int) (reqs []*request, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, grants := 0, 0
	for n < len(b.pending) && grants < limit {
		grants += len(b.pending[n].grants)
		n++
	}
	if n == len(b.pending) {
		reqs, b.pending = b.pending, nil
	} else {
		reqs, b.pending = b.pending[:n:n], b.pending[n:]
	}
	b.waiting -= grants
	return reqs, len(b.pending) > 0
}

// explain turns errnos into what an administrator can act on.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return &backend.PermissionError{Need: "CAP_NET_ADMIN", Err: err}
	case errors.Is(err, unix.ENFILE):
		return backend.ErrFull
	case errors.Is(err, unix.ERESTART):
		return fmt.Errorf("other programs change their firewall rules without a pause: %w", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return &unsupportedError{err}
	case errors.Is(err, os.ErrNotExist):
		return &missingError{err}
	}
	return err
}

// unsupportedError means a kernel without what the rules need.
type unsupportedError struct{ err error }

func (e *unsupportedError) Error() string {
	return "this kernel cannot do it: " + e.err.Error() + " (Linux 5.10 or later with nf_tables, nft_ct, nft_reject_inet is needed)"
}
func (e *unsupportedError) Unwrap() error { return e.err }

// missingError means that something the rules refer to is not there.
type missingError struct{ err error }

func (e *missingError) Error() string {
	return e.err.Error() + ": the table is gone, or the kernel lacks a module (nf_tables, nft_ct, nft_reject_inet)"
}
func (e *missingError) Unwrap() error { return e.err }
