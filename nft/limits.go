package nft

import (
	"hash/maphash"
	"math"
	"slices"

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
	}{k.Scope, k.Is4()})
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

// standing is how many grants an account has in the table, and how many it may have.
type standing struct {
	account
	has, most int
}

// standings returns those of the accounts that a grant counts for.
func (w *writer) standings(k *backend.Key, of expiry.Accounts) (all [accountKinds]standing) {
	limits := [...]int{expiry.Name: w.rules.MaxGrantsName, expiry.Holder: w.rules.MaxGrantsClient, ofSet: w.rules.MaxGrants}
	if k.Holder.Many() {
		limits[expiry.Holder] = 0
	}
	for kind, number := range of {
		all[kind] = standing{account{kind, number}, w.inForce.Count(kind, number), limits[kind]}
		if number == 0 {
			all[kind].most = math.MaxInt
		}
	}
	set := setOf(k)
	all[ofSet] = standing{account{ofSet, uint32(set)}, int(w.live.sets[set]), limits[ofSet]}
	for kind := range all {
		if all[kind].most == 0 {
			all[kind].most = math.MaxInt
		}
	}
	return all
}

// demand is what a plan wants of an account.
type demand struct {
	wanted int
	made   int // of the wanted, those that are new
}

func (p *plan) demand(a account, made int) {
	if p.demands == nil {
		p.demands = make(map[account]demand)
	}
	d := p.demands[a]
	p.demands[a] = demand{d.wanted + 1, d.made + made}
}

// makeRoom ends grants where the new ones of the plan would be too many: of the same
// name or holder, those renewed least recently, and never any that the plan wants. For
// a plan that wants too much by itself it ends none. What it ends is out of the table
// then, and due to be removed from the kernel with the next transaction that succeeds.
func (w *writer) makeRoom() error {
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

// crowded reports whether a limit could be near, without counting what is wanted twice
// or is there.
func (w *writer) crowded() bool {
	for i := range w.plan.grants {
		g := &w.plan.grants[i]
		for _, s := range w.standings(&g.key, g.of) {
			if s.has+len(w.plan.grants) > s.most {
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
		for _, s := range w.standings(&g.key, g.of) {
			w.plan.demand(s.account, made)
		}
	}
}

// possible reports whether there is room when all has gone that may go.
func (w *writer) possible() bool {
	for i := range w.plan.grants {
		g := &w.plan.grants[i]
		if !g.fresh {
			continue
		}
		all := w.standings(&g.key, g.of)
		for _, s := range all[:ofSet] {
			if w.plan.demands[s.account].wanted > s.most {
				return false
			}
		}
		holder, set := &all[expiry.Holder], &all[ofSet]
		if set.has-holder.has+w.plan.demands[holder.account].wanted > set.most {
			return false
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
			for n := 0; n < atMost && g.fresh && w.exceeds(g, kind); n++ {
				if !w.evict(min(kind, expiry.Holder), g.of) {
					return backend.ErrFull
				}
			}
		}
	}
	return nil
}

// exceeds reports whether an account of a planned grant has too many with the plan.
func (w *writer) exceeds(g *planned, kind int) bool {
	s := w.standings(&g.key, g.of)[kind]
	return s.has+w.plan.demands[s.account].made > s.most
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
		if _, anew := w.inForce.Of(e.Key); anew {
			fit = append(fit, e)
			continue
		}
		all := w.standings(&e.Key, e.Of)
		if slices.ContainsFunc(all[:], func(s standing) bool { return s.has+w.plan.demands[s.account].made >= s.most }) {
			w.due = append(w.due, e) // in case that the kernel has it
			continue
		}
		fit = append(fit, e)
		for _, s := range all {
			w.plan.demand(s.account, 1)
		}
	}
	w.tellEvicted(len(ended) - len(fit))
	return fit
}
