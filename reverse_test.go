package ipdestinationguard

import (
	"context"
	"testing"

	"github.com/miekg/dns"
)

func TestReversed(t *testing.T) {
	for name, want := range map[string]string{
		"1.0.96.100.in-addr.arpa.":      "100.96.0.1/32",
		"1.0.96.100.IN-ADDR.arpa":       "100.96.0.1/32",
		"96.100.in-addr.arpa.":          "100.96.0.0/16",
		"01.0.96.100.in-addr.arpa.":     "",
		"256.0.96.100.in-addr.arpa.":    "",
		"0.1.0.96.100.in-addr.arpa.":    "",
		"in-addr.arpa.":                 "",
		"x.96.100.in-addr.arpa.":        "",
		"1.0.96.100.in-addr.arpa.x.":    "",
		"0.8.D.f.ip6.arpa.":             "fd80::/16",
		"1.1.1.2.0.2.0.0.d.f.ip6.arpa.": "fd00:2021:1100::/40",
		"10.d.f.ip6.arpa.":              "",
		"g.d.f.ip6.arpa.":               "",
		".":                             "",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.1.1.1.1.1.2.0.2.0.0.d.f.ip6.arpa.":   "fd00:2021:1111:8000::1/128",
		"0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.1.1.1.1.1.2.0.2.0.0.d.f.ip6.arpa.": "",
	} {
		got := ""
		if p, ok := reversed(name); ok {
			got = p.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Only who may connect to a mapped address, and this machine, are told whose it is. No
// question for one is forwarded.
func TestReverse(t *testing.T) {
	const (
		there   = "1.0.96.100.in-addr.arpa. PTR"
		there6  = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.1.1.1.1.1.2.0.2.0.0.d.f.ip6.arpa. PTR"
		denied  = "NXDOMAIN\nProhibited: an address of a route's pool, and not one that is open to you\n"
		outside = "1.0.95.100.in-addr.arpa. PTR"
	)
	for _, tt := range []struct{ name, directive, from, question, want string }{
		{"who has asked", routedBoth, "10.0.0.1", there, "1.0.96.100.in-addr.arpa. 5 IN PTR www.routed.test.\n"},
		{"who has not", routedBoth, "10.0.0.2", there, denied},
		{"this machine", routedBoth, "127.0.0.1", there, "1.0.96.100.in-addr.arpa. 5 IN PTR www.routed.test.\n"},
		{"IPv6", routedBoth, "127.0.0.1", there6, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.1.1.1.1.1.2.0.2.0.0.d.f.ip6.arpa. 5 IN PTR www.routed.test.\n"},
		{"nobody's", routedBoth, "127.0.0.1", "2.0.96.100.in-addr.arpa. PTR", denied},
		{"everything", routedBoth, "127.0.0.1", "1.0.96.100.in-addr.arpa. ANY", "1.0.96.100.in-addr.arpa. 5 IN PTR www.routed.test.\n"},
		{"another type", routedBoth, "127.0.0.1", "1.0.96.100.in-addr.arpa. TXT", ""},
		{"another type, of somebody else", routedBoth, "10.0.0.2", "1.0.96.100.in-addr.arpa. TXT", denied},
		{"a part", routedBoth, "10.0.0.2", "0.96.100.in-addr.arpa. NS", ""},
		{"outside", routedBoth, "10.0.0.2", outside, "forwarded"},
		{"more than the pool", routedBoth, "10.0.0.2", "100.in-addr.arpa. PTR", "forwarded"},
		{"a server is asked by a stranger", "ipdestinationguard {\nmode nft-local\nroute **.routed.test\n}", "10.0.0.1", there, denied},
		{"what is for all", "ipdestinationguard {\nmode nft-gateway\nscope any\nroute **.routed.test\n}", "10.0.0.2", there, "1.0.96.100.in-addr.arpa. 5 IN PTR www.routed.test.\n"},
		{"with ports", "ipdestinationguard {\nmode nft-both\nroute **.routed.test {\nports tcp/443\n}\n}", "10.0.0.1", there, "1.0.96.100.in-addr.arpa. 5 IN PTR www.routed.test.\n"},
		{"no routes", "ipdestinationguard nft-both", "127.0.0.1", there, "forwarded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			first := r.at("10.0.0.1")
			first.ask("www.routed.test. A", "www.routed.test. 60 A 9.9.9.9")
			r.at("127.0.0.1").ask("www.routed.test. AAAA", "www.routed.test. 60 AAAA 2620:fe::fe")
			r.at("127.0.0.1").ask("www.routed.test. A", "www.routed.test. 60 A 9.9.9.9")
			c, forwarded := r.at(tt.from), false
			req := request(t, tt.question)
			req.SetEdns0(1232, false)
			_, err := c.serve(req, func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
				forwarded = true
				return dns.RcodeSuccess, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if forwarded || tt.want == "forwarded" {
				if !forwarded || tt.want != "forwarded" {
					t.Errorf("forwarded: %v", forwarded)
				}
				return
			}
			r.wantText(c.text(), tt.want)
		})
	}
	t.Run("when the grant has run out", func(t *testing.T) {
		r := newRig(t, routedBoth)
		c := r.at("10.0.0.1")
		c.ask("www.routed.test. A", "www.routed.test. 60 A 9.9.9.9")
		r.wantText(c.ask(there, ""), "1.0.96.100.in-addr.arpa. 5 IN PTR www.routed.test.\n")
		r.clock.advance(120e9)
		r.wantText(c.ask(there, ""), denied)
	})
}
