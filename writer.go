package ipdestinationguard

import (
	"context"
	"errors"
	"sync"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// query is one question on its way through the chain: its context, which tells
// lookups inside from questions of clients, and its response writer, which holds
// the answer until its grants are in force.
type query struct {
	context.Context
	dns.ResponseWriter
	guard    *guard
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
	if err := q.permit(m); err != nil {
		q.refused = true
		m = refusal(q.request, q.question, err)
	}
	return q.ResponseWriter.WriteMsg(m)
}

func (q *query) permit(m *dns.Msg) error {
	var few [8]target
	targets, err := readAnswer(q.question, m, few[:0])
	if err != nil {
		answersFailed.Inc()
		return err
	}
	if len(targets) == 0 {
		return nil
	}
	if err := q.guard.await(q.Context); err != nil {
		return err
	}
	scope, needed := q.guard.scope(q.RemoteAddr(), q.request)
	if !needed {
		return nil
	}
	return q.guard.permit(q.Context, scope, targets)
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
	if opt := request.IsEdns0(); opt != nil {
		m.SetEdns0(opt.UDPSize(), opt.Do())
		code := dns.ExtendedErrorCodeOther
		if errors.Is(reason, backend.ErrLate) {
			code = dns.ExtendedErrorCodeNotReady
		}
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{
			InfoCode: code, ExtraText: name + ": " + reason.Error(),
		})
	}
	return m
}
