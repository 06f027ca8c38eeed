package ipdestinationguard

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// knowledge is what verdicts on packets of now go by.
func (g *guard) knowledge() *why.Knowledge {
	g.arming.Lock()
	rules := g.rules
	g.arming.Unlock()
	t := g.routing.Load()
	return &why.Knowledge{
		Rules: rules, InForce: g.inForce.Lookup, Answers: g.history.Of, Own: g.own, Mapped: t.owner,
		Leads: func(mapped netip.Addr) (netip.Addr, bool) {
			place, _ := t.placeOf(mapped)
			return place.Real, t.routeOf(mapped, &rules) != nil
		},
		Stray:  func(f *why.Flow) string { return g.stray(&rules, f) },
		Margin: g.settings.Load().lease.Margin, Call: g.call, Now: g.now(),
	}
}

// Explain implements [admin.Guard].
func (a *administration) Explain(ctx context.Context, q admin.ExplainQuery) (e admin.Explanation, err error) {
	if err := a.guard.ready(); err != nil {
		return e, err
	}
	flows, err := a.flows(q)
	if err != nil {
		return e, err
	}
	addrs := []netip.Addr{q.Address}
	if q.Name != "" {
		name := canonical(q.Name)
		addrs = a.addressesOf(name)
		if e.Text = a.withheld(name, addrs); len(addrs) == 0 {
			e.Addresses, e.Text = []admin.Explained{}, cmp.Or(e.Text, a.unasked(name))
			return e, nil
		}
	}
	if n := len(addrs); n > maxExplained {
		addrs = addrs[:maxExplained]
		e.Text = strings.TrimPrefix(fmt.Sprintf("%s; it has had %d addresses: these are %d of them", e.Text, n, maxExplained), "; ")
	}
	k, grants := a.guard.knowledge(), a.grantsFor(addrs)
	leading, err := a.leading(ctx, addrs, &k.Rules)
	if err != nil {
		return e, err
	}
	k.Leads = func(mapped netip.Addr) (netip.Addr, bool) { return leading[mapped].To, leading[mapped].To.IsValid() }
	for _, addr := range addrs {
		x := admin.Explained{Address: addr, Mapped: leading[addr], Grants: grants[addr], Answers: []admin.Answer{}}
		for _, f := range flows {
			f.To = addr
			x.Verdicts = append(x.Verdicts, a.verdict(k, &f))
		}
		for _, answer := range a.guard.history.Of(addr) {
			x.Answers = append(x.Answers, a.answer(&answer))
		}
		e.Addresses = append(e.Addresses, x)
	}
	return e, nil
}

// unasked says what there is to say of a name whose answers are not known.
func (a *administration) unasked(name string) string {
	text := fmt.Sprintf("no answer for %s has come by here, or none that is remembered: ", why.Plain(name))
	for _, p := range a.guard.settings.Load().found.policies {
		if p.opens(name) {
			return text + "it has to be asked for first, here; then its addresses are open, and can be explained"
		}
	}
	return text + "and one would open nothing, since names and except in the Corefile leave it out"
}

// maxExplained bounds the addresses of one name.
const maxExplained = 256

// canonical is a name as answers are remembered by it.
func canonical(name string) string { return strings.ToLower(dns.Fqdn(name)) }

// addressesOf are those that answers for a name have had.
func (a *administration) addressesOf(name string) (addrs []netip.Addr) {
	for answer := range a.guard.history.All() {
		if answer.Name == name && !slices.Contains(addrs, answer.Addr) && len(addrs) < maxTargets {
			addrs = append(addrs, answer.Addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// flows are what is asked about, but for where they go.
func (a *administration) flows(q admin.ExplainQuery) (flows []why.Flow, err error) {
	protocol, ok := protocolNumbers[cmp.Or(strings.ToLower(q.Protocol), "tcp")]
	if !ok {
		return nil, fmt.Errorf("%w: there is no protocol %q here: write one with its port, as in tcp/443, or one without ports, as in icmp", admin.ErrInvalid, q.Protocol)
	}
	base := why.Flow{Protocol: protocol}
	if hasPorts(protocol) {
		base.Port = cmp.Or(q.Port, 443)
	}
	local, through := base, base
	through.Forwarded, through.Client, through.In = true, q.Client, q.Interface
	if q.User != "" || q.Unit != "" {
		if local.Program, err = programOf(q.User, q.Unit); err != nil {
			return nil, fmt.Errorf("%w: %v", admin.ErrInvalid, err)
		}
	}
	s := a.guard.settings.Load()
	byClient := q.Client.IsValid() || q.Interface != ""
	if byClient {
		through.Link = a.guard.link(q.Client)
	}
	if !byClient && (s.local() || local.Program != nil) {
		flows = append(flows, local)
	}
	if local.Program == nil && (s.gateway() || byClient) {
		flows = append(flows, through)
	}
	return flows, nil
}

// verdict is one for people and scripts.
func (a *administration) verdict(k *why.Knowledge, f *why.Flow) admin.Verdict {
	v := k.Explain(f)
	hook, who, audited := backend.Output, "this machine", k.Rules.AuditLocal
	switch {
	case f.Forwarded && f.Client.IsValid():
		hook, who, audited = backend.Forward, f.Client.String(), k.Rules.AuditGateway
	case f.Forwarded:
		hook, who, audited = backend.Forward, "every client", k.Rules.AuditGateway
	case f.Program != nil && f.Program.Unit != "":
		who = f.Program.Unit
	case f.Program != nil:
		who = "user " + userName(f.Program.User)
	}
	nowhere := v.Reason == why.NoWay || v.Reason == why.Unassigned // which audit is not about
	audited = audited && !nowhere && !a.guard.trialEnds().After(k.Now)
	return admin.Verdict{
		Hook: hook.String(), For: who, To: destinationText(f.Protocol, f.Port),
		Passes: v.Passes || audited, Refused: !v.Passes, Reason: string(v.Reason), Text: v.Text,
		Name: nameOf(v.Answer), Until: timeOrNil(v.Until),
	}
}

func nameOf(a *why.Answer) string {
	if a == nil {
		return ""
	}
	return why.Plain(a.Name)
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Answers implements [admin.Guard].
func (a *administration) Answers(_ context.Context, q admin.AnswersQuery) (all admin.Answers, err error) {
	all.Answers = []admin.Answer{}
	name := canonical(q.Name)
	for answer := range a.guard.history.All() {
		switch {
		case q.Name != "" && answer.Name != name, q.Address.IsValid() && answer.Addr != q.Address, answer.At.Before(q.Since):
		case len(all.Answers) == admin.MaxList:
			all.More = true
			return all, nil
		default:
			all.Answers = append(all.Answers, a.answer(&answer))
		}
	}
	return all, nil
}

func (a *administration) answer(w *why.Answer) admin.Answer {
	who := a.guard.call(w.Scope)
	if w.Asker.IsValid() {
		who = w.Asker.String() + " (" + who + ")"
	}
	name := why.Plain(w.Name)
	return admin.Answer{Name: name, Address: w.Addr, For: who, At: w.At, Until: timeOrNil(w.Until), Stripped: w.Stripped, Line: lineFor(name, w.Addr, w.Stripped)}
}
