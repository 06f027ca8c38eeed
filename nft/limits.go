package nft

import (
	"hash/maphash"
	"math"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// live counts the grants in the table of what is in force.
type live struct {
	v4, v6 int
	sets   [2 * int(backend.Holders) * 256]int32 // see setOf
}

func (l *live) count(k *backend.Key, by int) {
	if k.Is4() {
		l.v4 += by
	} else {
		l.v6 += by
	}
	l.sets[setOf(k)] += int32(by)
}

// accounts numbers what a grant because of this name counts for: its holder with this
// IP version, and the name with that. The numbers are hashes that nobody outside can
// guess. Of a million holders some hundred share a number with another one.
func (w *writer) accounts(k *backend.Key, name uint64) (of expiry.Accounts) {
	holder := maphash.Comparable(w.seed, struct {
		backend.Scope
		ipv4 bool
	}{w.rules.Account(k.Scope), k.Is4()})
	of[expiry.Holder] = accountNumber(holder)
	if name != 0 {
		of[expiry.Name] = accountNumber(maphash.Comparable(w.seed, [2]uint64{holder, name}))
	}
	return of
}

func accountNumber(hash uint64) uint32 { return max(uint32(hash>>32), 1) }

// An account is what has a limit: a name or a holder, whose grants the table of what
// is in force lists, or a set. Each is part of the next one.
type account struct {
	kind   int
	number uint32
}

const (
	ofSet        = len(expiry.Accounts{}) // beside expiry.Name and expiry.Holder
	accountKinds = ofSet + 1
)

// account returns what a grant counts for, of that kind, and how many grants that may
// have.
func (w *writer) account(kind int, k *backend.Key, of expiry.Accounts) (a account, most int) {
	switch {
	case kind == ofSet:
		a, most = account{kind, uint32(setOf(k))}, w.rules.MaxGrants
	case kind == expiry.Holder && !k.Holder.Many():
		a, most = account{kind, of[kind]}, w.rules.MaxGrantsClient
	case kind == expiry.Holder || of[kind] == 0:
		a = account{kind, of[kind]}
	default:
		a, most = account{kind, of[kind]}, w.rules.MaxGrantsName
	}
	if most == 0 {
		most = math.MaxInt
	}
	return a, most
}

// has is how many grants an account has in the table.
func (w *writer) has(a account) int {
	if a.kind == ofSet {
		return int(w.live.sets[a.number])
	}
	return w.inForce.Count(a.kind, a.number)
}

// demand is what a plan wants of an account.
type demand struct {
	wanted int
	made   int // of the wanted, those that are new
}

// demand adds a grant to what the plan wants of its accounts.
func (w *writer) demand(k *backend.Key, of expiry.Accounts, made int) {
	p := &w.plan
	if p.demands == nil {
		p.demands = make(map[account]demand)
	}
	for kind := range accountKinds {
		a, _ := w.account(kind, k, of)
		d := p.demands[a]
		p.demands[a] = demand{d.wanted + 1, d.made + made}
	}
}

// makeRoom ends grants where the new ones of the plan would be too many: of the same
// name or holder, those renewed least recently, and never any that the plan wants. For
// a plan that wants too much by itself it ends none. What it ends is out of the table
// then, and due to be removed from the kernel with the next transaction that succeeds.
func (w *writer) makeRoom() error {
	if !w.hasRoom(len(w.plan.grants)) {
		return backend.ErrFull
	}
	if !w.crowded() {
		return nil
	}
	w.addUp()
	if !w.possible() {
		return backend.ErrFull
	}
	for i := range w.plan.grants { // what is wanted becomes the youngest, and is reached last
		w.inForce.Touch(w.plan.grants[i].key, w.plan.grants[i].of)
	}
	before := len(w.due)
	err := w.displace()
	w.tellEvicted(len(w.due) - before)
	return err
}

// hasRoom reports whether the table itself can take n more.
func (w *writer) hasRoom(n int) bool { return w.live.v4+w.live.v6+n <= expiry.Most }

// crowded reports whether a limit could be near: if all that is wanted were new, and
// counted for the same.
func (w *writer) crowded() bool {
	for i := range w.plan.grants {
		for kind := range accountKinds {
			g := &w.plan.grants[i]
			a, most := w.account(kind, &g.key, g.of)
			if most < math.MaxInt && w.has(a)+len(w.plan.grants) > most {
				return true
			}
		}
	}
	return false
}

// addUp finds out what the plan wants of each account.
func (w *writer) addUp() {
	for i := range w.plan.grants {
		g := &w.plan.grants[i]
		of, known := w.inForce.Of(g.key)
		made := 0
		if known {
			g.of = g.of.And(of)
		} else if g.fresh = g.left > 0 || g.present; g.fresh {
			made = 1
		}
		w.demand(&g.key, g.of, made)
	}
}

// possible reports whether there is room when all has gone that may go: the others of
// the same name and holder.
func (w *writer) possible() bool {
	for i := range w.plan.grants {
		g := &w.plan.grants[i]
		var inHolder, wanted int
		for kind := 0; kind < accountKinds && g.fresh; kind++ {
			a, most := w.account(kind, &g.key, g.of)
			if kind < ofSet {
				inHolder, wanted = w.has(a), w.plan.demands[a].wanted
			} else {
				wanted += w.has(a) - inHolder
			}
			if wanted > most {
				return false
			}
		}
	}
	return true
}

// displace ends a grant for each new one that is one too many. What goes for a name
// has gone for its holder as well, and what goes for either, for the set.
func (w *writer) displace() error {
	for kind := range accountKinds {
		// After a reload with lower limits an account gets smaller step by step. In a
		// set one must not pay for another.
		atMost := 2
		if kind == ofSet {
			atMost = 1
		}
		for i := range w.plan.grants {
			g := &w.plan.grants[i]
			a, most := w.account(kind, &g.key, g.of)
			for n := 0; n < atMost && g.fresh && w.has(a)+w.plan.demands[a].made > most; n++ {
				if !w.evict(min(kind, expiry.Holder), g.of) {
					return backend.ErrFull
				}
			}
		}
	}
	return nil
}

// evict ends the grant of an account that was renewed least recently, if the plan
// does not want it.
func (w *writer) evict(kind int, of expiry.Accounts) bool {
	if w.inForce.Count(kind, of[kind]) == 0 {
		return false
	}
	e := w.inForce.Oldest(kind, of[kind])
	if w.plan.find(e.Key) != nil {
		return false
	}
	w.inForce.Delete(e.Key)
	w.live.count(&e.Key, -1)
	w.due = append(w.due, e)
	return true
}

// tellEvicted counts grants that have had to make room.
func (w *writer) tellEvicted(n int) {
	if n > 0 {
		w.evicted += n
		w.events.Evicted(n)
	}
}

// fitting returns, of grants that are to be restored, those for which there is room,
// in the same memory. The others end.
func (w *writer) fitting(ended []expiry.Ended[backend.Key]) []expiry.Ended[backend.Key] {
	fit := ended[:0]
	w.plan.reset()
	for i := range ended {
		e := ended[i]
		_, anew := w.inForce.Of(e.Key) // it has been granted since
		if !anew && !w.fits(&e) {
			w.due = append(w.due, e) // in case that the kernel has it
			continue
		}
		if fit = append(fit, e); !anew {
			w.demand(&e.Key, e.Of, 1)
		}
	}
	w.tellEvicted(len(ended) - len(fit))
	return fit
}

func (w *writer) fits(e *expiry.Ended[backend.Key]) bool {
	for kind := range accountKinds {
		if a, most := w.account(kind, &e.Key, e.Of); w.has(a)+w.plan.demands[a].made >= most {
			return false
		}
	}
	return true
}
