package expiry

import "iter"

// Accounts say what a key counts for, by numbers that the caller has chosen: one for
// each kind of account. 0 is none.
type Accounts [kinds]uint32

// The kinds of accounts.
const (
	Name   = iota // why its holder has the key
	Holder        // who has it

	kinds
)

// And returns what a key counts for that has been set for a and then for b.
func (a Accounts) And(b Accounts) Accounts {
	for kind := range a {
		if a[kind] != b[kind] {
			a[kind] = 0
		}
	}
	return a
}

// Of returns what k counts for, and whether it is there. Writer only.
func (t *Table[K]) Of(k K) (of Accounts, ok bool) {
	s, hash := t.shard(&k)
	if i := t.find(s, hash, &k); i != 0 {
		return t.accounts.of(i), true
	}
	return of, false
}

// Touch renews k in its accounts, as Set does, but changes nothing else. Writer only.
func (t *Table[K]) Touch(k K, of Accounts) {
	s, hash := t.shard(&k)
	if i := t.find(s, hash, &k); i != 0 {
		t.accounts.renew(i, of)
	}
}

// Count returns how many keys count for an account of that kind. Writer only.
func (t *Table[K]) Count(kind int, account uint32) int {
	_, count := t.accounts.oldest(kind, account)
	return int(count)
}

// Oldest returns, of the keys that count for an account of that kind, the one that
// was renewed least recently. There must be one. Writer only.
func (t *Table[K]) Oldest(kind int, account uint32) Ended[K] {
	i, _ := t.accounts.oldest(kind, account)
	return t.ended(i)
}

// accounts keep, for each account, its keys in the order in which they were renewed,
// and how many there are. It belongs to the writer.
//
// The list of an account has no end: after the newest comes the oldest. Where the
// oldest would lead on to the newest, which is known, it has the count instead, so
// that no account needs more than a number in a map.
type accounts[K comparable] struct {
	nodes  *nodes[K]
	newest [kinds]map[uint32]uint32
}

// membership is a node's place in the list of an account.
type membership struct {
	account uint32 // 0 is none
	older   uint32 // of the oldest: how many there are
	newer   uint32 // of the newest: the oldest
}

// empty forgets all accounts. Their nodes must be gone.
func (a *accounts[K]) empty() {
	for kind := range a.newest {
		a.newest[kind] = make(map[uint32]uint32)
	}
}

// oldest returns the node of an account that was renewed least recently, and how many
// the account has; 0 is none.
func (a *accounts[K]) oldest(kind int, account uint32) (i, count uint32) {
	newest := a.newest[kind][account]
	if newest == 0 {
		return 0, 0
	}
	i = a.at(newest, kind).newer
	return i, a.at(i, kind).older
}

// of returns what a node counts for.
func (a *accounts[K]) of(i uint32) (of Accounts) {
	for kind := range of {
		of[kind] = a.at(i, kind).account
	}
	return of
}

// all yields the nodes of all accounts of that kind, the newest of each first.
func (a *accounts[K]) all(kind int) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, i := range a.newest[kind] {
			for oldest := a.at(i, kind).newer; ; i = a.at(i, kind).older {
				if !yield(i) {
					return
				}
				if i == oldest {
					break
				}
			}
		}
	}
}

// enter makes a node that counts for nothing the newest of these accounts, or the
// oldest.
func (a *accounts[K]) enter(i uint32, of Accounts, old bool) {
	for kind, account := range of {
		switch {
		case account == 0:
		case old && a.newest[kind][account] != 0:
			a.pushOld(i, kind, account)
		default:
			a.push(i, kind, account)
		}
	}
}

// leave takes a node out of its accounts.
func (a *accounts[K]) leave(i uint32) {
	for kind := range kinds {
		if a.at(i, kind).account != 0 {
			a.remove(i, kind)
		}
	}
}

// renew makes a node the newest of its accounts, but takes it out of those that are
// not these.
func (a *accounts[K]) renew(i uint32, of Accounts) {
	for kind, account := range of {
		switch had := a.at(i, kind).account; {
		case had == 0:
		case had != account:
			a.remove(i, kind)
		case a.newest[kind][had] != i:
			a.remove(i, kind)
			a.push(i, kind, had)
		}
	}
}

func (a *accounts[K]) at(i uint32, kind int) *membership { return &a.nodes.place(i).in[kind] }

// push makes a node the newest of an account.
func (a *accounts[K]) push(i uint32, kind int, account uint32) {
	m := a.at(i, kind)
	m.account = account
	if newest := a.newest[kind][account]; newest == 0 {
		m.older, m.newer = 1, i
	} else {
		last := a.at(newest, kind)
		m.older, m.newer = newest, last.newer
		last.newer = i
		a.at(m.newer, kind).older++
	}
	a.newest[kind][account] = i
}

// pushOld makes a node the oldest of an account that has others.
func (a *accounts[K]) pushOld(i uint32, kind int, account uint32) {
	newest := a.newest[kind][account]
	oldest := a.at(newest, kind).newer
	m, o := a.at(i, kind), a.at(oldest, kind)
	m.account, m.older, m.newer = account, o.older+1, oldest
	o.older = i
	a.at(newest, kind).newer = i
}

// remove takes a node out of its account.
func (a *accounts[K]) remove(i uint32, kind int) {
	m := a.at(i, kind)
	newest := a.newest[kind][m.account]
	oldest := a.at(newest, kind).newer
	count := a.at(oldest, kind).older
	switch {
	case count == 1:
		delete(a.newest[kind], m.account)
	case i == oldest:
		oldest = m.newer
		a.at(newest, kind).newer = oldest
	case i == newest:
		newest = m.older
		a.newest[kind][m.account] = newest
		a.at(newest, kind).newer = oldest
	default:
		a.at(m.older, kind).newer = m.newer
		a.at(m.newer, kind).older = m.older
	}
	a.at(oldest, kind).older = count - 1
	m.account = 0
}
