package nft

import (
	"errors"
	"hash/maphash"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// writer is the connection to the kernel, and all that is believed of it. It
// belongs to whoever has the turn.
//
// Group commit: while the kernel works on one transaction, the answers that
// arrive pile up and become the next.
//
// It works from belief: a key that the table of what is in force holds is in the
// kernel, any other is not. Additions say EXCL and removals fail on what is
// absent, so a wrong belief fails the transaction; it is then done once more
// carefully, asking the kernel for each key first. Entries in doubt (adopted, or
// older than somebody else's change) are always looked up. So nobody has to know
// what an earlier process, or somebody else, has left behind.
type writer struct {
	*Backend
	socket     *socket
	rules      backend.Rules
	grants     grantSets // of the rules
	opened     bool
	broken     error // why the rules are not in force although they should be
	retryAt    time.Time
	ownership  uint32   // flags of a table that is ours alone; 0 where the kernel knows no such
	owned      bool     // the table is the socket's: nobody else can change it
	enforcing  bool     // as the observer knows it
	suspect    bool     // somebody may have changed them
	installed  *present // what stood there after the rules were put in force; nil when not known
	generation uint32
	committed  bool // since the last tick
	company    int  // how many more times answers are expected to come together

	batch   batch
	plan    plan
	remaps  mapPlan
	mapped  mapped
	due     []expiry.Ended[backend.Key] // out of the table, not yet out of the kernel
	restore []expiry.Ended[backend.Key] // to be put back after somebody emptied the sets
	live    live
	seed    maphash.Seed // of the numbers of accounts
	evicted int          // grants that have had to make room, so far
	free    []uint64     // handles of the tables without an owner
}

// A transaction of some 1,000 elements takes half a millisecond; a larger one gains
// nothing, and others wait longer.
const perTransaction = 1000

// watchInterval is how often the writer looks whether somebody else has changed
// the ruleset, when no transaction of its own has told.
const watchInterval = 40 * time.Millisecond

// expectCompany is how many transactions after one that was shared are made as if
// others were about to come as well.
const expectCompany = 16

// serve commits what is pending, up to one transaction's worth.
func (w *writer) serve() {
	if !w.opened {
		return // they wait for Open, or give up
	}
	if w.company > 0 {
		// Let answers that are ready to run join: a transaction more would cost
		// more. Alone, it would cost as much as the transaction (wakep).
		runtime.Gosched()
	}
	reqs := w.take(perTransaction)
	if w.company--; len(reqs) > 1 {
		w.company = expectCompany
	}
	w.repair()
	if w.broken != nil {
		for _, r := range reqs {
			r.settle(w.broken)
		}
	} else {
		w.commit(reqs)
	}
}

// sweep removes what has run out and puts back what is to be restored, one
// transaction at a time, so that no answer waits long for it.
func (w *writer) sweep() {
	if !w.opened || w.broken != nil {
		return
	}
	for {
		var reqs []*request
		n := min(len(w.restore), perTransaction)
		again := w.fitting(w.restore[:n])
		if len(again) > 0 {
			reqs = append(reqs, &request{again: again})
		}
		lost := w.mapped.someLost(perTransaction)
		if len(lost) > 0 {
			reqs = append(reqs, &request{lost: lost})
		}
		w.takeDue(time.Now(), perTransaction)
		if w.restore = w.restore[n:]; len(again)+len(lost)+len(w.due)+len(w.restore) == 0 {
			w.enforce(w.broken == nil)
			return
		}
		if w.try(reqs) != nil {
			w.restore = append(w.restore, again...) // later, after the others
			return
		}
		if w.suspect {
			w.verify() // nobody else does before all is put back
		}
		w.serve()
	}
}

// commit puts the requests' grants in force and settles each request. If that
// fails for the requests together, it tries halves: what is wrong with one must
// not fail its neighbours.
func (w *writer) commit(reqs []*request) {
	err := w.try(reqs)
	if err != nil && len(reqs) > 1 && w.broken == nil {
		w.commit(reqs[:len(reqs)/2])
		w.commit(reqs[len(reqs)/2:])
		return
	}
	for _, r := range reqs {
		r.settle(err)
	}
}

// try puts the grants of all requests in force, or says why it cannot.
func (w *writer) try(reqs []*request) error {
	var err error
	careful := false
	for range 4 {
		if w.broken != nil {
			return w.broken // and there may be no socket
		}
		err = w.transact(reqs, careful)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ERESTART):
			w.changedByOthers()
		case careful && errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
			w.verify()
		case errors.Is(err, backend.ErrScope), errors.Is(err, backend.ErrFull), errors.Is(err, backend.ErrRoute), errors.Is(err, backend.ErrMappings):
			return err // the kernel has not been asked
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY), errors.Is(err, errUnknown):
		default:
			w.events.Failed("commit", err)
			return explain(err)
		}
		if w.broken != nil {
			return w.broken
		}
		careful = true
	}
	w.events.Failed("commit", err)
	return explain(err)
}

// transact makes one transaction of the requests and of what has run out. Where
// it is careful, it asks the kernel for every key instead of believing.
func (w *writer) transact(reqs []*request, careful bool) error {
	if err := w.planMappings(reqs, careful); err != nil {
		return err
	}
	now := time.Now()
	p := &w.plan
	p.reset()
	for _, r := range reqs {
		for i := range r.grants {
			g := &r.grants[i]
			if err := w.rules.Grantable(*g); err != nil {
				return err
			}
			k := g.Key()
			p.want(k, w.accounts(&k, g.Name), g.Until.Sub(now), false)
		}
		for _, e := range r.again {
			p.want(e.Key, e.Of, e.Until.Sub(now), true)
		}
	}
	for i := range p.grants {
		if err := w.look(&p.grants[i], now, careful); err != nil {
			return err
		}
	}
	w.takeDue(now, max(len(p.grants), perTransaction/10))
	if err := w.makeRoom(); err != nil {
		return err
	}
	if err := w.planRemovals(now, careful); err != nil {
		return err
	}
	p.sort()
	if !p.empty() || len(w.remaps.changes) > 0 {
		if err := w.send(); err != nil {
			return err
		}
	}
	for i := range p.grants {
		g := &p.grants[i]
		if g.left <= 0 && !g.present {
			continue // too late to restore
		}
		until, added := now.Add(max(g.left, g.has)), false
		if g.again {
			added = w.inForce.Restore(expiry.Ended[backend.Key]{Key: g.key, Until: until, Of: g.of})
		} else {
			added = w.inForce.Set(g.key, until, g.of)
		}
		if added {
			w.live.count(&g.key, 1)
		}
	}
	w.due = w.due[:0]
	w.mapsStand()
	w.events.Live(w.live.v4, w.live.v6)
	return nil
}

// takeDue takes what has run out from the table, until limit of it waits to be
// removed from the kernel.
func (w *writer) takeDue(now time.Time, limit int) {
	before := len(w.due)
	w.due = w.inForce.Due(now, limit, w.due)
	for i := range w.due[before:] {
		w.live.count(&w.due[before+i].Key, -1)
	}
	if n := len(w.due) - before; n > 0 {
		w.events.Expired(n)
	}
}

// look finds out what the kernel has of a grant.
func (w *writer) look(g *planned, now time.Time, careful bool) error {
	until, confirmed := w.inForce.Lookup(g.key)
	if !careful && (confirmed || until.IsZero()) {
		g.present = confirmed
		if confirmed {
			g.has = until.Sub(now)
		}
		return nil
	}
	left, found, err := w.get(g.key)
	if err != nil {
		return err
	}
	g.present, g.has = found, left
	return nil
}

// planRemovals decides what to do about grants that have run out, or have had to
// make room: remove those that the kernel has not ended by itself yet.
func (w *writer) planRemovals(now time.Time, careful bool) error {
	for _, e := range w.due {
		if g := w.plan.find(e.Key); g != nil && g.present {
			continue // removed and made anew
		}
		present := e.Until.Sub(now) > tickOfKernel
		if careful && present {
			var err error
			if _, present, err = w.get(e.Key); err != nil {
				return err
			}
		}
		if present {
			w.plan.remove(e.Key)
			w.plan.removed++
		}
	}
	return nil
}

// tickOfKernel is how far the kernel's timers may be from ours: two jiffies at
// the slowest HZ in use, 100.
const tickOfKernel = 20 * time.Millisecond

// send commits the plan.
func (w *writer) send() error {
	if w.owned {
		w.batch.begin(0) // nobody can come in between
	} else {
		w.batch.begin(w.generation)
	}
	for _, set := range w.plan.touched {
		w.batch.addElements(unix.NFT_MSG_DELSETELEM, 0, w.rules.Table, w.grants[set], w.plan.changes[set].removals)
	}
	w.sendMappings(unix.NFT_MSG_DELSETELEM, 0)
	w.sendMappings(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	for _, set := range w.plan.touched {
		w.batch.addElements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, w.rules.Table, w.grants[set], w.plan.changes[set].additions)
	}
	start := time.Now()
	if err := w.socket.transact(&w.batch); err != nil {
		return err
	}
	w.events.Committed(w.plan.made, w.plan.renewed, w.plan.removed, time.Since(start))
	w.committed = true
	w.generation = next(w.generation)
	return nil
}

// next is the generation after g, which is never 0 (nf_tables_commit).
func next(g uint32) uint32 {
	if g+1 == 0 {
		return 1
	}
	return g + 1
}
