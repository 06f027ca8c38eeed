package nft

import (
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Beside each set of grants there can be one of what holders of its grants have used
// lately: see backend.Rules.Linger. Packets enter themselves, into the one beside what
// they pass by. Whether they pass is never up to their being entered, since a full set
// takes none.

const (
	// lingerSize is the bound where grants have none: nothing that packets fill may be
	// without.
	lingerSize = 1 << 16

	// lingerGC is how often the kernel removes what has run out, which counts against the
	// size. Nobody else does.
	lingerGC = 10 * time.Second
)

// newLingerSet is the set of what is used of s.
func newLingerSet(s *grantSet, max int) set {
	return newUsedSet(s.named(setLinger), s.class.comment("used lately, and so still open"), s.key(s.who), max)
}

// newUsedSet is a set that packets enter themselves into.
func newUsedSet(name, comment string, key selector, max int) set {
	if max == 0 {
		max = lingerSize
	}
	return set{name: name, comment: comment, key: key, timeout: true, dynamic: true, size: max, gc: lingerGC}
}

// stayOpen comments the rules for what is used.
const stayOpen = "what is used stays open"

func (o *opening) lingerChain() string { return setLinger + "-" + o.chain }

// chains are the one whose rules enter packets that grants let through, or would have
// let through lately.
func (o *opening) chains() []chain {
	if o.linger == 0 {
		return nil
	}
	enter := chain{name: o.lingerChain()}
	for _, s := range o.sets {
		name := s.named(setLinger)
		for _, by := range []string{s.name, name} {
			enter.rules = append(enter.rules, s.rules(stayOpen, by, func(key selector) ([]match, verdict) {
				return []match{refresh(name, key, o.linger)}, goBack
			})...)
		}
	}
	return []chain{enter}
}

// live sends packets of live connections there, but not those that come back: these
// are not the holder's.
func (o *opening) live() []rule {
	if o.linger == 0 {
		return nil
	}
	return []rule{{stayOpen, []match{liveConnection, ctOriginal}, jump(o.lingerChain())}}
}

// refresh puts the packet's key into a set, or lets it last longer there. If the set is
// full, it ends the rule.
func refresh(name string, key selector, last time.Duration) match {
	last = max(last, time.Millisecond) // with none, it would last for good
	return match{
		text: "update @" + name + " { " + key.String() + " timeout " + duration(last) + " }",
		exprs: append(key.load(), &expr.Dynset{
			SrcRegKey: register, SetName: name, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: last,
		}),
	}
}
