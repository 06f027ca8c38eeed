package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Auditor = (*Backend)(nil)

// A trial is a set that holds both versions of IP until the trial ends. Where it does,
// chains in audit refuse. So nobody has to be there to end it.

// Trial implements [backend.Auditor].
func (b *Backend) Trial(ctx context.Context, until time.Time) error {
	return b.do(func(w *writer) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return w.startTrial(until)
	})
}

// Tried implements [backend.Auditor].
func (b *Backend) Tried(ctx context.Context) (until time.Time, err error) {
	table, err := b.table(ctx)
	if err != nil || table == "" {
		return until, err
	}
	s, err := openSocket()
	if err != nil {
		return until, err
	}
	defer s.close()
	return s.trial(table)
}

// trial returns until when a trial lasts, or the zero time.
func (s *socket) trial(table string) (until time.Time, err error) {
	err = s.dumpSet(table, setEnforced, func(data []byte) bool {
		for elem := range elementsIn(data) {
			for typ, value := range attributes(elem) {
				if typ == unix.NFTA_SET_ELEM_EXPIRATION && len(value) == 8 {
					until = time.Now().Add(time.Duration(binary.BigEndian.Uint64(value)) * time.Millisecond)
				}
			}
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil // nothing is in audit
	}
	return until, err
}

// tries reports whether there can be a trial.
func (rs ruleset) tries() bool {
	return slices.ContainsFunc(rs.sets, func(s set) bool { return s.name == setEnforced })
}

// table names the table that stands, or is to stand; nothing before Open.
func (b *Backend) table(ctx context.Context) (name string, err error) {
	err = b.do(func(w *writer) error { name = w.rules.Table; return ctx.Err() })
	return name, err
}

// rememberTrial notes what trial is on with the rules that have just been put in force. An
// earlier process may have begun it.
func (w *writer) rememberTrial(first bool) {
	if !audited(w.rules) {
		w.trial = time.Time{}
	} else if first {
		w.trial, _ = w.socket.trial(w.rules.Table)
	}
}

// startTrial begins a trial, or ends it.
func (w *writer) startTrial(until time.Time) error {
	if !audited(w.rules) {
		if until.After(time.Now()) {
			return backend.ErrNoAudit
		}
		w.trial = time.Time{}
		return nil
	}
	var err error
	for range 4 {
		if w.broken != nil {
			return w.broken // and there may be no socket
		}
		err = w.sendTrial(until)
		switch {
		case err == nil:
			w.trial = until
			return nil
		case errors.Is(err, unix.ERESTART):
			w.changedByOthers()
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
			w.verify()
		case !errors.Is(err, errUnknown):
			return fmt.Errorf("the trial: %w", explain(err))
		}
	}
	return fmt.Errorf("the trial: %w", explain(err))
}

// sendTrial makes one transaction of it.
func (w *writer) sendTrial(until time.Time) error {
	rs := newRuleset(w.rules)
	table := &nftables.Table{Name: rs.table, Family: nftables.TableFamilyINet}
	msgs, err := compose(func(c *nftables.Conn) error {
		c.FlushSet(&nftables.Set{Name: setEnforced, Table: table})
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		if rs.apart() {
			if err := letSettle(c, table); err != nil {
				return err
			}
		}
		return addVersions(c, table, setEnforced, max(left, time.Millisecond))
	})
	if err != nil {
		return err
	}
	return w.change(msgs)
}

// change makes a transaction of messages about what stands there already.
func (w *writer) change(msgs []netlink.Message) error {
	if w.owned {
		w.batch.begin(0) // nobody can come in between
	} else {
		w.batch.begin(w.generation)
	}
	w.batch.add(msgs)
	if err := w.socket.transact(&w.batch); err != nil {
		return err
	}
	w.committed = true
	w.generation = next(w.generation)
	return nil
}
