package ipdestinationguard

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// benchFirewall is a backend that says yes at once.
type benchFirewall struct {
	backend.Backend
	inForce *backend.InForce
}

func (f benchFirewall) Open(backend.Rules) error { return nil }
func (f benchFirewall) Grant(_ context.Context, grants []backend.Grant, _ time.Duration) error {
	for _, g := range grants {
		f.inForce.Set(g.Key(), g.Until, expiry.Accounts{})
	}
	return nil
}

// Map and the rest make it translate at once.
func (f benchFirewall) Map(context.Context, []backend.Mapping, time.Duration) error { return nil }
func (f benchFirewall) Unmap(context.Context, []netip.Addr) error                   { return nil }
func (f benchFirewall) Origins(string) ([]backend.Origin, error)                    { return nil, nil }
func (f benchFirewall) Epoch() uint64                                               { return 1 }
func (f benchFirewall) Connections(context.Context, func(mapped, real netip.Addr) bool) error {
	return nil
}

func (f benchFirewall) Mapped(context.Context, func(_, _ netip.Addr)) error { return nil }
func (f benchFirewall) Granted(context.Context, func(netip.Addr)) error     { return nil }

var _ backend.Router = benchFirewall{}

// benchRouted is an armed guard whose block has a route, and the block's policy.
func benchRouted(tb testing.TB, now func() time.Time, pattern string) (*guard, *policy) {
	g := newGuard(func(t *backend.InForce, _ backend.Observer) backend.Backend { return benchFirewall{inForce: t} }, alone, now)
	s, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nmode nft-both\nroute "+pattern+" {\nstate "+tb.TempDir()+"/mappings.db\n}\n}"))
	if err == nil {
		s.found.policies = []*policy{p}
		err = g.prepareRoutes(s)
	}
	if err == nil {
		err = g.arm(s)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		g.backend = benchFirewall{inForce: g.inForce}
		_ = g.close()
	})
	return g, p
}

// List implements backend.Backend.
func (f benchFirewall) List() ([]backend.Grant, error) { return nil, nil }

// Close implements backend.Backend.
func (f benchFirewall) Close(backend.Leave) error { return nil }

// benchWriter swallows answers.
type benchWriter struct{ dns.ResponseWriter }

func (benchWriter) WriteMsg(*dns.Msg) error { return nil }
func (benchWriter) RemoteAddr() net.Addr    { return benchClient }

var benchClient = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1000}

// alone is a machine without addresses and neighbours.
var alone = host{
	watch:  func() (surroundings, error) { return &network{}, nil },
	askers: func() (askers, error) { return nil, identity.ErrUnsupported },
}

func benchArm(g *guard) {
	s := defaultSettings
	s.mode, s.scope, s.limits = modeLocal, scopeAny, defaultLimits
	if err := g.arm(&s); err != nil {
		panic(err)
	}
}

func benchMessages(b testing.TB, records ...string) (question, answer *dns.Msg) {
	question = new(dns.Msg)
	question.SetQuestion("www.example.org.", dns.TypeA)
	answer = new(dns.Msg)
	answer.SetReply(question)
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			b.Fatal(err)
		}
		answer.Answer = append(answer.Answer, rr)
	}
	return question, answer
}

var benchAnswers = []struct {
	name    string
	records []string
}{
	{"A", []string{"www.example.org. 300 IN A 9.9.9.1"}},
	{"CNAME+4A", []string{
		"www.example.org. 300 IN CNAME web.example.net.",
		"web.example.net. 300 IN A 9.9.9.1", "web.example.net. 300 IN A 9.9.9.2",
		"web.example.net. 300 IN A 9.9.9.3", "web.example.net. 300 IN A 9.9.9.4",
	}},
}

// BenchmarkServeDNS is a cached answer's way through our code, beside the same
// without it.
func BenchmarkServeDNS(b *testing.B) {
	for _, bm := range benchAnswers {
		question, answer := benchMessages(b, bm.records...)
		next := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
			return dns.RcodeSuccess, w.WriteMsg(answer)
		})
		g := newGuard(func(t *backend.InForce, _ backend.Observer) backend.Backend { return benchFirewall{inForce: t} }, alone, time.Now)
		benchArm(g)
		h := &Handler{Next: next, guard: g, policy: &defaultPolicy}
		for _, way := range []struct {
			name  string
			serve func() (int, error)
		}{
			{"without", func() (int, error) {
				return plugin.NextOrFailure("bench", next, context.Background(), benchWriter{}, question)
			}},
			{"hot", func() (int, error) { return h.ServeDNS(context.Background(), benchWriter{}, question) }},
		} {
			if _, err := way.serve(); err != nil {
				b.Fatal(err)
			}
			b.Run(bm.name+"/"+way.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					_, _ = way.serve()
				}
			})
			b.Run(bm.name+"/"+way.name+"/parallel", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						_, _ = way.serve()
					}
				})
			})
		}
	}
}

// BenchmarkRouted is the same for names that have a route, and for others in a block that
// has one.
func BenchmarkRouted(b *testing.B) {
	for _, bm := range benchAnswers {
		for way, pattern := range map[string]string{"routed": "**.example.org", "beside a route": "**.example.com"} {
			question, answer := benchMessages(b, bm.records...)
			next := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
				return dns.RcodeSuccess, w.WriteMsg(answer)
			})
			g, p := benchRouted(b, time.Now, pattern)
			h := &Handler{Next: next, guard: g, policy: p}
			ctx := context.Background()
			b.Run(bm.name+"/"+way, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if rcode, err := h.ServeDNS(ctx, benchWriter{}, question); rcode != dns.RcodeSuccess || err != nil {
						b.Fatal(rcode, err)
					}
				}
			})
		}
	}
}

func BenchmarkReadAnswer(b *testing.B) {
	hints := struct {
		name    string
		records []string
	}{"HTTPS", []string{`www.example.org. 300 IN HTTPS 1 . alpn=h3,h2 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1,2001:db8::2`}}
	chain := struct {
		name    string
		records []string
	}{name: "CNAMEx8+A"}
	owner := "www.example.org."
	for i := range 8 {
		target := fmt.Sprintf("c%d.example.net.", i)
		chain.records = append(chain.records, fmt.Sprintf("%s 300 IN CNAME %s", owner, target))
		owner = target
	}
	chain.records = append(chain.records, owner+" 300 IN A 192.0.2.1")
	for _, bm := range append(benchAnswers[:len(benchAnswers):len(benchAnswers)], chain, hints) {
		b.Run(bm.name, func(b *testing.B) {
			_, m := benchMessages(b, bm.records...)
			q := m.Question[0]
			q.Qtype = m.Answer[len(m.Answer)-1].Header().Rrtype
			b.ReportAllocs()
			for b.Loop() {
				var few [8]target
				if targets, err := readAnswer(q, m, few[:0]); err != nil || len(targets) == 0 {
					b.Fatal(len(targets), err)
				}
			}
		})
	}
}

// BenchmarkClean is what looking at the addresses of an answer costs.
func BenchmarkClean(b *testing.B) {
	own := func(netip.Addr) bool { return false }
	for _, bm := range []struct {
		name    string
		private []rule
		own     func(netip.Addr) bool
		records []string
	}{
		{"A", nil, nil, benchAnswers[0].records},
		{"CNAME+4A", nil, nil, benchAnswers[1].records},
		{"CNAME+4A, own addresses known", nil, own, benchAnswers[1].records},
		{"AAAA", nil, nil, []string{"www.example.org. 300 IN AAAA 2001:4860:4860::8888"}},
		{"private A", []rule{{mustNames("**.example.org"), []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}, nil,
			[]string{"www.example.org. 300 IN A 10.1.2.3"}},
		{"always open A", nil, nil, []string{"www.example.org. 300 IN A 10.1.2.3"}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			question, answer := benchMessages(b, bm.records...)
			s := settings{mode: modeLocal, limits: defaultLimits, allowed: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
			if bm.private != nil {
				s.allowed = nil
			}
			f := filter{policy: &policy{private: bm.private}, settings: &s, own: bm.own, name: question.Question[0].Name}
			b.ReportAllocs()
			for b.Loop() {
				if !f.clean(answer) {
					b.Fatal("it is not")
				}
			}
		})
	}
}
