package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// routed returns what the client may get of m in a block with routes, and whether that is
// all: the addresses of an answer that has nothing to do with routes are not in force yet.
func (q *query) routed(m *dns.Msg, scope backend.Scope) (out *dns.Msg, done bool, err error) {
	p, g := q.handler.policy, q.handler.guard
	var short [3]link
	chain, err := q.chain(m, short[:0])
	if err != nil {
		return nil, false, err
	}
	r, by := p.decides(chain)
	switch {
	case r == nil:
		return p.hide(chain, m), false, nil
	case g.removed.Load():
		return m, true, nil
	}
	translated, local := g.translates(q, q.request)
	if !translated {
		return m, true, nil // and what it gives is not opened either
	}
	for {
		if r, err = g.awaitRoute(q.Context, r, by); err != nil {
			return nil, true, err
		}
		// The addresses are of the name that was asked for, whichever on the way has the route:
		// else whoever answers for an alias could say where another name's addresses lead.
		if out, err = q.rewritten(m, scope, r, by, local); err != errTakenOver {
			return out, true, err
		}
	}
}

// chain is where the question leads by m.
func (q *query) chain(m *dns.Msg, buf []link) ([]link, error) {
	if m.Rcode&0xf != dns.RcodeSuccess {
		return append(buf, link{q.question.Name, 0}), nil
	}
	return follow(q.question.Name, m.Answer, buf)
}

// rewritten is what the client gets of an answer with a route, that of the name by, in force
// by then.
func (q *query) rewritten(m *dns.Msg, scope backend.Scope, r *namedRoute, by string, local bool) (*dns.Msg, error) {
	p, g, name := q.handler.policy, q.handler.guard, q.question.Name
	chain, err := q.chain(m, nil)
	if err != nil {
		return nil, err
	}
	w := rewriting{policy: p, route: r, question: q.question, chain: chain}
	if !w.concerns(m) {
		return p.hide(chain, m), nil
	}
	real, ttl := w.real(m, make([]netip.Addr, 0, 8))
	real, why := g.carried(r, real, local)
	scope.Class = r.class
	var asker uint64
	if !r.literal || p.of(name) == nil {
		asker = q.namer(scope)
	}
	done, err := g.give(r)
	if err != nil {
		return nil, err
	}
	defer done.RUnlock()
	mapped, err := g.mapped(q.Context, r, name, by, asker, real)
	if err != nil {
		refusedOf(err).Inc()
		g.failures.Do(func() { log.Errorf("An answer for a name with a route was withheld, the client got SERVFAIL: %v", err) })
		return nil, err
	}
	out := p.hide(chain, w.rewrite(m, mapped, ttl))
	if len(out.Answer) == 0 {
		if why == "" {
			why = "it has nothing but what leads elsewhere"
		}
		explain(out, q.request, dns.ExtendedErrorCodeFiltered, fmt.Sprintf("%s has a route: %s", strings.TrimSuffix(name, "."), why))
	}
	answersRewritten.Inc()
	var few [8]target
	targets := few[:0]
	for _, addr := range mapped {
		targets = append(targets, target{backend.KeyOf(addr), ttl})
	}
	if err := g.permitMapped(q.Context, scope, name, targets); err != nil {
		return nil, err
	}
	g.remember(q, scope, targets)
	return out, nil
}

// translates reports whether what the asker sends is guarded here, and whether that is this
// machine: who asks the gateway from itself in nft-gateway, or a server from elsewhere in
// nft-local, has no use for mapped addresses.
func (g *guard) translates(w dns.ResponseWriter, request *dns.Msg) (translated, local bool) {
	s := g.settings.Load()
	_, local = g.asker(s, w, request)
	return local && s.local() || !local && s.gateway(), local
}

// carried returns those addresses that packets reach by a route, and why others are left
// out.
func (g *guard) carried(r *namedRoute, real []netip.Addr, local bool) (left []netip.Addr, why string) {
	left = real[:0]
	for _, addr := range real {
		switch {
		case !r.carries(addr.Is4()):
			why = "it carries " + r.family + " only"
		case !addr.Is4() && !g.leads(r, addr, local):
			why = fmt.Sprintf("there is no way to %v from here", addr)
		default:
			left = append(left, addr)
		}
	}
	return left, why
}

// leads reports whether packets to an IPv6 address have a way by a route. IPv4 is not
// asked for: it is there, and if it is not, there is nothing better.
func (g *guard) leads(r *namedRoute, addr netip.Addr, local bool) bool {
	if g.host.leads == nil {
		return true
	}
	fixed := slices.ContainsFunc(r.egress, func(e netip.Addr) bool { return !e.Is4() })
	if !g.host.leads(addr, identity.Way{Out: r.out, Mark: r.mark, Fixed: fixed}, g.now()) {
		return false
	}
	if !local {
		return true
	}
	// A program of this machine needs a way to the mapped address first.
	i := slices.IndexFunc(r.pools, func(p netip.Prefix) bool { return !p.Addr().Is4() })
	return g.host.leads(r.pools[i].Addr(), identity.Way{Fixed: true}, g.now())
}

// mapped returns addresses that stand for the real ones of a name, when the kernel
// translates them.
func (g *guard) mapped(ctx context.Context, r *namedRoute, name, by string, asker uint64, real []netip.Addr) (all []netip.Addr, err error) {
	is6 := func(a netip.Addr) bool { return !a.Is4() }
	slices.SortStableFunc(real, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	at := slices.IndexFunc(real, is6)
	if at < 0 {
		at = len(real)
	}
	for _, version := range [][]netip.Addr{real[:at], real[at:]} {
		if len(version) == 0 {
			continue
		}
		answer, err := r.book.Assign(ctx, &r.listed, name, by, asker, version, g.settings.Load().hold)
		if err != nil {
			return nil, err
		}
		if r.cut && len(answer.Stale) > 0 {
			g.cuts.add(answer.Stale, slices.Clone(version))
		}
		if all == nil {
			all = answer.Mapped
		} else {
			all = append(all, answer.Mapped...)
		}
	}
	return all, nil
}

// namer is a hash of who may have a share of the addresses for names that he makes up: 0 is nobody,
// where this machine has nobody to leave some for.
func (q *query) namer(scope backend.Scope) uint64 {
	asker := q.asker(scope)
	if asker == 0 && q.handler.guard.settings.Load().gateway() {
		return 1
	}
	return asker
}

// share is a hash of one client or application; all of this machine, and all together, have 0.
func (g *guard) share(scope backend.Scope) uint64 {
	if scope.Holder.Many() {
		return 0
	}
	scope.Class = 0
	rules := backend.Rules{OnLink: *g.onLink.Load()}
	return maphash.Comparable(g.seed, rules.Account(scope)) | 1
}

// refusedOf is the counter for a reason that a name has got no mapped address.
func refusedOf(err error) interface{ Inc() } {
	switch {
	case errors.Is(err, route.ErrPoolFull), errors.Is(err, route.ErrShare), errors.Is(err, backend.ErrMappings):
		return mappingsRefusedFull
	case errors.Is(err, route.ErrLate), errors.Is(err, route.ErrBusy), errors.Is(err, backend.ErrLate), errors.Is(err, backend.ErrBusy), errors.Is(err, context.Canceled):
		return mappingsRefusedLate
	}
	return mappingsRefusedFailed
}
