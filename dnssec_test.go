package ipdestinationguard

import (
	"context"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// upstream answers with AD if it is asked to, as a validating resolver does, and leaves
// the question as it got it in asked.
func upstream(t *testing.T, lines string, authentic bool, asked *dns.Msg) test.HandlerFunc {
	answer := records(t, lines)
	return func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		r.CopyTo(asked)
		m := new(dns.Msg).SetReply(r)
		m.Answer = answer
		m.AuthenticatedData = authentic && (r.AuthenticatedData || wantsSignatures(r)) && !r.CheckingDisabled
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
}

func TestAD(t *testing.T) {
	const address = " 300 IN A 9.9.9.9"
	ad := func(r *dns.Msg) { r.AuthenticatedData = true }
	do := func(r *dns.Msg) { r.SetEdns0(1232, true) }
	cd := func(r *dns.Msg) { r.CheckingDisabled = true }
	as := func(*dns.Msg) {}
	const opened, withheld, passed = "opened", "withheld", "passed"
	for _, tt := range []struct {
		name, lines, question string
		answer                string
		asks                  func(*dns.Msg)
		authentic             bool
		want                  string
		ad                    bool // what the client sees
	}{
		{"authenticated", "dnssec ad test", "a.test. A", address, as, true, opened, false},
		{"for who asks with AD", "dnssec ad test", "a.test. A", address, ad, true, opened, true},
		{"for who asks with DO", "dnssec ad test", "a.test. A", address, do, true, opened, true},
		{"for who asks with CD", "dnssec ad test", "a.test. A", address, cd, true, opened, false},
		{"not authenticated", "dnssec ad test", "a.test. A", address, as, false, withheld, false},
		{"not for who asks with AD", "dnssec ad test", "a.test. A", address, ad, false, withheld, false},
		{"not for who asks with CD", "dnssec ad test", "a.test. A", address, cd, false, withheld, false},
		{"the zone itself", "dnssec ad test", "test. A", address, as, false, withheld, false},
		{"in any case", "dnssec ad TEST.", "a.Test. A", address, as, false, withheld, false},
		{"another zone", "dnssec ad test", "a.example. A", address, as, false, opened, false},
		{"a name that ends like it", "dnssec ad test", "atest. A", address, as, false, opened, false},
		{"a dot in a label", "dnssec ad test", `a\.test. A`, address, as, false, opened, false},
		{"all", "dnssec ad .", "a.example. A", address, as, false, withheld, false},
		{"on another line", "dnssec ad test\ndnssec ad example", "a.example. A", address, as, false, withheld, false},
		{"no address", "dnssec ad test", "a.test. MX", " 300 IN MX 10 mail.test.", as, false, passed, false},
		{"no line", "", "a.test. A", address, as, false, opened, false},
		{"no line, AD unasked for", "", "a.test. A", address, do, true, opened, true},
		{"no line, CD", "", "a.test. A", address, cd, false, opened, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard {\nmode nft-local\n"+tt.lines+"\n}")
			req := explained(t, tt.question)
			tt.asks(req)
			before := req.Copy()
			c, asked := r.client(), new(dns.Msg)
			owner, _, _ := strings.Cut(tt.question, " ")
			if _, err := c.serve(req, upstream(t, owner+tt.answer, tt.authentic, asked)); err != nil {
				t.Fatal(err)
			}
			got := passed
			switch {
			case c.Msg.Rcode == dns.RcodeServerFailure:
				got = withheld
				if ede := c.Msg.IsEdns0().Option[0].(*dns.EDNS0_EDE); ede.InfoCode != dns.ExtendedErrorCodeDNSSECIndeterminate {
					t.Errorf("EDE %v", ede)
				}
			case len(c.granted) > 0:
				got = opened
			}
			if got != tt.want || c.Msg.AuthenticatedData != tt.ad || c.Msg.CheckingDisabled != req.CheckingDisabled && got != withheld {
				t.Errorf("%s, want %s:\n%v", got, tt.want, c.Msg)
			}
			if asked.CheckingDisabled {
				t.Error("CD has gone on")
			}
			if req.String() != before.String() {
				t.Errorf("the client's question has changed:\n%v", req)
			}
		})
	}
}

// Who is not guarded here gets nothing either that is not authenticated, nor by a route.
func TestADForWhoIsNotGuarded(t *testing.T) {
	for _, options := range []string{"scope application", "route a.test"} {
		r := newRig(t, "ipdestinationguard {\nmode nft-local\n"+options+"\ndnssec ad test\n}")
		for authentic, rcode := range map[bool]int{true: dns.RcodeSuccess, false: dns.RcodeServerFailure} {
			c := r.clientAt("192.0.2.9:1")
			if _, err := c.serve(explained(t, "a.test. A"), upstream(t, "a.test. 300 IN A 9.9.9.9", authentic, new(dns.Msg))); err != nil {
				t.Fatal(err)
			}
			if c.Msg.Rcode != rcode || len(c.granted) > 0 {
				t.Errorf("%s: authenticated: %v, granted %v:\n%v", options, authentic, c.granted, c.Msg)
			}
		}
	}
}

func TestParseDNSSECErrors(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"dnssec ad", "for which zones?"},
		{"dnssec ad insecure", "for which zones?"},
		{"dnssec ad *.test", "is no zone"},
		{"dnssec ad a..b", "is no zone"},
		{"dnssec as test", "it is ad"},
		{"dnssec", "needs a value"},
		{"require signatures", "it is encrypted"},
	} {
		_, _, err := parse(caddy.NewTestController("dns", "ipdestinationguard nft-local {\n"+tt.line+"\n}"))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.line, err, tt.want)
		}
	}
}
