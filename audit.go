package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// maxTrial is more than anybody watches a trial for.
const maxTrial = 7 * 24 * time.Hour

// switchAudit puts hooks in audit, or has them enforced, until somebody says otherwise or
// CoreDNS is restarted. It ends a trial.
func (g *guard) switchAudit(ctx context.Context, hooks []backend.Hook, audited bool) error {
	auditor, err := g.auditor()
	if err != nil {
		return err
	}
	g.lookAtDenied(ctx)
	g.arming.Lock()
	defer g.arming.Unlock()
	guarded := [backend.Hooks]bool{backend.Output: g.rules.Local, backend.Forward: g.rules.Gateway}
	if len(hooks) == 1 && !guarded[hooks[0]] {
		return fmt.Errorf("%w: %s is not guarded in mode %s", admin.ErrInvalid, hookText(hooks[0]), g.settings.Load().mode)
	}
	before := g.switched
	for _, h := range hooks {
		g.switched[h].by, g.switched[h].audit = true, audited
	}
	if err := g.enforce(g.settings.Load(), g.units); err != nil {
		g.switched = before
		return err
	}
	if err := auditor.Trial(ctx, time.Time{}); err != nil && !errors.Is(err, backend.ErrNoAudit) {
		return fmt.Errorf("it is switched, but a trial that was on could not be ended: %w", err)
	}
	g.awaitTrialLocked(time.Time{})
	log.Warningf("Switched from the admin socket: %s", g.auditedLocked())
	return nil
}

// hookText is what passes by a hook, in words.
func hookText(h backend.Hook) string {
	if h == backend.Output {
		return "what this machine sends"
	}
	return "what it forwards for others"
}

// lookAtDenied reads what has been denied in audit until now: its lists end with it.
func (g *guard) lookAtDenied(ctx context.Context) {
	g.arming.Lock()
	d := g.denied
	g.arming.Unlock()
	if d != nil {
		_ = d.log.Look(ctx)
	}
}

// try has what is in audit enforced for so long.
func (g *guard) try(ctx context.Context, last time.Duration) error {
	if last <= 0 || last > maxTrial {
		return fmt.Errorf("%w: a trial lasts up to %v, and not %v", admin.ErrInvalid, maxTrial, last)
	}
	auditor, err := g.auditor()
	if err != nil {
		return err
	}
	g.arming.Lock()
	defer g.arming.Unlock()
	if !g.auditsLocked() {
		return fmt.Errorf("%w: all that is guarded is enforced already: there is nothing to try (guardctl audit first)", admin.ErrConflict)
	}
	until := g.now().Add(last)
	if err := auditor.Trial(ctx, until); err != nil {
		return err
	}
	g.awaitTrialLocked(until)
	log.Warningf("Trial for %v, from the admin socket: what was in audit is refused until then, unless it is confirmed", last)
	return nil
}

// awaitTrialLocked has the end of a trial logged, which nobody has to be there for. The
// zero time is none.
func (g *guard) awaitTrialLocked(until time.Time) {
	if g.trial != nil {
		g.trial.Stop()
		g.trial = nil
	}
	if !until.After(g.now()) {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(until.Sub(g.now()), func() {
		g.arming.Lock()
		defer g.arming.Unlock()
		if g.trial == timer && g.auditsLocked() {
			log.Warningf("The trial has ended, and nobody has confirmed it: %s", g.auditedLocked())
		}
	})
	g.trial = timer
}

// confirm keeps what a trial enforces.
func (g *guard) confirm(ctx context.Context) error {
	auditor, err := g.auditor()
	if err != nil {
		return err
	}
	until, err := auditor.Tried(ctx)
	if err != nil && !errors.Is(err, backend.ErrNoAudit) {
		return err
	}
	if !until.After(g.now()) {
		return fmt.Errorf("%w: there is no trial, or it has ended: guardctl trial 5m begins one", admin.ErrConflict)
	}
	return g.switchAudit(ctx, []backend.Hook{backend.Output, backend.Forward}, false)
}

// trialEnds is when a trial that is on ends, or the zero time.
func (g *guard) trialEnds() time.Time {
	auditor, ok := g.backend.(backend.Auditor)
	if !ok {
		return time.Time{}
	}
	until, err := auditor.Tried(context.Background())
	if err != nil {
		return time.Time{}
	}
	return until
}

// auditor is the backend as one, of a guard that is armed.
func (g *guard) auditor() (backend.Auditor, error) {
	if err := g.ready(); err != nil {
		return nil, err
	}
	auditor, ok := g.backend.(backend.Auditor)
	if !ok {
		return nil, fmt.Errorf("%w: what enforces here has no audit", admin.ErrUnsupported)
	}
	return auditor, nil
}

// ready says why the guard cannot be asked to do anything, or nothing.
func (g *guard) ready() error {
	switch {
	case g.removed.Load():
		return fmt.Errorf("%w: it has been disarmed, and nothing is guarded until CoreDNS is restarted", admin.ErrConflict)
	case !g.armed(), g.closed.Load():
		return admin.ErrUnavailable
	}
	return nil
}

// auditsLocked reports whether any guarded hook is in audit.
func (g *guard) auditsLocked() bool {
	return g.rules.Local && g.rules.AuditLocal || g.rules.Gateway && g.rules.AuditGateway
}

// audited says in words what is in audit, or nothing if all is enforced.
func (g *guard) audited() string {
	g.arming.Lock()
	defer g.arming.Unlock()
	if !g.auditsLocked() {
		return ""
	}
	return g.auditedLocked()
}

// auditedLocked says in words what is in audit.
func (g *guard) auditedLocked() string {
	local, gateway := g.rules.Local && g.rules.AuditLocal, g.rules.Gateway && g.rules.AuditGateway
	switch {
	case local && gateway, g.auditsLocked() && !(g.rules.Local && g.rules.Gateway):
		return "AUDIT: what no grant covers passes, and is counted"
	case local:
		return "AUDIT of what this machine sends: it is not refused; what it forwards is"
	case gateway:
		return "AUDIT of what this machine forwards: it is not refused; what it sends is"
	}
	return "what no grant covers is refused"
}

// disarm removes the rules. Nothing is guarded until CoreDNS is started anew.
func (g *guard) disarm() error {
	if err := g.ready(); err != nil {
		return err
	}
	log.Warning("Disarmed from the admin socket: everything is open until CoreDNS is restarted")
	return g.end(backend.Remove)
}
