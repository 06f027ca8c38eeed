package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// administration is the guard as its admin socket sees it.
type administration struct {
	guard   *guard
	started time.Time
}

var _ admin.Guard = (*administration)(nil)

// Status implements [admin.Guard].
func (a *administration) Status(ctx context.Context) (admin.Status, error) {
	g := a.guard
	s := g.settings.Load()
	status := admin.Status{
		Version: versions(), Started: a.started, Now: g.now(), Mode: s.mode, Table: s.table, Scope: s.scopeText(),
		Enforcing: g.enforcing.Load(), Disarmed: g.removed.Load(), Hooks: []admin.Hook{}, Remembered: g.history.Len(),
		Grants: admin.Changes{
			IPv4: int(gauge(grantsIPv4)), IPv6: int(gauge(grantsIPv6)),
			Made: count(grantsMade), Renewed: count(grantsRenewed), Expired: count(grantsExpired), Evicted: count(grantsEvicted), Revoked: count(grantsRevoked),
		},
		Results: admin.Results{Passed: count(answersPassed), Held: count(answersHeld), Failed: count(answersFailed), Refused: count(answersRefused)},
		Hold:    held(),
	}
	if g.ready() == nil {
		status.Hooks = a.hooks(ctx)
	}
	return status, nil
}

// hooks are those that are guarded.
func (a *administration) hooks(ctx context.Context) (hooks []admin.Hook) {
	g := a.guard
	g.arming.Lock()
	rules, switched := g.rules, g.switched
	g.arming.Unlock()
	var tallies [backend.Hooks]backend.Tally
	if d, ok := g.backend.(backend.Denials); ok {
		tallies, _ = d.Tallies(ctx) // zero tells enough
	}
	until := a.guard.trialEnds()
	for hook, on := range [backend.Hooks]struct{ guarded, audit bool }{
		backend.Output: {rules.Local, rules.AuditLocal}, backend.Forward: {rules.Gateway, rules.AuditGateway},
	} {
		if !on.guarded {
			continue
		}
		h := admin.Hook{Name: backend.Hook(hook).String(), State: admin.Enforced, By: "corefile"}
		switch {
		case on.audit && until.After(g.now()):
			h.State, h.Until = admin.Tried, &until
		case on.audit:
			h.State = admin.Audited
		}
		if switched[hook].by && switched[hook].audit != a.guard.settings.Load().operation.audit[hook] {
			h.By = "guardctl"
		}
		t := &tallies[hook]
		h.Refused, h.Audited, h.Unlisted = admin.Count(t.Refused), admin.Count(t.Audited), admin.Count(t.Unlisted)
		hooks = append(hooks, h)
	}
	return hooks
}

// SetAudit implements [admin.Guard].
func (a *administration) SetAudit(ctx context.Context, r admin.AuditRequest) (admin.Status, error) {
	hooks := []backend.Hook{backend.Output, backend.Forward}
	switch r.Hook {
	case "":
	case backend.Output.String():
		hooks = hooks[:1]
	case backend.Forward.String():
		hooks = hooks[1:]
	default:
		return admin.Status{}, fmt.Errorf("%w: there is no hook %q: output and forward", admin.ErrInvalid, r.Hook)
	}
	return a.changed(ctx, a.guard.switchAudit(ctx, hooks, r.Audit))
}

// Trial implements [admin.Guard].
func (a *administration) Trial(ctx context.Context, r admin.TrialRequest) (admin.Status, error) {
	return a.changed(ctx, a.guard.try(ctx, time.Duration(min(r.Seconds, maxTrial.Seconds()+1)*float64(time.Second))))
}

// Confirm implements [admin.Guard].
func (a *administration) Confirm(ctx context.Context) (admin.Status, error) {
	return a.changed(ctx, a.guard.confirm(ctx))
}

// Disarm implements [admin.Guard].
func (a *administration) Disarm(ctx context.Context) (admin.Status, error) {
	return a.changed(ctx, a.guard.disarm())
}

// changed is the status after a change.
func (a *administration) changed(ctx context.Context, err error) (admin.Status, error) {
	switch {
	case errors.Is(err, backend.ErrNoAudit):
		err = fmt.Errorf("%w: %v", admin.ErrConflict, err)
	case errors.Is(err, backend.ErrClosed):
		err = fmt.Errorf("%w: %v", admin.ErrUnavailable, err)
	}
	if err != nil {
		return admin.Status{}, err
	}
	return a.Status(ctx)
}

// Denied implements [admin.Guard].
func (a *administration) Denied(ctx context.Context, q admin.DeniedQuery) (admin.DeniedList, error) {
	list := admin.DeniedList{Flows: []admin.Denied{}}
	d, err := a.denials()
	if err != nil {
		return list, err
	}
	// The last seconds are not to be missing. But what is only counted says less than what
	// is shown, which comes a moment late.
	select {
	case <-time.After(shownWithin):
	case <-ctx.Done():
		return list, ctx.Err()
	}
	if err := d.log.Look(ctx); err != nil {
		return list, err
	}
	missing := d.log.Sums().Missing
	list.More = !missing.IsZero() && !missing.Before(q.Since)
	for _, f := range d.log.Flows() {
		if f.Last.Before(q.Since) {
			continue
		}
		list.Flows = append(list.Flows, d.describe(&f, d.judged(&f)))
	}
	return list, nil
}

// shownWithin is how late the kernel shows a packet.
const shownWithin = 150 * time.Millisecond

// Follow implements [admin.Guard].
func (a *administration) Follow(ctx context.Context, each func(admin.Denied) error) error {
	d, err := a.denials()
	if err != nil {
		return err
	}
	flows := make(chan admin.Denied, 256)
	d.mu.Lock()
	d.followers[flows] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.followers, flows)
	}()
	for {
		select {
		case f := <-flows:
			if err := each(f); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// denials are what is denied, of a guard that is armed.
func (a *administration) denials() (*denied, error) {
	if err := a.guard.ready(); err != nil {
		return nil, err
	}
	a.guard.arming.Lock()
	defer a.guard.arming.Unlock()
	if a.guard.denied == nil {
		return nil, fmt.Errorf("%w: what enforces here does not count what it refuses", admin.ErrUnsupported)
	}
	return a.guard.denied, nil
}

// namesFor are the names whose answers have opened an address to a holder.
func (a *administration) namesFor(key backend.Key, answers []why.Answer) []string {
	names := []string{}
	for _, w := range answers {
		if w.Scope == key.Scope && w.Stripped == "" && !slices.Contains(names, why.Plain(w.Name)) {
			names = append(names, why.Plain(w.Name))
		}
	}
	return names
}

// The process's variables, read back.

func metric(m prometheus.Metric) *dto.Metric {
	var d dto.Metric
	_ = m.Write(&d) // fails for none of ours
	return &d
}

func count(c prometheus.Counter) uint64 { return uint64(metric(c).GetCounter().GetValue()) }
func gauge(g prometheus.Gauge) float64  { return metric(g).GetGauge().GetValue() }

func held() (h admin.Hold) {
	d := metric(holdSeconds).GetHistogram()
	h = admin.Hold{Count: d.GetSampleCount(), Seconds: d.GetSampleSum(), Buckets: []admin.Bucket{}}
	for _, b := range d.GetBucket() {
		h.Buckets = append(h.Buckets, admin.Bucket{Below: b.GetUpperBound(), Count: b.GetCumulativeCount()})
	}
	return h
}
