// Package ipdestinationguard is a CoreDNS plugin that lets a machine, or the
// network behind it, connect only to what its DNS has just answered.
package ipdestinationguard

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/opentracing/opentracing-go"
)

// Name is the directive in the Corefile; ready and metadata know the plugin by
// it as well.
const name = "ipdestinationguard"

// Handler stands in the plugin chain of a server block.
type Handler struct {
	Next   plugin.Handler
	guard  *guard
	policy *policy
}

var _ plugin.Handler = (*Handler)(nil)

// Name implements plugin.Handler.
func (*Handler) Name() string { return name }

// ServeDNS implements plugin.Handler.
func (h *Handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if len(r.Question) != 1 {
		return dns.RcodeFormatError, nil // RFC 9619: there is one question
	}
	if !h.policy.clients.empty() {
		if why := h.excludes(ctx, w, r); why != nil {
			return h.exclude(w, r, why)
		}
	}
	if h.policy.canary {
		if m := canary(r); m != nil {
			return m.Rcode, w.WriteMsg(m)
		}
	}
	if t := h.guard.routing.Load(); len(t.pools) > 0 {
		if m := h.reverse(ctx, w, r, t); m != nil {
			return m.Rcode, w.WriteMsg(m)
		}
	}
	if !guarded(ctx, r) {
		return plugin.NextOrFailure(name, h.Next, ctx, w, r)
	}
	if !h.policy.opens(r.Question[0].Name) {
		if h.policy.refuseOthers {
			return h.refuse(w, r, "the name is none of those that may be asked for here")
		}
		return plugin.NextOrFailure(name, h.Next, ctx, w, r)
	}
	q := newQuery()
	q.Context, q.ResponseWriter, q.handler, q.request, q.question = ctx, w, h, r, r.Question[0]
	rcode, err := h.next(q, q.ask(r))
	if q.refused {
		// The client has its SERVFAIL. Whatever the chain thinks, the server
		// must not answer a second time.
		return dns.RcodeSuccess, err
	}
	return rcode, err
}

// refuse answers that this may not be asked here, and why.
func (h *Handler) refuse(w dns.ResponseWriter, r *dns.Msg, why string) (int, error) {
	answersRefused.Inc()
	m := new(dns.Msg).SetRcode(r, dns.RcodeRefused)
	explain(m, r, dns.ExtendedErrorCodeProhibited, why)
	// It has been said: of the other code the server would make a second answer.
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// next hands the query on, as plugin.NextOrFailure would, but without the writer
// that this makes to note who has answered: recorders outside see our name in any
// case, and a cached answer is 3 % cheaper so.
func (h *Handler) next(q *query, r *dns.Msg) (int, error) {
	if h.Next == nil || opentracing.SpanFromContext(q.Context) != nil {
		return plugin.NextOrFailure(name, h.Next, q, q, r)
	}
	return h.Next.ServeDNS(q, q, r)
}

// guarded reports whether the answer to r gives addresses to a client. A zone
// transfer does not, and writes from a goroutine of its own. Nor does a lookup
// that another plugin makes through the whole chain (dns64, a CNAME's target in
// file): what comes of it is part of the answer that is read outside.
func guarded(ctx context.Context, r *dns.Msg) bool {
	switch r.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		return false
	}
	return ctx.Value(insideKey{}) == nil
}

// Ready implements ready.Readiness: the rules are in force.
func (h *Handler) Ready() bool { return h.guard.enforcing.Load() }
