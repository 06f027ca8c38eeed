package nft

import (
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// watch looks whether somebody else has changed the ruleset. Every transaction
// in the network namespace raises the generation by one; the writer knows its
// own, so any other number means company. Transactions carry the number and
// notice by themselves where others can change the table; this serves the quiet
// times in between.
func (w *writer) watch() {
	if !w.opened {
		return
	}
	if w.broken != nil {
		w.repair()
		return
	}
	if !w.committed || w.owned {
		if g, err := w.socket.generation(); err == nil && g != w.generation {
			w.changedByOthers()
		}
	}
	w.committed = false
	if w.suspect {
		w.verify()
	}
}

// changedByOthers makes the writer believe nothing any more: each grant is
// looked up in the kernel before it is relied upon again. In a table that belongs
// to the writer, nobody else has changed any.
func (w *writer) changedByOthers() {
	if !w.owned {
		w.inForce.Distrust()
		if w.mapped.trust++; len(w.mapped.inForce) > 0 {
			w.epoch.Add(1)
		}
	}
	w.suspect = true
	if g, err := w.socket.generation(); err == nil {
		w.generation = g
	}
}

// verify compares the kernel with what was put there, and repairs it.
func (w *writer) verify() {
	p, err := readTable(w.rules.Table)
	if err != nil {
		w.events.Failed("read", err)
		w.suspect = true
		return
	}
	if w.installed == nil || !p.same(*w.installed) {
		if w.installed != nil || !p.exists {
			w.enforce(false)
			w.events.Repaired("rules")
		}
		w.reopen()
		return
	}
	w.suspect = false
	if !w.holdsGrants() {
		w.putBackGrants()
		w.enforce(w.whole())
		w.events.Repaired("grants")
	}
	if !w.holdsMappings() {
		w.putBackMappings()
		w.enforce(w.whole())
		w.events.Repaired("mappings")
	}
	w.lookAround()
}

// repair tries to put the rules in force again where they are not, now and then.
func (w *writer) repair() {
	if w.broken != nil && time.Now().After(w.retryAt) {
		w.reopen()
	}
}

// reopen puts the rules in force again, over a new connection if the old one is
// what is wrong: else it is kept, since the table may belong to it.
func (w *writer) reopen() {
	if w.socket != nil && !w.socket.works() {
		w.disconnect()
	}
	if err := w.arm(w.rules); err != nil {
		w.events.Failed("open", err)
		w.enforce(false)
		w.broken, w.retryAt = err, time.Now().Add(retryInterval)
	}
}

// enforce tells the observer, where it is news, whether the rules and all grants
// are in force.
func (w *writer) enforce(on bool) {
	if on != w.enforcing {
		w.enforcing = on
		w.events.Enforcing(on)
	}
}

// retryInterval is how long answers get SERVFAIL without another try.
const retryInterval = 100 * time.Millisecond

// holdsGrants asks the kernel for a few of the grants that should be there.
// Whoever empties a set takes them all.
func (w *writer) holdsGrants() bool {
	const few, alive = 4, time.Second
	soon := time.Now().Add(alive)
	asked := 0
	for k, until := range w.inForce.All() {
		if asked == few {
			break
		}
		if until.Before(soon) {
			continue
		}
		asked++
		if _, found, err := w.get(k); err == nil && !found {
			return false
		}
	}
	return true
}

// whole reports whether nothing is to be put back.
func (w *writer) whole() bool { return len(w.restore)+len(w.mapped.lost) == 0 }

// putBackGrants lets sweep make all grants anew. Until then none is in force.
func (w *writer) putBackGrants() {
	w.restore = append(w.inForce.Clear(), w.restore...)
	w.due = w.due[:0]
	w.live = live{}
}

// adopt reads the grants that an earlier process has left in the kernel, beside
// the writer's work: with a million of them it takes minutes.
func (b *Backend) adopt(r backend.Rules) {
	s, err := openSocket()
	if err != nil {
		return // the kernel expires them all the same
	}
	defer s.close()
	evicted := 0 // when the last part was read
	for _, set := range newGrantSets(r).all() {
		last := time.Now()
		_ = s.dump(r.Table, set, func(part []element) bool {
			now := time.Now()
			// A long walk inside the kernel takes a fifth of a core at most.
			walk := now.Sub(last)
			if walk > time.Millisecond {
				time.Sleep(min(4*walk, 200*time.Millisecond))
			}
			err := b.do(func(w *writer) error {
				w.adoptPart(part, now, w.evicted != evicted)
				evicted = w.evicted
				return nil
			})
			last = time.Now()
			return err == nil
		})
	}
}

// adoptPart enters what was read at the given time. Where that is in doubt, some of it
// may have had to make room since, and the kernel is asked again.
func (w *writer) adoptPart(part []element, at time.Time, doubt bool) {
	for _, e := range part {
		until, _ := w.inForce.Lookup(e.key)
		switch {
		case !w.rules.Know(e.key.Scope): // the rules have been changed since it was read
		case !until.IsZero():
		case e.left == 0: // without an end, so none of ours: it is to be removed
			w.due = append(w.due, expiry.Ended[backend.Key]{Key: e.key, Until: at.Add(time.Hour)})
		case doubt && !w.stands(e.key):
		case !w.hasRoom(1): // the kernel ends it all the same
		case w.inForce.Adopt(e.key, at.Add(e.left), w.accounts(&e.key, 0)):
			w.live.count(&e.key, 1)
		}
	}
	w.events.Live(w.live.v4, w.live.v6)
}

// stands reports whether the kernel has a grant, as far as it can be asked.
func (w *writer) stands(k backend.Key) bool {
	if w.broken != nil {
		return false
	}
	_, found, err := w.get(k)
	return err == nil && found
}
