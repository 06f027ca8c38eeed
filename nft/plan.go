package nft

import (
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// A plan is what one transaction is to do. Its memory is used again.
type plan struct {
	grants []planned
	index  map[backend.Key]int // of grants, when there are many

	changes                []change // by set: see setOf
	touched                []int    // the sets that have any
	made, renewed, removed int

	demands map[account]demand // filled only where limits are near
}

// A change is what the transaction is to do to one set. Removals come first, so that
// a grant in both is renewed in one step.
type change struct{ removals, additions []element }

// planned is one grant that the transaction is to put in force.
type planned struct {
	key     backend.Key
	of      expiry.Accounts
	left    time.Duration // of its life, as wanted
	has     time.Duration // of its life, in the kernel
	present bool          // in the kernel
	again   bool          // only restored, not renewed
	fresh   bool          // new in the table of what is in force; filled only where limits are near
}

func (p *plan) reset() {
	p.grants = p.grants[:0]
	clear(p.index)
	clear(p.demands)
	for _, set := range p.touched {
		c := &p.changes[set]
		c.removals, c.additions = c.removals[:0], c.additions[:0]
	}
	p.touched = p.touched[:0]
	p.made, p.renewed, p.removed = 0, 0, 0
}

// few is how many grants are searched faster one by one.
const few = 8

// find returns the planned grant with this key, or nil.
func (p *plan) find(k backend.Key) *planned {
	if len(p.grants) > few {
		if i, ok := p.index[k]; ok {
			return &p.grants[i]
		}
		return nil
	}
	for i := range p.grants {
		if p.grants[i].key == k {
			return &p.grants[i]
		}
	}
	return nil
}

// want plans that k is to last at least so long. What is wanted for two names counts
// for none.
func (p *plan) want(k backend.Key, of expiry.Accounts, left time.Duration, again bool) {
	if g := p.find(k); g != nil {
		g.left = max(g.left, left)
		g.again = g.again && again
		g.of = g.of.And(of)
		return
	}
	p.grants = append(p.grants, planned{key: k, of: of, left: left, again: again})
	switch n := len(p.grants); {
	case n > few+1:
		p.index[k] = n - 1
	case n == few+1:
		if p.index == nil {
			p.index = make(map[backend.Key]int)
		}
		for i := range p.grants {
			p.index[p.grants[i].key] = i
		}
	}
}

// of returns what the transaction is to do to the grant's set.
func (p *plan) of(k *backend.Key) *change {
	set := setOf(k)
	if n := set + 1 - len(p.changes); n > 0 {
		p.changes = append(p.changes, make([]change, n)...)
	}
	c := &p.changes[set]
	if len(c.removals)+len(c.additions) == 0 {
		p.touched = append(p.touched, set)
	}
	return c
}

func (p *plan) remove(k backend.Key) {
	c := p.of(&k)
	c.removals = append(c.removals, element{key: k})
}

func (p *plan) add(k backend.Key, left time.Duration) {
	c := p.of(&k)
	c.additions = append(c.additions, element{k, left})
}

// sort turns what is wanted and what is there into removals and additions. A
// grant that lasts long enough already needs neither; none gets shorter.
func (p *plan) sort() {
	for i := range p.grants {
		g := &p.grants[i]
		switch {
		case g.left <= 0, g.present && g.has >= g.left:
			continue
		case g.present:
			p.remove(g.key)
			p.renewed++
		default:
			p.made++
		}
		p.add(g.key, g.left)
	}
}

func (p *plan) empty() bool { return len(p.touched) == 0 }
