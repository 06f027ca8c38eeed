package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// client is where answers arrive. It notes what was granted at that moment.
type client struct {
	*dnstest.Recorder
	*rig
	by       *policy // of the server block that is asked
	messages int
	granted  []string
}

func (r *rig) client() *client {
	return &client{Recorder: dnstest.NewRecorder(&test.ResponseWriter{}), rig: r, by: r.policy}
}

func (c *client) WriteMsg(m *dns.Msg) error {
	c.messages++
	list, _ := c.kernel.List()
	c.granted = nil
	for _, g := range list {
		c.granted = append(c.granted, g.Addr.String())
	}
	return c.Recorder.WriteMsg(m)
}

// serve lets the plugin serve a request, before next in the chain.
func (c *client) serve(request *dns.Msg, next test.HandlerFunc) (rcode int, err error) {
	h := &Handler{Next: next, guard: c.guard, policy: c.by}
	return h.ServeDNS(c.Context(), c, request)
}

// answering answers every question with these records.
func answering(t testing.TB, lines string) test.HandlerFunc {
	answer := records(t, lines)
	return func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = answer
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
}

func request(t testing.TB, text string) *dns.Msg {
	q := question(t, text)
	m := new(dns.Msg).SetQuestion(q.Name, q.Qtype)
	m.Question[0].Qclass = q.Qclass
	return m
}

func TestName(t *testing.T) {
	if got := new(Handler).Name(); got != "ipdestinationguard" {
		t.Errorf("the plugin is called %s", got)
	}
}

func TestAnswerIsHeldUntilItsGrantsStand(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nhold 1m\n}")
	release := r.kernel.Stall()
	c := r.client()
	var serving sync.WaitGroup
	serving.Go(func() {
		rcode, err := c.serve(request(t, "a.test. A"), answering(t, "a.test. 60 A 192.0.2.1\na.test. 60 A 192.0.2.2"))
		if rcode != dns.RcodeSuccess || err != nil {
			t.Errorf("served with %d, %v", rcode, err)
		}
	})
	release()
	serving.Wait()
	if err := test.SortAndCheck(c.Msg, test.Case{
		Qname: "a.test.", Qtype: dns.TypeA,
		Answer: []dns.RR{test.A("a.test. 60 IN A 192.0.2.1"), test.A("a.test. 60 IN A 192.0.2.2")},
	}); err != nil {
		t.Error(err)
	}
	if want := []string{"192.0.2.1", "192.0.2.2"}; !slices.Equal(c.granted, want) {
		t.Errorf("granted when the answer left: %v, want %v", c.granted, want)
	}
}

// A client that gets no address learns why, if it can read it.
func TestRefusal(t *testing.T) {
	const directive = "ipdestinationguard nft-local {\nhold 10ms\n}"
	tests := []struct {
		name    string
		trouble func(*rig)
		answer  string
		code    uint16
		text    string
	}{
		{"the kernel says no",
			func(r *rig) {
				r.kernel.Refuse(&backend.PermissionError{Need: "CAP_NET_ADMIN", Err: errors.New("operation not permitted")})
			},
			"a.test. 60 A 192.0.2.1", dns.ExtendedErrorCodeOther,
			"ipdestinationguard: operation not permitted: the process needs CAP_NET_ADMIN"},
		{"the kernel is full", func(r *rig) { r.kernel.Refuse(backend.ErrFull) },
			"a.test. 60 A 192.0.2.1", dns.ExtendedErrorCodeOther, "ipdestinationguard: as many addresses are open as may be (max_grants), or more are asked for at once than one may have"},
		{"the kernel says nothing", func(r *rig) { r.kernel.Stall() },
			"a.test. 60 A 192.0.2.1", dns.ExtendedErrorCodeNotReady,
			"ipdestinationguard: the firewall has not confirmed the address in time"},
		{"the chain is endless", func(*rig) {},
			"test. 60 DNAME a.test.", dns.ExtendedErrorCodeOther, "ipdestinationguard: the answer leads through too many names"},
	}
	for _, tt := range tests {
		for _, edns := range []bool{true, false} {
			t.Run(tt.name+map[bool]string{true: ", with EDNS", false: ""}[edns], func(t *testing.T) {
				r := newRig(t, directive)
				tt.trouble(r)
				req := request(t, "a.test. A")
				if edns {
					req.SetEdns0(1400, true)
				}
				c := r.client()
				next := answering(t, tt.answer)
				rcode, err := c.serve(req, func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					_, _ = next(ctx, w, r)
					return dns.RcodeServerFailure, nil // as a plugin may sum it up
				})
				if !plugin.ClientWrite(rcode) || err != nil {
					t.Errorf("served with %d, %v: the server would answer once more", rcode, err)
				}
				m := c.Msg
				if c.messages != 1 || m.Rcode != dns.RcodeServerFailure || !m.Response || !m.RecursionAvailable || m.Id != req.Id {
					t.Fatalf("got %d answers, the last:\n%v", c.messages, m)
				}
				if len(m.Question) != 1 || m.Question[0] != question(t, "a.test. A") || len(m.Answer)+len(m.Ns) > 0 {
					t.Errorf("got\n%v", m)
				}
				opt := m.IsEdns0()
				if !edns {
					if len(m.Extra) > 0 {
						t.Errorf("EDNS for one who does not know it:\n%v", m)
					}
					return
				}
				if opt == nil || opt.UDPSize() != 1400 || !opt.Do() || len(opt.Option) != 1 {
					t.Fatalf("got\n%v", m)
				}
				if ede, ok := opt.Option[0].(*dns.EDNS0_EDE); !ok || ede.InfoCode != tt.code || ede.ExtraText != tt.text {
					t.Errorf("got %v, want %d %s", opt.Option[0], tt.code, tt.text)
				}
				if _, err := m.Pack(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// An error of the chain is passed on after a refusal, for the log.
func TestRefusalKeepsTheError(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	r.kernel.Refuse(backend.ErrFull)
	c, trouble := r.client(), errors.New("trouble")
	next := answering(t, "a.test. 60 A 192.0.2.1")
	rcode, err := c.serve(request(t, "a.test. A"), func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		_, _ = next(ctx, w, r)
		return dns.RcodeServerFailure, trouble
	})
	if rcode != dns.RcodeSuccess || err != trouble || c.messages != 1 {
		t.Errorf("served with %d, %v and %d answers", rcode, err, c.messages)
	}
}

// What gives no address passes as it is.
func TestPassesUntouched(t *testing.T) {
	nxdomain := func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetRcode(r, dns.RcodeNameError)
		m.Answer = records(t, "a.test. 60 A 192.0.2.1")
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	silent := func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
		return dns.RcodeRefused, errors.New("trouble")
	}
	tests := []struct {
		name, question string
		next           test.HandlerFunc
		wantAnswers    int
		wantRcode      int
	}{
		{"an empty answer", "a.test. A", answering(t, ""), 1, dns.RcodeSuccess},
		{"an answer without addresses", "a.test. TXT", answering(t, `a.test. 60 TXT "192.0.2.1"`), 1, dns.RcodeSuccess},
		{"an answer of another class", "a.test. CH A", answering(t, "a.test. 60 CH A 192.0.2.1"), 1, dns.RcodeSuccess},
		{"an error", "a.test. A", nxdomain, 1, dns.RcodeSuccess},
		{"no answer, by the chain", "a.test. A", silent, 0, dns.RcodeRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			r.kernel.Refuse(backend.ErrFull) // nobody is asked
			c := r.client()
			var passed *dns.Msg
			rcode, _ := c.serve(request(t, tt.question), func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				return tt.next(ctx, writer{w, func(m *dns.Msg) { passed = m }}, r)
			})
			if rcode != tt.wantRcode || c.messages != tt.wantAnswers || c.Msg != passed {
				t.Errorf("served with %d and %d answers", rcode, c.messages)
			}
		})
	}
}

// writer shows every message before it goes its way.
type writer struct {
	dns.ResponseWriter
	seen func(*dns.Msg)
}

func (w writer) WriteMsg(m *dns.Msg) error {
	w.seen(m)
	return w.ResponseWriter.WriteMsg(m)
}

// A message has one question (RFC 9619): which one would the answer be read for?
func TestOneQuestion(t *testing.T) {
	two := request(t, "a.test. A")
	two.Question = append(two.Question, two.Question[0])
	for name, req := range map[string]*dns.Msg{"none": new(dns.Msg), "two": two} {
		t.Run(name, func(t *testing.T) {
			c := newRig(t, "ipdestinationguard nft-local").client()
			rcode, err := c.serve(req, answering(t, "a.test. 60 A 192.0.2.1"))
			if rcode != dns.RcodeFormatError || err != nil || c.messages != 0 {
				t.Errorf("served with %d, %v and %d messages", rcode, err, c.messages)
			}
		})
	}
}

// Transfers and updates pass by, whatever they hold.
func TestLeavesOthersAlone(t *testing.T) {
	for name, req := range map[string]*dns.Msg{
		"AXFR": request(t, "a.test. AXFR"), "IXFR": request(t, "a.test. IXFR"),
		"UPDATE": new(dns.Msg).SetUpdate("a.test."), "NOTIFY": new(dns.Msg).SetNotify("a.test."),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			r.kernel.Refuse(backend.ErrFull) // nobody is asked
			c := r.client()
			rcode, err := c.serve(req, func(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
				m := new(dns.Msg)
				m.Answer = records(t, "a.test. 60 SOA ns.test. me.test. 1 1 1 1 1\na.test. 60 A 192.0.2.1")
				for range 2 { // from a goroutine of its own and in parts, as transfer does
					var writing sync.WaitGroup
					writing.Go(func() { _ = w.WriteMsg(m) })
					writing.Wait()
				}
				return dns.RcodeNotAuth, nil
			})
			if rcode != dns.RcodeNotAuth || err != nil || c.messages != 2 || len(c.Msg.Answer) != 2 {
				t.Errorf("served with %d, %v and %d messages, the last:\n%v", rcode, err, c.messages, c.Msg)
			}
		})
	}
}

// A lookup that a plugin makes inside, through the whole chain, is not held: its
// answer is part of the one that is.
func TestInnerLookups(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nhold 10ms\n}")
	h := &Handler{guard: r.guard, policy: r.policy}
	h.Next = test.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
		if req.Question[0].Qtype == dns.TypeA {
			return answering(t, "a.test. 60 A 192.0.2.1")(ctx, w, req)
		}
		inner := dnstest.NewRecorder(&test.ResponseWriter{})
		if _, err := h.ServeDNS(ctx, inner, request(t, "a.test. A")); err != nil || len(inner.Msg.Answer) != 1 {
			t.Errorf("inside: %v, %v", inner.Msg, err)
		}
		r.wantTransactions(0)
		return answering(t, "a.test. 60 AAAA 64:ff9b::c000:201")(ctx, w, req)
	})
	c := r.client()
	if rcode, err := h.ServeDNS(t.Context(), c, request(t, "a.test. AAAA")); rcode != dns.RcodeSuccess || err != nil {
		t.Errorf("served with %d, %v", rcode, err)
	}
	if want := []string{"64:ff9b::c000:201"}; !slices.Equal(c.granted, want) {
		t.Errorf("granted: %v, want %v", c.granted, want)
	}
}

// What other plugins put in the context is still there.
func TestContextIsHandedOn(t *testing.T) {
	type key struct{}
	r := newRig(t, "ipdestinationguard nft-local")
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	cancel()
	h := &Handler{guard: r.guard, policy: r.policy, Next: test.HandlerFunc(func(ctx context.Context, _ dns.ResponseWriter, _ *dns.Msg) (int, error) {
		if ctx.Value(key{}) != "value" || ctx.Err() == nil || ctx.Value(insideKey{}) == nil {
			t.Error("another context")
		}
		return dns.RcodeSuccess, nil
	})}
	_, _ = h.ServeDNS(ctx, r.client(), request(t, "a.test. A"))
}

func TestPackedAnswersAreRead(t *testing.T) {
	packing := func(answer string) test.HandlerFunc {
		return func(_ context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
			m := new(dns.Msg).SetReply(req)
			m.Answer = records(t, answer)
			packed, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			n, err := w.Write(packed)
			if n != len(packed) || err != nil {
				t.Errorf("%d of %d bytes, %v", n, len(packed), err)
			}
			return dns.RcodeSuccess, nil
		}
	}
	r := newRig(t, "ipdestinationguard nft-local")
	c := r.client()
	_, _ = c.serve(request(t, "a.test. A"), packing("a.test. 60 A 192.0.2.1"))
	if want := []string{"192.0.2.1"}; !slices.Equal(c.granted, want) || len(c.Msg.Answer) != 1 {
		t.Errorf("granted: %v, want %v; got\n%v", c.granted, want, c.Msg)
	}

	r.kernel.Refuse(backend.ErrFull)
	c = r.client()
	_, _ = c.serve(request(t, "b.test. A"), packing("b.test. 60 A 192.0.2.2"))
	if c.messages != 1 || c.Rcode != dns.RcodeServerFailure || len(c.Msg.Answer) > 0 {
		t.Errorf("got\n%v", c.Msg)
	}

	c = r.client()
	_, _ = c.serve(request(t, "c.test. A"), func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		if _, err := w.Write([]byte("not DNS")); err == nil {
			t.Error("passed on something that cannot be read")
		}
		return dns.RcodeServerFailure, nil
	})
	if c.messages > 0 || c.Len > 0 {
		t.Error("it reached the client")
	}
}

// rewrite changes the request below us and the answer back on its way up: what
// counts is what the client asked and gets.
func TestRewrittenQuestion(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	rewriting := func(_ context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
		asked := req.Question[0]
		req.Question[0] = question(t, "other.test. AAAA")
		m := new(dns.Msg).SetReply(req)
		m.Question[0] = asked
		m.Answer = records(t, "a.test. 60 A 192.0.2.1\nother.test. 60 AAAA 2001:db8::1")
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	c := r.client()
	_, _ = c.serve(request(t, "a.test. A"), rewriting)
	if want := []string{"192.0.2.1"}; !slices.Equal(c.granted, want) {
		t.Errorf("granted: %v, want %v", c.granted, want)
	}

	r.advance(time.Hour)
	r.kernel.Refuse(backend.ErrFull)
	c = r.client()
	_, _ = c.serve(request(t, "a.test. A"), rewriting)
	if c.Rcode != dns.RcodeServerFailure || c.Msg.Question[0] != question(t, "a.test. A") {
		t.Errorf("got\n%v", c.Msg)
	}
}

// The records of an answer may belong to a zone or a cache.
func TestSharedAnswersAreNotChanged(t *testing.T) {
	for name, trouble := range map[string]error{"granted": nil, "refused": backend.ErrFull} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			r.kernel.Refuse(trouble)
			shared := request(t, "a.test. A")
			shared.Response = true
			shared.Answer = records(t, "a.test. 0 CNAME b.test.\nb.test. 60 A 192.0.2.1")
			shared.Extra = records(t, "b.test. 60 AAAA 2001:db8::1")
			before := shared.Copy()
			req := request(t, "a.test. A")
			req.SetEdns0(1232, false)
			asked := req.Copy()
			_, _ = r.client().serve(req, func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
				return dns.RcodeSuccess, w.WriteMsg(shared)
			})
			if shared.String() != before.String() {
				t.Errorf("the answer has become\n%v", shared)
			}
			if req.String() != asked.String() {
				t.Errorf("the request has become\n%v", req)
			}
		})
	}
}

// A chain that writes twice, as some do after a timeout, is read twice.
func TestEachMessageIsRead(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	c := r.client()
	_, _ = c.serve(request(t, "a.test. A"), func(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			_, _ = answering(t, "a.test. 60 A "+addr)(ctx, w, req)
			if last := c.granted[len(c.granted)-1]; last != addr {
				t.Errorf("%s left before it was granted", addr)
			}
		}
		return dns.RcodeSuccess, nil
	})
}

// Many clients at once, with the same names and with names of their own.
func TestServesConcurrently(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	var clients sync.WaitGroup
	for i := range 32 {
		clients.Go(func() {
			for j := range 64 {
				addr := fmt.Sprintf("192.0.%d.%d", i%4, j%10)
				c := r.client()
				if _, err := c.serve(request(t, "a.test. A"), answering(t, "a.test. 60 A "+addr)); err != nil || !slices.Contains(c.granted, addr) {
					t.Errorf("%s left before it was granted (%v)", addr, err)
				}
			}
		})
	}
	clients.Wait()
	if n := r.kernel.Transactions(); n < 40 {
		t.Errorf("%d transactions", n)
	}
}
