package why

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// grants says whether a grant lets the flow pass, and if none does, what comes closest to
// why: a grant that it has, but not for this; what it had, or was not to have; what others
// have.
func (k *Knowledge) grants(f *Flow) Verdict {
	holders := k.holders(f)
	var near *Verdict
	for _, class := range append([]backend.Class{0}, slices.Sorted(maps.Keys(k.Rules.Classes))...) {
		predicates := k.Rules.Classes[class]
		for _, holder := range holders {
			holder.Class = class
			until, ok := k.inForce(holder, f)
			if !ok {
				continue
			}
			v := Verdict{Holder: holder, Until: until, Answer: k.latest(f, func(a *Answer) bool { return a.Scope == holder && a.Stripped == "" })}
			if v.Reason = f.mismatch(&predicates); v.Reason == "" {
				v.Passes, v.Reason = true, Granted
				v.Text = fmt.Sprintf("opened %s, for %s more", v.answer(), Round(until.Sub(k.Now)))
				return v
			}
			v.Text = v.onlyFor(&predicates)
			if near == nil {
				near = &v
			}
		}
	}
	if near == nil {
		near = k.past(f, holders)
	}
	near.Lingers = k.lingers(near)
	if near.Lingers {
		near.Text += fmt.Sprintf("; while it is used it stays open (linger %v)", k.Rules.Linger)
	}
	return *near
}

// inForce returns when the grant of a holder for where the flow goes ends, if there is
// one.
func (k *Knowledge) inForce(holder backend.Scope, f *Flow) (until time.Time, ok bool) {
	until, _ = k.InForce(holder.Key(f.To))
	return until, until.After(k.Now)
}

// onlyFor says what a grant that does not let the flow pass is for.
func (v *Verdict) onlyFor(p *backend.Predicates) string {
	if v.Reason == OtherPort {
		return fmt.Sprintf("port not in the block's ports: opened %s, for %s only", v.answer(), p)
	}
	return fmt.Sprintf("opened %s, for other programs only: %s", v.answer(), p)
}

// answer says by what a grant has been made.
func (v *Verdict) answer() string {
	if v.Answer == nil {
		return "by an answer that is not remembered"
	}
	return "by the answer for " + Plain(v.Answer.Name)
}

// latest returns the latest answer of some, or nil.
func (k *Knowledge) latest(f *Flow, are func(*Answer) bool) *Answer {
	all := k.Answers(f.To)
	if i := slices.IndexFunc(all, func(a Answer) bool { return are(&a) }); i >= 0 {
		return &all[i]
	}
	return nil
}

// past says why there is no grant.
func (k *Knowledge) past(f *Flow, holders []backend.Scope) *Verdict {
	mine := func(a *Answer) bool {
		s := a.Scope
		s.Class = 0
		return slices.Contains(holders, s)
	}
	if a := k.latest(f, mine); a != nil {
		return k.had(a)
	}
	if a := k.latest(f, func(a *Answer) bool { return k.stands(a) }); a != nil {
		return &Verdict{Reason: OtherHolder, Answer: a, Holder: a.Scope, Until: a.Until,
			Text: fmt.Sprintf("granted to %s, not to %s (the answer for %s)", k.asker(a), k.sender(f), Plain(a.Name))}
	}
	if a := k.latest(f, func(a *Answer) bool { return a.Stripped != "" }); a != nil {
		return k.had(a)
	}
	if a := k.latest(f, func(*Answer) bool { return true }); a != nil {
		return &Verdict{Reason: OtherHolder, Answer: a, Holder: a.Scope, Until: a.Until,
			Text: fmt.Sprintf("was granted to %s, not to %s, and expired %s ago, was %s", k.asker(a), k.sender(f), Round(max(k.Now.Sub(a.Until), 0)), Plain(a.Name))}
	}
	return &Verdict{Reason: NeverResolved, Text: "never resolved here"}
}

// stands reports whether the grant of an answer is in force.
func (k *Knowledge) stands(a *Answer) bool {
	until, _ := k.InForce(a.Scope.Key(a.Addr))
	return a.Stripped == "" && until.After(k.Now)
}

// had is the verdict by an answer to the sender itself that opens nothing, or nothing any
// more.
func (k *Knowledge) had(a *Answer) *Verdict {
	v := &Verdict{Answer: a, Holder: a.Scope, Until: a.Until}
	switch name := Plain(a.Name); {
	case a.Stripped != "":
		v.Reason, v.Text = Stripped, fmt.Sprintf("stripped: %s, in the answer for %s", a.Stripped, name)
	case a.Until.After(k.Now):
		v.Reason, v.Text = EndedEarly, fmt.Sprintf("ended early, was %s: revoked, or to make room (max_grants), or somebody else has changed the rules", name)
	default:
		v.Reason, v.Text = Expired, fmt.Sprintf("expired %s ago, was %s (margin %v)", Round(max(k.Now.Sub(a.Until), 0)), name, k.Margin)
	}
	return v
}

// lingers reports whether what is in use would pass nevertheless.
func (k *Knowledge) lingers(v *Verdict) bool { return k.Rules.Linger > 0 && v.Reason == Expired }

// asker is whom an answer was for, as people call him.
func (k *Knowledge) asker(a *Answer) string {
	if a.Asker.IsValid() && (a.Scope.Holder == backend.Client || a.Scope.Holder == backend.Link) {
		return a.Asker.String()
	}
	return k.call(a.Scope)
}

func (k *Knowledge) call(s backend.Scope) string {
	s.Class = 0
	if k.Call != nil {
		return k.Call(s)
	}
	return s.String()
}

// sender is who sends, as people call him.
func (k *Knowledge) sender(f *Flow) string {
	switch {
	case f.Forwarded && f.Client.IsValid():
		return f.Client.String()
	case f.Forwarded:
		return "every client"
	case f.Program == nil:
		return "every program"
	case f.Program.Unit != "":
		return f.Program.Unit
	}
	return k.call(backend.UserScope(f.Program.User))
}

// Plain is a name as people write it: without the dot at its end.
func Plain(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

// Round spells a duration as exactly as matters.
func Round(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond)
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
