package backendtest

import (
	"context"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// deniedClauses are what a backend promises that is a [backend.Auditor] or has
// [backend.Denials]. What becomes of packets, its own tests tell.
var deniedClauses = []clause{
	{"nothing is denied where nothing is sent", (*contract).nothingDenied},
	{"no trial where nothing is in audit", (*contract).nothingToTry},
	{"a trial lasts until its time", (*contract).trial},
	{"a trial ends early", (*contract).trialEndsEarly},
	{"a trial goes on over open, but not over one without audit", (*contract).trialOverOpen},
	{"no trial and no denials after close", (*contract).deniedAfterClose},
}

// auditRules are the contract's rules in audit.
func auditRules() backend.Rules {
	r := Rules()
	r.AuditLocal = true
	return r
}

func (c *contract) auditor() backend.Auditor {
	c.Helper()
	a, ok := c.Backend.(backend.Auditor)
	if !ok {
		c.Skip("it has no audit")
	}
	return a
}

func (c *contract) denials() backend.Denials {
	c.Helper()
	d, ok := c.Backend.(backend.Denials)
	if !ok {
		c.Skip("it does not count what it denies")
	}
	return d
}

// try begins a trial.
func (c *contract) try(a backend.Auditor, until time.Time) {
	c.Helper()
	if err := a.Trial(c.Context(), until); err != nil {
		c.Fatalf("a trial: %v", err)
	}
}

// tried fails the test unless the enforcer says that a trial lasts until then; zero is
// none.
func (c *contract) tried(a backend.Auditor, want time.Time) {
	c.Helper()
	got, err := a.Tried(c.Context())
	if err != nil {
		c.Fatalf("what is tried: %v", err)
	}
	if got.IsZero() != want.IsZero() || got.Before(want.Add(-kernelClock)) || got.After(want.Add(time.Second)) {
		c.Errorf("a trial lasts until %v, want %v", got, want)
	}
}

func (c *contract) nothingDenied() {
	d := c.denials()
	for _, r := range []backend.Rules{{}, Rules(), auditRules()} {
		if r.Table != "" { // at first it is not open
			c.open(r)
		}
		err := d.Denied(c.Context(), func(d backend.Denial) { c.Errorf("denied: %v", d) })
		tallies, err2 := d.Tallies(c.Context())
		if err != nil || err2 != nil || tallies != [backend.Hooks]backend.Tally{} {
			c.Errorf("%v (%v, %v)", tallies, err, err2)
		}
	}
	ctx, cancel := context.WithCancelCause(c.Context())
	cancel(errEnough)
	if err := d.Denied(ctx, func(backend.Denial) {}); err != errEnough {
		c.Errorf("got %v, want the context's cause", err)
	}
}

func (c *contract) nothingToTry() {
	a := c.auditor()
	for range 2 {
		if err := a.Trial(c.Context(), in(time.Hour)); err != backend.ErrNoAudit {
			c.Errorf("a trial: %v", err)
		}
		c.try(a, time.Time{}) // there is nothing to end
		c.tried(a, time.Time{})
		c.open(Rules())
	}
	r := Rules()
	r.Local, r.AuditLocal = false, true // of what is not guarded
	c.open(r)
	if err := a.Trial(c.Context(), in(time.Hour)); err != backend.ErrNoAudit {
		c.Errorf("a trial of nothing: %v", err)
	}
}

func (c *contract) trial() {
	a := c.auditor()
	c.open(auditRules())
	c.tried(a, time.Time{})
	for _, life := range []time.Duration{time.Hour, 2 * time.Hour, time.Minute} {
		until := in(life)
		c.try(a, until)
		c.tried(a, until)
	}
	c.try(a, in(100*time.Millisecond))
	Eventually(c.T, "the trial has ended", func() bool {
		until, err := a.Tried(c.Context())
		return err == nil && until.IsZero()
	})
}

func (c *contract) trialEndsEarly() {
	a := c.auditor()
	c.open(auditRules())
	for _, end := range []time.Time{{}, in(-time.Hour), time.Now()} {
		c.try(a, in(time.Hour))
		c.try(a, end)
		c.tried(a, time.Time{})
	}
}

func (c *contract) trialOverOpen() {
	a := c.auditor()
	c.open(auditRules())
	until := in(time.Hour)
	c.try(a, until)
	both := auditRules()
	both.AuditGateway, both.Interfaces = true, nil
	c.open(both)
	c.tried(a, until)
	c.open(Rules())
	c.tried(a, time.Time{})
	c.open(both)
	c.tried(a, time.Time{})
}

func (c *contract) deniedAfterClose() {
	a, d := c.auditor(), c.denials()
	c.open(auditRules())
	if err := c.Close(backend.Remove); err != nil {
		c.Fatal(err)
	}
	_, errTried := a.Tried(c.Context())
	_, errTallies := d.Tallies(c.Context())
	for name, err := range map[string]error{
		"trial": a.Trial(c.Context(), in(time.Hour)), "tried": errTried, "tallies": errTallies,
		"denied": d.Denied(c.Context(), func(backend.Denial) {}),
	} {
		if err != backend.ErrClosed {
			c.Errorf("%s after close: %v", name, err)
		}
	}
}
