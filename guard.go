package ipdestinationguard

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"go4.org/netipx"
	"golang.org/x/time/rate"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// guard is the engine: one a process, shared by all server blocks, outliving
// reloads. It turns the addresses of answers into grants that are in force.
type guard struct {
	inForce  *backend.InForce
	backend  backend.Backend
	now      func() time.Time
	host     host
	settings atomic.Pointer[settings]
	onLink   atomic.Pointer[[]netip.Prefix] // networks of this machine's own wires
	seed     maphash.Seed                   // of names
	history  *why.History

	withholdings withholdings

	arming    sync.Mutex
	rules     backend.Rules   // in force; at first only the origins that others have left
	before    []backend.Route // that still are, besides those of the settings
	routed    *netipx.IPSet   // addresses that were of routes, while a change is under way; else nil
	classes   []string        // by number, in words; the first is any
	units     units           // nil unless the Corefile names some
	unitPaths []string
	switched  switched    // by people, while running
	trial     *time.Timer // logs the end of one; nil is none
	denied    *denied     // nil where the backend does not count

	// What the machine is asked with: around from when it is armed first, askers
	// from when it is armed with a scope of applications first.
	around surroundings
	own    func(netip.Addr) bool // whether an address is this machine's; nil is never
	askers askers

	router  backend.Router // the backend, if it is one
	routing atomic.Pointer[routing]
	givers  givers
	books   books
	cuts    *cuts
	unused  atomic.Int64 // the longest that any settings have had: see settings.unused

	// What works on routes, from when there are any.
	working  sync.WaitGroup
	stopWork context.CancelFunc
	interval time.Duration // of tidying

	up        chan struct{} // closed when it is armed first
	enforcing atomic.Bool   // the rules stand in the kernel
	started   time.Time
	serving   sync.Mutex
	socket    *admin.Server // for people; nil is none

	ending  sync.Mutex
	closed  atomic.Bool // nothing is granted any more
	removed atomic.Bool // on_exit remove has been carried out, or somebody has disarmed: nothing is guarded

	failures rate.Sometimes // for the log
	repairs  rate.Sometimes
	strips   rate.Sometimes
	overlaps rate.Sometimes
}

// newGuard makes a guard that grants nothing before it is armed.
func newGuard(newBackend func(*backend.InForce, backend.Observer) backend.Backend, host host, now func() time.Time) *guard {
	g := &guard{
		inForce:  expiry.NewTable[backend.Key](now()),
		now:      now,
		started:  now(),
		host:     host,
		seed:     maphash.MakeSeed(),
		history:  why.NewHistory(why.Size),
		classes:  []string{""},
		cuts:     newCuts(),
		interval: tidyInterval,
		up:       make(chan struct{}),
		failures: rate.Sometimes{First: 1, Interval: logInterval},
		repairs:  rate.Sometimes{First: 1, Interval: logInterval},
		strips:   rate.Sometimes{First: 1, Interval: logInterval},
		overlaps: rate.Sometimes{First: 1, Interval: time.Hour},
	}
	g.settings.Store(&defaultSettings)
	g.routing.Store(newRouting())
	g.backend = newBackend(g.inForce, (*observer)(g))
	g.router, _ = g.backend.(backend.Router)
	return g
}

// await returns once the guard is armed: before, nobody knows whose grants an
// answer makes.
func (g *guard) await(ctx context.Context) error {
	if g.armed() {
		return nil
	}
	late := time.NewTimer(defaultSettings.hold)
	defer late.Stop()
	select {
	case <-g.up:
		return nil
	case <-late.C:
		return backend.ErrLate
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// armed reports whether rules have ever been put in force.
func (g *guard) armed() bool { return g.settings.Load() != &defaultSettings }

// close ends the guard's work. Answers that come after it get SERVFAIL, or pass
// when nothing is refused any more.
func (g *guard) close() error { return g.end(g.settings.Load().onExit) }

func (g *guard) end(leave backend.Leave) error {
	g.ending.Lock()
	defer g.ending.Unlock()
	if g.closed.Load() {
		return nil
	}
	g.arming.Lock()
	if g.stopWork != nil {
		g.stopWork()
	}
	g.arming.Unlock()
	g.working.Wait() // they ask the backend, and the books
	g.closeBooks(nil)
	err := g.backend.Close(leave)
	if err == nil && leave == backend.Remove {
		g.removed.Store(true)
	}
	g.closed.Store(true) // before nobody knows any more who asks
	g.arming.Lock()
	g.awaitTrialLocked(time.Time{})
	told := g.denied
	g.arming.Unlock()
	told.close() // which may ask for the lock meanwhile
	g.arming.Lock()
	defer g.arming.Unlock()
	if g.around != nil {
		g.around.Close()
	}
	if g.askers != nil {
		g.askers.Close()
	}
	if g.units != nil {
		g.units.Close()
	}
	return err
}

// permit returns when every target may be reached, at least as long as the
// client may use it, or says why not.
func (g *guard) permit(ctx context.Context, scope backend.Scope, name string, targets []target) error {
	now := g.now()
	if g.covers(scope, targets, now) {
		return nil
	}
	done, err := g.giveReal(targets)
	if err != nil {
		return err
	}
	defer done.RUnlock()
	return g.hold(ctx, name, targets, now)
}

// permitMapped is permit for mapped addresses, which nobody takes over meanwhile.
func (g *guard) permitMapped(ctx context.Context, scope backend.Scope, name string, targets []target) error {
	now := g.now()
	if g.covers(scope, targets, now) {
		return nil
	}
	return g.hold(ctx, name, targets, now)
}

// covers reports whether every target may be reached for long enough without any more ado.
func (g *guard) covers(scope backend.Scope, targets []target, now time.Time) bool {
	if len(targets) == 0 {
		return true
	}
	for i := range targets {
		targets[i].key.Scope = scope
	}
	lease := &g.settings.Load().lease
	for i := range targets {
		if !g.inForce.Covers(targets[i].key, now.Add(lease.Need(targets[i].ttl))) {
			return false
		}
	}
	answersPassed.Inc()
	return true
}

// hold asks for the grants, some of which are missing, and waits until they are in
// force. Those that are not missing are asked for as well, or they might be what has to
// make room for the others.
func (g *guard) hold(ctx context.Context, name string, targets []target, now time.Time) error {
	if g.removed.Load() {
		return nil
	}
	s := g.settings.Load()
	hash := maphash.String(g.seed, strings.ToLower(name)) | 1 // never 0, which is none
	grants := make([]backend.Grant, 0, len(targets))
	for _, t := range targets {
		until := s.lease.Life(t.ttl)
		if g.inForce.Covers(t.key, now.Add(s.lease.Need(t.ttl))) {
			until = s.lease.Need(t.ttl) // no longer than it is: a renewal would cost
		}
		grant := t.key.Grant(now.Add(until))
		grant.Name = hash
		grants = append(grants, grant)
	}
	err := g.backend.Grant(ctx, grants, s.hold)
	holdSeconds.Observe(g.now().Sub(now).Seconds())
	if err != nil {
		g.failures.Do(func() { log.Errorf("An answer was withheld, the client got SERVFAIL: %v", err) })
		return err
	}
	answersHeld.Inc()
	g.renewed(name, targets)
	return nil
}

// stripped notes what was taken out of the answer to q.
func (g *guard) stripped(q dns.Question, s *stripping) {
	for why, n := range s.counts {
		addressesStripped.WithLabelValues(stripReason(why)).Add(float64(n))
	}
	if s.why == unreachable {
		return // it is so for each routed client
	}
	g.strips.Do(func() {
		// The name is as miekg/dns writes it: all but printable ASCII is escaped.
		name := strings.TrimSuffix(q.Name, ".")
		advice := ", which this guard gives to names of its own choice"
		if line := lineFor(name, s.first, s.why.Why); line != "" {
			advice = ". If that name is yours and may have it, the directive needs the line: " + line
		}
		log.Warningf("Stripped %v from the answer for %s: %s%s", s.first, name, s.why.Why, advice)
	})
}

// lineFor is what the directive needs so that a name may have an address that was taken out of its
// answers, and why that was; empty if no line helps.
func lineFor(name string, addr netip.Addr, stripped string) string {
	switch stripped {
	case "", unreachable.Why, ofPool.Why:
		return ""
	case surplus.Why:
		return "max_addresses_answer N"
	}
	return fmt.Sprintf("private %s %v", name, addr)
}

// logInterval is the least time between two lines on the same trouble.
const logInterval = 10 * time.Second

// observer is the guard as its backend sees it.
type observer guard

var _ backend.Observer = (*observer)(nil)

// Committed implements backend.Observer.
func (o *observer) Committed(made, renewed, removed int, took time.Duration) {
	grantsMade.Add(float64(made))
	grantsRenewed.Add(float64(renewed))
	transactionSize.Observe(float64(made + renewed + removed))
	transactionSeconds.Observe(took.Seconds())
}

// Expired implements backend.Observer.
func (o *observer) Expired(n int) { grantsExpired.Add(float64(n)) }

// Failed implements backend.Observer.
func (o *observer) Failed(op string, err error) {
	kernelErrors.WithLabelValues(op).Inc()
	o.failures.Do(func() {
		log.Errorf("The kernel refused (%s): %v. It is tried again; answers that need it get SERVFAIL until then", op, err)
	})
}

// Evicted implements backend.Observer.
func (o *observer) Evicted(n int) { grantsEvicted.Add(float64(n)) }

// Live implements backend.Observer.
func (o *observer) Live(ipv4, ipv6 int) {
	grantsIPv4.Set(float64(ipv4))
	grantsIPv6.Set(float64(ipv6))
}

// Repaired implements backend.Observer.
func (o *observer) Repaired(what string) {
	repairs.WithLabelValues(what).Inc()
	o.repairs.Do(func() {
		log.Warningf("Somebody else has changed table inet %s (%s): putting it back. If this goes on, a second CoreDNS uses the table, or a firewall service reloads", o.settings.Load().table, what)
	})
}

// Withstood implements backend.Observer.
func (o *observer) Withstood() {
	withstood.Inc()
	o.repairs.Do(func() {
		log.Warningf("Somebody else has flushed the ruleset: every table without an owner is gone. Table inet %s has one, and stands", o.settings.Load().table)
	})
}

// Enforcing implements backend.Observer.
func (o *observer) Enforcing(on bool) {
	o.enforcing.Store(on)
	value := 0.0
	if on {
		value = 1
	}
	enforcing.Set(value)
}
