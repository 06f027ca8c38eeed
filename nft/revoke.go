package nft

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

var _ backend.Revoker = (*Backend)(nil)

// Revoke implements [backend.Revoker].
func (b *Backend) Revoke(ctx context.Context, which func(backend.Grant) bool) (n int, err error) {
	var rules backend.Rules
	if err := b.do(func(w *writer) error { rules = w.rules; return nil }); err != nil {
		return 0, err
	}
	// What an earlier process has left, and has not been read yet, comes from the kernel.
	var unread []backend.Grant
	if b.adopting.Load() > 0 {
		if unread, err = b.List(); err != nil {
			return 0, err
		}
	}
	var part []backend.Grant
	done := map[backend.Key]bool{} // of what might be unread as well
	end := func() error {
		err := b.do(func(w *writer) error {
			ended, err := w.revoke(part)
			n += ended
			return err
		})
		part = part[:0]
		return err
	}
	visit := func(g backend.Grant) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if k := g.Key(); which(g) && !done[k] {
			if part = append(part, g); len(unread) > 0 {
				done[k] = true
			}
		}
		if len(part) < perTransaction {
			return nil
		}
		return end()
	}
	for k, until := range b.inForce.All() {
		if err := visit(k.Grant(until)); err != nil {
			return n, err
		}
	}
	for _, g := range unread {
		if err := visit(g); err != nil {
			return n, err
		}
	}
	if err := end(); err != nil {
		return n, err
	}
	if err := b.do(func(w *writer) error {
		w.restore = slices.DeleteFunc(w.restore, func(e expiry.Ended[backend.Key]) bool {
			gone := which(e.Key.Grant(e.Until))
			if gone {
				n++
			}
			return gone
		})
		return nil
	}); err != nil {
		return n, err
	}
	if rules.Linger > 0 {
		err = b.revokeLingering(ctx, rules, which)
	}
	return n, err
}

// revoke ends these grants, of which some may have ended already, in one transaction.
// Should that fail, none is relied upon any more, and the next transaction removes them.
func (w *writer) revoke(grants []backend.Grant) (ended int, err error) {
	if !w.opened {
		return 0, nil
	}
	for _, g := range grants {
		k := g.Key()
		if w.inForce.Delete(k) {
			w.live.count(&k, -1)
		} else if !w.rules.Know(k.Scope) {
			continue
		}
		w.due = append(w.due, expiry.Ended[backend.Key]{Key: k, Until: g.Until})
		ended++
	}
	if ended == 0 {
		return 0, nil
	}
	w.evicted += ended // what has been read of them may be out of date: see adopt
	return ended, w.try(nil)
}

// revokeLingering ends what stays open because it is used. Without the grant nothing
// enters there anew.
func (b *Backend) revokeLingering(ctx context.Context, rules backend.Rules, which func(backend.Grant) bool) error {
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	for _, set := range newGrantSets(rules).all() {
		lingering := *set
		lingering.name = set.named(setLinger)
		for more := true; more; { // a walk may miss what moves meanwhile
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var gone []element
			err := s.dump(rules.Table, &lingering, func(part []element) bool {
				now := time.Now()
				for _, e := range part {
					if which(e.key.Grant(now.Add(e.left))) {
						gone = append(gone, e)
					}
				}
				return true
			})
			if errors.Is(err, unix.ENOENT) {
				break // the rules have changed, and the set is gone
			}
			if err != nil {
				return err
			}
			more = len(gone) > 0
			for part := range slices.Chunk(gone, perTransaction) {
				if err := b.do(func(w *writer) error { return w.removeLingering(&lingering, part) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// removeLingering removes elements, which may have ended by themselves.
func (w *writer) removeLingering(set *grantSet, elements []element) error {
	if !w.opened || w.broken != nil {
		return w.broken
	}
	err := w.removeElements(set, elements)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENOENT):
		return explain(err)
	}
	for i := range elements {
		if err := w.removeElements(set, elements[i:i+1]); err != nil && !errors.Is(err, unix.ENOENT) {
			return explain(err)
		}
	}
	return nil
}

func (w *writer) removeElements(set *grantSet, elements []element) error {
	w.batch.begin(0)
	w.batch.addElements(unix.NFT_MSG_DELSETELEM, 0, w.rules.Table, set, elements)
	if err := w.socket.transact(&w.batch); err != nil {
		return err
	}
	w.committed = true
	w.generation = next(w.generation)
	return nil
}
