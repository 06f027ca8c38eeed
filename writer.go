package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// query is one question on its way through the chain: its context, which tells
// lookups inside from questions of clients, and its response writer, which holds
// the answer until its grants are in force.
type query struct {
	context.Context
	dns.ResponseWriter
	handler  *Handler
	request  *dns.Msg
	question dns.Question // as the client asked it: rewrite changes the request
	refused  bool
}

// newQuery returns a zero query. Queries are made by the block, since most need
// nothing else from the heap; but none is used twice: a plugin may keep its
// context or writer for longer than ServeDNS takes, as cache does to prefetch.
func newQuery() *query {
	b := blocks.Get().(*block)
	q := &b.queries[b.used]
	if b.used++; b.used < len(b.queries) {
		blocks.Put(b)
	}
	return q
}

type block struct {
	queries [32]query
	used    int
}

var blocks = sync.Pool{New: func() any { return new(block) }}

// insideKey is known to the contexts that queries hand on.
type insideKey struct{}

// Value implements context.Context.
func (q *query) Value(key any) any {
	if key == (insideKey{}) {
		return q
	}
	return q.Context.Value(key)
}

// WriteMsg implements dns.ResponseWriter.
func (q *query) WriteMsg(m *dns.Msg) error {
	m, err := q.permitted(m)
	if err != nil {
		answersFailed.Inc()
		q.handler.guard.withhold(q.question.Name, err)
		q.refused = true
		m = refusal(q.request, q.question, err)
	} else {
		m = q.returned(m)
	}
	return q.ResponseWriter.WriteMsg(m)
}

// permitted returns what the client may get of m, when it may.
func (q *query) permitted(m *dns.Msg) (*dns.Msg, error) {
	g := q.handler.guard
	if err := g.await(q.Context); err != nil {
		return nil, err
	}
	scope, err := g.scope(q.Context, q, q.request, q.handler.policy)
	if v := q.handler.policy.validation; v != nil && err == nil && v.concerns(q.question.Name) {
		if m, err = q.validated(v, m, scope); err != nil {
			return nil, err
		}
		scope, err = g.scope(q.Context, q, q.request, q.handler.policy) // it may have taken long
	}
	if err == nil {
		err = q.proven(m)
	}
	if err != nil {
		return nil, err
	}
	m = q.strip(m, scope)
	if q.handler.policy.routed != nil {
		var done bool
		if m, done, err = q.routed(m, scope); done || err != nil {
			return m, err
		}
	}
	if scope.Holder == nobody.Holder {
		return m, nil
	}
	var few [8]target
	targets, err := readAnswer(q.question, m, few[:0])
	if err != nil {
		return nil, err
	}
	if err := g.permit(q.Context, scope, q.question.Name, targets); err != nil {
		return nil, err
	}
	g.remember(q, scope, targets)
	return m, nil
}

// strip returns what somebody may know of m: mostly m.
func (q *query) strip(m *dns.Msg, scope backend.Scope) *dns.Msg {
	g := q.handler.guard
	f := filter{policy: q.handler.policy, settings: g.settings.Load(), own: g.own, pools: g.routing.Load().pools, scope: scope, name: q.question.Name}
	if f.clean(m) {
		return m
	}
	m, s := f.strip(q.question, m)
	if s.why == nil {
		return m // an address has ceased to be our own in between
	}
	g.stripped(q.question, s)
	g.rememberStripped(q, scope, s)
	if s.empty || s.why != unreachable { // which is so for each routed client
		explain(m, q.request, dns.ExtendedErrorCodeFiltered, fmt.Sprintf("stripped %v: %s", s.first, s.why.Why))
	}
	return m
}

// Write implements dns.ResponseWriter: packed answers are read as well.
func (q *query) Write(packed []byte) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(packed); err != nil {
		return 0, err
	}
	if err := q.WriteMsg(m); err != nil {
		return 0, err
	}
	return len(packed), nil
}

// refusal is the answer to a client that gets no address, with the reason for
// people (RFC 8914).
func refusal(request *dns.Msg, question dns.Question, reason error) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(request, dns.RcodeServerFailure)
	m.Question = []dns.Question{question}
	m.RecursionAvailable = true
	code := dns.ExtendedErrorCodeOther
	if unproven, ok := codeOf(reason); ok {
		code = unproven
	} else if errors.Is(reason, backend.ErrLate) || errors.Is(reason, route.ErrLate) {
		code = dns.ExtendedErrorCodeNotReady
	}
	explain(m, request, code, reason.Error())
	return m
}

// explain adds to an answer the reason why it is as it is, if the client can read
// it (RFC 8914). The OPT record may be somebody else's, so it is replaced.
func explain(m, request *dns.Msg, code uint16, text string) {
	asked := request.IsEdns0()
	if asked == nil {
		return
	}
	opt := new(dns.OPT)
	if had := m.IsEdns0(); had != nil {
		opt = dns.Copy(had).(*dns.OPT)
		m.Extra = without(m.Extra, func(rr dns.RR) bool { return rr == dns.RR(had) })
	} else {
		opt.Hdr.Name, opt.Hdr.Rrtype = ".", dns.TypeOPT
		opt.SetUDPSize(asked.UDPSize())
		if asked.Do() {
			opt.SetDo()
		}
	}
	opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: name + ": " + text})
	m.Extra = append(m.Extra, opt)
}
