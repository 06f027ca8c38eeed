package nft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// check lets the kernel try the rules without carrying them out.
func (w *writer) check(r backend.Rules) error {
	if err := w.connect(); err != nil {
		return err
	}
	if len(r.Routes) > 0 {
		if err := w.socket.checkTracking(); err != nil {
			return fmt.Errorf("reading connections: %w", err)
		}
	}
	_, _, err := w.commitRules(newRuleset(r), r.Table, true)
	return err
}

// open puts rules in force. Where others are in force already, it goes by
// bridges: first the old rules with all that either list allows, then the new
// ones. In one transaction the kernel (6.18) shows new rules, and each set's new
// ranges, at moments of their own, and in between would refuse what is allowed
// before and after.
func (w *writer) open(r backend.Rules) error {
	switch {
	case w.opened && r.Table != w.rules.Table:
		return fmt.Errorf("the table cannot be renamed from %q to %q while running", w.rules.Table, r.Table)
	case !w.opened || w.broken != nil:
		return w.arm(r)
	}
	old := w.rules
	var err error
	for _, next := range append(bridges(old, r), r) {
		if err = w.arm(next); err != nil {
			break
		}
	}
	if err != nil {
		w.rules = old
		w.reopen() // nothing is left half changed
	}
	return err
}

// arm puts rules in force in one transaction, and again until it is certain that
// they are what stands in the kernel.
func (w *writer) arm(r backend.Rules) error {
	if err := w.connect(); err != nil {
		return err
	}
	rs, first := newRuleset(r), !w.opened
	rs.trial = w.trial
	w.forget(r)
	w.forgetMappings(&r)
	var stood present
	lost := false
	for try, end := 0, time.Now().Add(patience); ; try++ {
		before, kept, err := w.commitRules(rs, r.Table, false)
		if err != nil {
			return err
		}
		if try == 0 {
			stood = before
			w.mapped.strange = w.mapped.strange || stood.bound && len(w.rules.Routes) == 0
		}
		lost = lost || !kept
		w.rules, w.grants, w.opened, w.broken = r, rs.grants, true, nil
		if w.remember() || time.Now().After(end) {
			break
		}
	}
	switch {
	case first && !lost && stood.hasGrants():
		w.adopting.Add(1)
		go w.adopt(r)
	case !w.holdsGrants():
		w.putBackGrants()
	}
	if first {
		w.mapped.strange = !lost && stood.exists
		w.epoch.Add(1)
	}
	if !w.holdsMappings() {
		w.putBackMappings()
	}
	w.free = nil
	w.rememberTrial(first)
	w.lookAround()
	w.enforce(w.whole())
	return nil
}

// forget takes grants out of the table whose sets the rules do not have any more,
// before they are gone.
func (w *writer) forget(r backend.Rules) {
	if !slices.ContainsFunc(w.grants.all(), func(s *grantSet) bool { return !r.Know(s.scope) }) {
		return
	}
	for k := range w.inForce.All() {
		if !r.Know(k.Scope) && w.inForce.Delete(k) {
			w.live.count(&k, -1)
		}
	}
	gone := func(e expiry.Ended[backend.Key]) bool { return !r.Know(e.Key.Scope) }
	w.due, w.restore = slices.DeleteFunc(w.due, gone), slices.DeleteFunc(w.restore, gone)
}

// commitRules turns what stands in the kernel into rs. It returns what stood
// there, and whether it has been kept, and its grants with it.
func (w *writer) commitRules(rs ruleset, table string, dryRun bool) (before present, kept bool, err error) {
	for end := time.Now().Add(patience); ; {
		last := time.Now().After(end)
		before, kept, err = w.tryRules(rs, table, dryRun, last)
		if !errors.Is(err, unix.ERESTART) || last { // somebody else came between
			break
		}
	}
	if err != nil {
		return before, false, fmt.Errorf("table inet %s: %w", table, err)
	}
	return before, kept, nil
}

// patience is how long rules are tried again while others keep changing theirs,
// as container engines do when they start.
const patience = time.Second

// tryRules fails with ERESTART if somebody else changes a ruleset meanwhile,
// unless it is forced: then what was read may be out of date. To a table that is
// our own that makes no difference.
func (w *writer) tryRules(rs ruleset, table string, dryRun, forced bool) (before present, kept bool, err error) {
	generation, err := w.socket.generation()
	if err != nil {
		return before, false, fmt.Errorf("reading: %w", explain(err))
	}
	before, err = readTable(table)
	switch {
	case errors.Is(err, unix.ENOENT): // deleted between two requests
		return before, false, unix.ERESTART
	case err != nil:
		return before, false, fmt.Errorf("reading: %w", explain(err))
	}
	if before.bound && !rs.bound {
		rs = rs.binding()
	}
	kept, flags := w.settle(rs, before)
	expected := generation
	if forced || w.owned {
		expected = 0
	}
	// No chain can be hooked up in the transaction that changes the table's flags
	// (EINVAL since Linux 6.9).
	if kept && flags != before.flags {
		if dryRun {
			flags = before.flags
		} else if err := w.claim(table, flags, expected); err != nil {
			return before, kept, err
		} else {
			generation = next(generation)
			if expected != 0 {
				expected = generation
			}
		}
	}
	msgs, err := rs.compile(before, kept, flags, !w.opened)
	if err != nil {
		return before, kept, err
	}
	w.batch.begin(expected)
	w.batch.add(msgs)
	w.batch.dryRun = dryRun
	var carried []expiry.Ended[backend.Key]
	mapped := 0
	if !dryRun && !kept {
		w.putBackGrants()
		w.putBackMappings()
		carried = w.carry(rs)
		mapped = w.carryMappings(rs)
	}
	first := w.socket.seq
	err = w.socket.transact(&w.batch)
	if err != nil && len(carried)+mapped > 0 && !errors.Is(err, unix.ERESTART) && !errors.Is(err, errUnknown) {
		carried, mapped = nil, 0 // the rules must not fail for their sake
		w.batch.begin(expected)
		w.batch.add(msgs)
		first = w.socket.seq
		err = w.socket.transact(&w.batch)
	}
	if m := refusedMessage(err, msgs, first); flags != 0 && knowsNoOwners(err, m) {
		w.ownership = 0
		return w.tryRules(rs, table, dryRun, forced)
	} else if err != nil {
		return before, kept, fmt.Errorf("%s: %w", blame(m), explainAbout(m, err))
	}
	if !dryRun {
		w.generation = next(generation)
		w.owned = flags != 0
		w.carriedOver(carried)
		if mapped > 0 {
			w.mapsStand()
		}
	}
	return before, kept, nil
}

// claim gives a table that stands there its flags, and leaves all else as it is.
func (w *writer) claim(table string, flags uint32, expected uint32) error {
	m := newTable(table, flags)
	w.batch.begin(expected)
	w.batch.dryRun = false
	w.batch.add([]netlink.Message{m})
	if err := w.socket.transact(&w.batch); err != nil {
		return fmt.Errorf("%s: %w", blame(&m), explainAbout(&m, err))
	}
	w.owned = flags&tableOwner != 0
	return nil
}

// remember notes what stands in the kernel now, to notice when somebody else
// changes it, and reports whether it is what we have just put there: if the table
// has no owner and the generation is another already, it may be somebody else's.
func (w *writer) remember() bool {
	p, err := readTable(w.rules.Table)
	if err == nil {
		var g uint32
		if g, err = w.socket.generation(); err == nil && (w.owned || g == w.generation) {
			w.generation = g
			w.installed, w.suspect = &p, false
			return true
		}
	}
	w.installed, w.suspect = nil, true
	return false
}

// close ends the writer, and removes the table if so wanted.
func (w *writer) close(leave backend.Leave) error {
	close(w.stop)
	opened := w.opened
	w.opened = false
	defer w.disconnect()
	w.enforce(false)
	if leave == backend.Keep || !opened {
		return nil
	}
	if err := w.connect(); err != nil {
		return err
	}
	msgs, err := deleteTable(w.rules.Table)
	if err != nil {
		return err
	}
	w.batch.begin(0)
	w.batch.add(msgs)
	if err := w.socket.transact(&w.batch); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing table inet %s: %w", w.rules.Table, explain(err))
	}
	return nil
}

func (w *writer) connect() (err error) {
	if w.socket == nil {
		w.socket, err = openSocket()
	}
	return explain(err)
}

// disconnect leaves a table that is ours as an orphan.
func (w *writer) disconnect() {
	if w.socket != nil {
		w.socket.close()
	}
	w.socket, w.owned = nil, false
}
