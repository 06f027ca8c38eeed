// Package fake enforces nothing: it keeps rules and grants in memory, for tests
// that look at them, count transactions and make them fail.
package fake

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// Backend is the backend in memory. Its kernel is a map: a grant stands in it
// until the clock says that it has run out, which every call looks for.
type Backend struct {
	inForce *backend.InForce
	events  backend.Observer
	now     func() time.Time

	mu           sync.Mutex
	changed      chan struct{} // closed, and made anew, when what Grant waits for may have come
	rules        *backend.Rules
	kernel       map[backend.Key]held
	denied       denied
	renewals     int // of grants, so far
	transactions int
	refusal      error
	stalled      bool
	waiting      int // calls
	closed       bool

	mapped      map[netip.Addr]backend.Mapping
	connections []connection
	epoch       atomic.Uint64
	live        []backend.Connection
	young       bool
	left        []backend.Origin // in what was taken over
}

var _ backend.Backend = (*Backend)(nil)

// held is a grant in the kernel.
type held struct {
	until   time.Time
	name    uint64 // that it counts for; 0 is none
	renewed int    // when, in renewals
}

// New makes a backend that tells the time by now.
func New(inForce *backend.InForce, events backend.Observer, now func() time.Time) *Backend {
	return &Backend{
		inForce: inForce, events: events, now: now,
		changed: make(chan struct{}), kernel: make(map[backend.Key]held), mapped: make(map[netip.Addr]backend.Mapping),
	}
}

// TakeOver takes over what another one, which has been closed, has left in force. It has to be
// called before Open.
func (b *Backend) TakeOver(of *Backend) {
	of.mu.Lock()
	defer of.mu.Unlock()
	if of.rules != nil {
		b.left = of.rules.Origins
	}
	of.expireLocked()
	for k, g := range of.kernel {
		b.kernel[k] = g
		b.inForce.Set(k, g.until, expiry.Accounts{})
	}
	b.mapped, b.connections = of.mapped, of.connections
}

// Refuse makes Check, Open, Grant and what a [backend.Router] has fail with err from now on; nil ends that.
func (b *Backend) Refuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusal = err
}

// Stall makes every Grant, Map and Unmap wait until release is called.
func (b *Backend) Stall() (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stalled = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.stalled = false
		b.wakeLocked()
	}
}

// Waiting returns how many calls wait: for the first rules, or because of Stall.
func (b *Backend) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}

// Transactions returns how many Grants and Maps have changed something so far.
func (b *Backend) Transactions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.transactions
}

// Check implements [backend.Backend].
func (b *Backend) Check(backend.Rules) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unableLocked()
}

// Open implements [backend.Backend].
func (b *Backend) Open(r backend.Rules) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.unableLocked(); err != nil {
		b.events.Failed("open", err)
		return err
	}
	if b.rules != nil && b.rules.Table != r.Table {
		return fmt.Errorf("the table cannot be renamed from %q to %q while running", b.rules.Table, r.Table)
	}
	for k := range b.kernel {
		if !r.Know(k.Scope) {
			b.inForce.Delete(k)
			delete(b.kernel, k)
		}
	}
	b.forgetLocked(&r)
	b.rules = &r
	b.endDeniedLocked()
	b.evictLocked(b.surplusLocked())
	b.events.Enforcing(true)
	b.wakeLocked()
	return nil
}

// Grant implements [backend.Backend].
func (b *Backend) Grant(ctx context.Context, grants []backend.Grant, within time.Duration) error {
	return b.whenOpen(ctx, within, func() error { return b.commitLocked(grants) })
}

// whenOpen does something, with the lock, as soon as rules are in force and nobody stalls.
func (b *Backend) whenOpen(ctx context.Context, within time.Duration, do func() error) error {
	late := time.After(within)
	for {
		b.mu.Lock()
		if b.closed || b.rules != nil && !b.stalled {
			defer b.mu.Unlock()
			return do()
		}
		changed := b.changed
		b.waiting++
		b.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-late:
			err = backend.ErrLate
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		b.mu.Lock()
		b.waiting--
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// List implements [backend.Backend].
func (b *Backend) List() ([]backend.Grant, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, backend.ErrClosed
	}
	b.expireLocked()
	var list []backend.Grant
	for _, k := range b.keysLocked() {
		list = append(list, k.Grant(b.kernel[k].until))
	}
	return list, nil
}

// Close implements [backend.Backend].
func (b *Backend) Close(leave backend.Leave) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	if leave == backend.Remove {
		b.rules = nil
		clear(b.kernel)
		clear(b.mapped)
	}
	b.events.Enforcing(false)
	b.wakeLocked()
	return nil
}

// String lists the rules and the grants, with how long they last.
func (b *Backend) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rules == nil {
		return "nothing is guarded\n"
	}
	b.expireLocked()
	var text strings.Builder
	line := func(what string, value any) { fmt.Fprintf(&text, "\t%s %v\n", what, value) }
	r := b.rules
	fmt.Fprintf(&text, "table %s\n", r.Table)
	if r.Local {
		line("guards", "output")
	}
	if r.Gateway {
		line("guards", "forward")
	}
	for _, name := range r.Interfaces {
		line("only from", name)
	}
	if r.AuditLocal {
		line("audits", "output")
	}
	if r.AuditGateway {
		line("audits", "forward")
	}
	b.endDeniedLocked()
	if trial := b.denied.trial; !trial.IsZero() {
		line("tries to enforce for", trial.Sub(b.now()))
	}
	for _, p := range r.Allowed {
		line("allows", p)
	}
	for _, p := range r.AllowedLocal {
		line("allows output to", p)
	}
	for _, p := range r.AllowedGateway {
		line("allows forward to", p)
	}
	for _, class := range slices.Sorted(maps.Keys(r.Classes)) {
		p := r.Classes[class]
		line(fmt.Sprintf("class %d", class), p.String())
		for _, u := range p.Units {
			if u.ID != 0 {
				line(u.Path, u.ID)
			}
		}
	}
	for _, up := range r.Upstream {
		line("opens to CoreDNS", up)
	}
	if r.Capture != 0 {
		line("captures DNS for port", r.Capture)
	}
	for _, route := range r.Routes {
		line("routes", route.String())
	}
	for _, m := range b.mappingsLocked() {
		line("maps", fmt.Sprint(m.Mapped, " to ", m.Real, " by ", m.Route))
	}
	for _, k := range b.keysLocked() {
		holder := ""
		if k.Holder != backend.Everyone {
			holder = fmt.Sprint(" to ", k.Scope)
		}
		line("grants", fmt.Sprint(k.Addr(), holder, " for ", b.kernel[k].until.Sub(b.now())))
	}
	return text.String()
}

func (b *Backend) wakeLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *Backend) unableLocked() error {
	if b.closed {
		return backend.ErrClosed
	}
	return b.refusal
}

// commitLocked makes one transaction: all of the grants or none.
func (b *Backend) commitLocked(grants []backend.Grant) error {
	b.expireLocked()
	if err := b.unableLocked(); err != nil {
		if err != backend.ErrClosed {
			b.events.Failed("commit", err)
		}
		return err
	}
	now := b.now()
	wanted := make(map[backend.Key]held)
	var order []backend.Key // of wanted
	made, renewed := 0, 0
	for _, g := range grants {
		if err := b.rules.Grantable(g); err != nil {
			return err
		}
		k := g.Key()
		w, again := wanted[k]
		has, present := b.kernel[k]
		if !again {
			if w = has; !present {
				w = held{until: now, name: g.Name}
			}
		}
		if g.Until.After(w.until) {
			w.until = g.Until
		}
		if w.name != g.Name {
			w.name = 0
		}
		if w.until.After(now) {
			if wanted[k] = w; !again {
				order = append(order, k)
			}
		}
	}
	victims, err := b.victimsLocked(order, wanted)
	if err != nil {
		return err
	}
	b.evictLocked(victims)
	for _, k := range order {
		w := wanted[k]
		has, present := b.kernel[k]
		b.renewals++
		w.renewed = b.renewals
		b.kernel[k] = w
		b.inForce.Set(k, w.until, expiry.Accounts{})
		switch {
		case !present:
			made++
		case w.until.After(has.until):
			renewed++
		}
	}
	if made+renewed == 0 {
		return nil
	}
	b.transactions++
	b.events.Committed(made, renewed, len(victims), 0)
	b.liveLocked()
	return nil
}

// evictLocked removes what has to make room, out of the table first.
func (b *Backend) evictLocked(victims []backend.Key) {
	for _, k := range victims {
		b.inForce.Delete(k)
		delete(b.kernel, k)
	}
	if len(victims) > 0 {
		b.events.Evicted(len(victims))
	}
}

// expireLocked removes what has run out, out of the table first.
func (b *Backend) expireLocked() {
	ended := b.inForce.Due(b.now(), len(b.kernel), nil)
	for _, e := range ended {
		delete(b.kernel, e.Key)
	}
	if len(ended) > 0 {
		b.events.Expired(len(ended))
		b.liveLocked()
	}
}

func (b *Backend) liveLocked() { b.events.Live(b.sizesLocked()) }

func (b *Backend) sizesLocked() (ipv4, ipv6 int) {
	for k := range b.kernel {
		if k.Is4() {
			ipv4++
		}
	}
	return ipv4, len(b.kernel) - ipv4
}

func (b *Backend) keysLocked() []backend.Key {
	return slices.SortedFunc(maps.Keys(b.kernel), func(k, l backend.Key) int { return k.Addr().Compare(l.Addr()) })
}
