package fake

import (
	"context"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var (
	_ backend.Auditor = (*Backend)(nil)
	_ backend.Denials = (*Backend)(nil)
)

// denied is what has been denied, as the test says, and what trial is on.
type denied struct {
	flows   map[backend.Flow]backend.Denial
	tallies [backend.Hooks]backend.Tally
	trial   time.Time
}

// Deny has so much of a flow denied now, as if packets had come. The flow stays until the
// clock says that this is long ago.
func (b *Backend) Deny(f backend.Flow, count backend.Count) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.denied.flows == nil {
		b.denied.flows = make(map[backend.Flow]backend.Denial)
	}
	d, now := b.denied.flows[f], b.now()
	if now.Sub(d.Last) >= backend.ListedFor {
		d = backend.Denial{} // it has been forgotten
	}
	d.Flow, d.Last = f, now
	add(&d.Count, count)
	b.denied.flows[f] = d
	b.tallyLocked(f.Kind, count)
}

// DenyUnlisted has so much denied that there is no room for among flows.
func (b *Backend) DenyUnlisted(k backend.Kind, count backend.Count) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add(&b.denied.tallies[k.Hook].Unlisted, count)
	b.tallyLocked(k, count)
}

func (b *Backend) tallyLocked(k backend.Kind, count backend.Count) {
	if t := &b.denied.tallies[k.Hook]; k.Audited {
		add(&t.Audited, count)
	} else {
		add(&t.Refused, count)
	}
}

func add(to *backend.Count, count backend.Count) {
	to.Packets += count.Packets
	to.Bytes += count.Bytes
}

// endDeniedLocked forgets what was denied long ago, and a trial that is over.
func (b *Backend) endDeniedLocked() {
	now := b.now()
	for f, d := range b.denied.flows {
		if now.Sub(d.Last) >= backend.ListedFor {
			delete(b.denied.flows, f)
		}
	}
	if !b.denied.trial.After(now) || !b.auditedLocked() {
		b.denied.trial = time.Time{}
	}
}

func (b *Backend) auditedLocked() bool {
	r := b.rules
	return r != nil && (r.Local && r.AuditLocal || r.Gateway && r.AuditGateway)
}

// Denied implements [backend.Denials].
func (b *Backend) Denied(ctx context.Context, each func(backend.Denial)) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return backend.ErrClosed
	}
	b.endDeniedLocked()
	var all []backend.Denial
	for _, d := range b.denied.flows {
		all = append(all, d)
	}
	b.mu.Unlock()
	for _, d := range all {
		each(d)
	}
	return context.Cause(ctx)
}

// Tallies implements [backend.Denials].
func (b *Backend) Tallies(context.Context) ([backend.Hooks]backend.Tally, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return [backend.Hooks]backend.Tally{}, backend.ErrClosed
	}
	return b.denied.tallies, nil
}

// Trial implements [backend.Auditor].
func (b *Backend) Trial(_ context.Context, until time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return backend.ErrClosed
	case !b.auditedLocked() && until.After(b.now()):
		return backend.ErrNoAudit
	}
	b.denied.trial = until
	return nil
}

// Tried implements [backend.Auditor].
func (b *Backend) Tried(context.Context) (time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return time.Time{}, backend.ErrClosed
	}
	b.endDeniedLocked()
	return b.denied.trial, nil
}
