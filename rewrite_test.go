package ipdestinationguard

import (
	"net/netip"
	"testing"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"
)

// What a client gets instead of an answer for a name with a route: a mapped address for
// each real one.
func TestRewrite(t *testing.T) {
	_, p, err := parse(caddy.NewTestController("dns", `ipdestinationguard {
		route **.routed.test {
			ttl 10s 100s
		}
		route **.other.test
	}`))
	if err != nil {
		t.Fatal(err)
	}
	stand := map[string]string{"192.0.2.1": "100.96.0.1", "192.0.2.2": "100.96.0.2", "2001:db8::1": "fd00:2021:1111:8000::1"}
	const same = "same"
	for _, tt := range []struct{ name, question, answer, want string }{
		{"A", "www.routed.test. A", "www.routed.test. 60 A 192.0.2.1", "www.routed.test. 60 IN A 100.96.0.1\n"},
		{"AAAA", "www.routed.test. AAAA", "www.routed.test. 60 AAAA 2001:db8::1", "www.routed.test. 60 IN AAAA fd00:2021:1111:8000::1\n"},
		{"the case of the question", "WWW.routed.TEST. A", "www.routed.test. 60 A 192.0.2.1", "WWW.routed.TEST. 60 IN A 100.96.0.1\n"},
		{"the order of the real ones", "www.routed.test. A", "www.routed.test. 60 A 192.0.2.2\nwww.routed.test. 60 A 192.0.2.1",
			"www.routed.test. 60 IN A 100.96.0.2\nwww.routed.test. 60 IN A 100.96.0.1\n"},
		{"each once", "www.routed.test. A", "www.routed.test. 60 A 192.0.2.1\nwww.routed.test. 60 A 192.0.2.1", "www.routed.test. 60 IN A 100.96.0.1\n"},
		{"under the floor", "www.routed.test. A", "www.routed.test. 0 A 192.0.2.1", "www.routed.test. 10 IN A 100.96.0.1\n"},
		{"over the ceiling", "www.routed.test. A", "www.routed.test. 300 A 192.0.2.1", "www.routed.test. 100 IN A 100.96.0.1\n"},
		{"one TTL, the least along the chain", "www.routed.test. A", `
			www.routed.test. 50 CNAME a.test.
			a.test. 40 CNAME b.test.
			b.test. 60 A 192.0.2.1
			b.test. 70 A 192.0.2.2`, "www.routed.test. 40 IN A 100.96.0.1\nwww.routed.test. 40 IN A 100.96.0.2\n"},
		{"a CNAME to a routed name", "a.test. A", "a.test. 60 CNAME www.routed.test.\nwww.routed.test. 60 A 192.0.2.1", "a.test. 60 IN A 100.96.0.1\n"},
		{"through DNAME", "www.routed.test. A", `
			routed.test. 60 DNAME b.test.
			www.routed.test. 60 CNAME www.b.test.
			www.b.test. 60 A 192.0.2.1`, "www.routed.test. 60 IN A 100.96.0.1\n"},
		{"records of other names", "www.routed.test. A", "www.routed.test. 60 A 192.0.2.1\nb.test. 60 A 192.0.2.2", "www.routed.test. 60 IN A 100.96.0.1\n"},
		{"signatures", "www.routed.test. A", `
			www.routed.test. 60 A 192.0.2.1
			www.routed.test. 60 RRSIG A 13 3 60 20300101000000 20200101000000 1 routed.test. AAAA
			authority
			routed.test. 60 NS ns.test.
			routed.test. 60 RRSIG NS 13 3 60 20300101000000 20200101000000 1 routed.test. AAAA
			additional
			ns.test. 60 A 192.0.2.9
			ns.test. 60 RRSIG A 13 3 60 20300101000000 20200101000000 1 test. AAAA`,
			"www.routed.test. 60 IN A 100.96.0.1\nauthority\nrouted.test. 60 IN NS ns.test.\nadditional\nns.test. 60 IN A 192.0.2.9\n"},
		{"IPv4 in IPv6's clothes", "www.routed.test. AAAA", "www.routed.test. 60 AAAA ::ffff:192.0.2.1", ""},
		{"nothing is left", "www.routed.test. AAAA", `
			www.routed.test. 60 AAAA 2001:db8::dead
			authority
			routed.test. 60 NS ns.test.
			routed.test. 60 SOA ns.test. h.test. 1 2 3 4 5
			additional
			ns.test. 60 A 192.0.2.9`, "authority\nrouted.test. 60 IN SOA ns.test. h.test. 1 2 3 4 5\n"},

		{"no data", "www.routed.test. A", "www.routed.test. 60 CNAME a.test.\nauthority\ntest. 60 SOA ns.test. h.test. 1 2 3 4 5", same},
		{"other types", "www.routed.test. TXT", `www.routed.test. 60 TXT "192.0.2.1"`, same},
		{"what the CNAME is", "www.routed.test. CNAME", `www.routed.test. 60 CNAME a.test.`, same},
		{"another class", "www.routed.test. A", `www.routed.test. 60 CH A 192.0.2.1`, same},

		{"everything", "www.routed.test. ANY", `
			www.routed.test. 60 A 192.0.2.1
			www.routed.test. 60 AAAA 2001:db8::1
			www.routed.test. 60 TXT "x"
			www.routed.test. 60 RRSIG A 13 3 60 20300101000000 20200101000000 1 routed.test. AAAA
			www.routed.test. 60 HTTPS 1 . ipv4hint=192.0.2.1 port=1
			b.test. 60 TXT "y"`,
			"www.routed.test. 60 IN A 100.96.0.1\nwww.routed.test. 60 IN AAAA fd00:2021:1111:8000::1\n" +
				"www.routed.test. 60 IN TXT \"x\"\nwww.routed.test. 60 IN HTTPS 1 . port=\"1\"\n"},
		{"everything, behind a CNAME", "www.routed.test. ANY", `
			www.routed.test. 60 CNAME b.test.
			b.test. 50 A 192.0.2.1
			b.test. 50 TXT "y"`, "www.routed.test. 50 IN A 100.96.0.1\n"},
		{"everything, which is a CNAME", "www.routed.test. ANY", "www.routed.test. 60 CNAME b.test.", same},
		{"everything but addresses", "www.routed.test. ANY", `www.routed.test. 60 TXT "x"`, same},

		{"hints", "www.routed.test. HTTPS", `www.routed.test. 60 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1 port=8443`,
			"www.routed.test. 60 IN HTTPS 1 . alpn=\"h2\" port=\"8443\"\n"},
		{"hints of a service", "www.routed.test. SVCB", `www.routed.test. 60 SVCB 1 . alpn=h2 ipv4hint=192.0.2.1`, "www.routed.test. 60 IN SVCB 1 . alpn=\"h2\"\n"},
		{"no hints", "www.routed.test. HTTPS", `www.routed.test. 60 HTTPS 1 . alpn=h2`, "www.routed.test. 60 IN HTTPS 1 . alpn=\"h2\"\n"},
		{"hints that are mandatory", "www.routed.test. HTTPS", `
			www.routed.test. 60 HTTPS 1 . mandatory=ipv4hint ipv4hint=192.0.2.1
			www.routed.test. 60 HTTPS 2 . mandatory=alpn alpn=h2`,
			"www.routed.test. 60 IN HTTPS 2 . mandatory=\"alpn\" alpn=\"h2\"\n"},
		{"a service behind a CNAME", "www.routed.test. HTTPS", `
			www.routed.test. 60 CNAME b.test.
			b.test. 50 HTTPS 1 . ipv4hint=192.0.2.1
			b.test. 50 HTTPS 2 b.test. port=1`, "www.routed.test. 50 IN HTTPS 1 .\nwww.routed.test. 50 IN HTTPS 2 . port=\"1\"\n"},
		{"a service that leads within the route", "www.routed.test. HTTPS", `
			www.routed.test. 60 HTTPS 1 cdn.routed.test. ipv4hint=192.0.2.1
			www.routed.test. 60 HTTPS 0 cdn.routed.test.`,
			"www.routed.test. 60 IN HTTPS 1 cdn.routed.test.\nwww.routed.test. 60 IN HTTPS 0 cdn.routed.test.\n"},
		{"a service that leads out of it", "www.routed.test. HTTPS", `
			www.routed.test. 60 HTTPS 1 cdn.test. alpn=h2
			www.routed.test. 60 HTTPS 2 cdn.other.test.
			www.routed.test. 60 HTTPS 0 cdn.test.
			www.routed.test. 60 HTTPS 3 .`, "www.routed.test. 60 IN HTTPS 3 .\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := sections(t, tt.answer)
			m.AuthenticatedData = true
			before := sectionsText(m)
			q := question(t, tt.question)
			chain, err := follow(q.Name, m.Answer, nil)
			if err != nil {
				t.Fatal(err)
			}
			r, _ := p.decides(chain)
			if r != p.routes[0] {
				t.Fatalf("the route is that of %v", r)
			}
			w := rewriting{policy: p, route: r, question: q, chain: chain}
			got, out := same, m
			if w.concerns(m) {
				real, ttl := w.real(m, nil)
				var mapped []netip.Addr
				for _, addr := range real {
					if text, ok := stand[addr.String()]; ok {
						mapped = append(mapped, netip.MustParseAddr(text))
					}
				}
				out = w.rewrite(m, mapped, ttl)
				got = sectionsText(out)
				if out.AuthenticatedData {
					t.Error("it calls itself authentic")
				}
				if _, err := out.Pack(); err != nil {
					t.Error(err)
				}
			}
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if after := sectionsText(m); after != before {
				t.Errorf("what others share has changed to\n%s", after)
			}
		})
	}
}

// Answers that are nobody's route show no real addresses of those names either.
func TestHide(t *testing.T) {
	_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nroute **.routed.test\n}"))
	if err != nil {
		t.Fatal(err)
	}
	const same = "same"
	for _, tt := range []struct{ name, question, answer, want string }{
		{"nothing", "a.test. A", "a.test. 60 A 192.0.2.1", same},
		{"a name server's address", "a.test. A", `
			a.test. 60 A 192.0.2.1
			additional
			ns.routed.test. 60 A 192.0.2.2
			ns.routed.test. 60 AAAA 2001:db8::2
			ns.test. 60 A 192.0.2.3`, "a.test. 60 IN A 192.0.2.1\nadditional\nns.test. 60 IN A 192.0.2.3\n"},
		{"a mail server's address", "routed.test. MX", `
			routed.test. 60 MX 1 mail.routed.test.
			additional
			mail.routed.test. 60 A 192.0.2.2`, "routed.test. 60 IN MX 1 mail.routed.test.\n"},
		{"beside the chain", "a.test. A", "a.test. 60 A 192.0.2.1\nwww.routed.test. 60 A 192.0.2.2", "a.test. 60 IN A 192.0.2.1\n"},
		{"hints of another name's service", "a.test. HTTPS", `
			a.test. 60 HTTPS 1 www.routed.test. ipv4hint=192.0.2.2 alpn=h2
			a.test. 60 HTTPS 2 . ipv4hint=192.0.2.1
			a.test. 60 HTTPS 3 www.routed.test. mandatory=ipv4hint ipv4hint=192.0.2.2
			a.test. 60 HTTPS 4 www.routed.test.`,
			"a.test. 60 IN HTTPS 1 www.routed.test. alpn=\"h2\"\na.test. 60 IN HTTPS 2 . ipv4hint=\"192.0.2.1\"\na.test. 60 IN HTTPS 4 www.routed.test.\n"},
		{"services in another section", "a.test. A", `
			a.test. 60 A 192.0.2.1
			additional
			www.routed.test. 60 SVCB 1 . ipv4hint=192.0.2.2`, "a.test. 60 IN A 192.0.2.1\nadditional\nwww.routed.test. 60 IN SVCB 1 .\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := sections(t, tt.answer)
			before := sectionsText(m)
			chain, err := follow(question(t, tt.question).Name, m.Answer, nil)
			if err != nil {
				t.Fatal(err)
			}
			out := p.hide(chain, m)
			got := sectionsText(out)
			if out == m {
				got = same
			}
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if after := sectionsText(m); after != before {
				t.Errorf("what others share has changed to\n%s", after)
			}
		})
	}
}

func FuzzRewrite(f *testing.F) {
	_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nroute **.a.test\n}"))
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{
		"a.test. 60 A 192.0.2.1", "a.test. 60 CNAME b.test.\nb.test. 60 AAAA 2001:db8::1",
		"a.test. 60 HTTPS 1 . ipv4hint=192.0.2.1 mandatory=alpn alpn=h2", "b.test. 60 HTTPS 0 a.test.\na.test. 1 SVCB 1 b.test. ipv6hint=2001:db8::1",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeANY} {
			m := &dns.Msg{Answer: records(f, text), Extra: records(f, text)}
			packed, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packed, qtype)
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte, qtype uint16) {
		m := new(dns.Msg)
		if m.Unpack(packed) != nil {
			return
		}
		q := dns.Question{Name: "a.test.", Qtype: qtype, Qclass: dns.ClassINET}
		chain, err := follow(q.Name, m.Answer, nil)
		if err != nil {
			return
		}
		before := m.String()
		r, _ := p.decides(chain)
		w := rewriting{policy: p, route: r, question: q, chain: chain}
		if w.concerns(m) {
			addrs, ttl := w.real(m, nil)
			if ttl < r.floor || ttl > r.ceiling {
				t.Errorf("TTL %d", ttl)
			}
			out := p.hide(chain, w.rewrite(m, nil, ttl))
			targets, err := readAnswer(q, out, nil)
			if len(targets) > 0 || err != nil {
				t.Errorf("of %v, what leads to real addresses is left (%v):\n%v", addrs, err, out)
			}
			for _, rr := range out.Answer {
				if !sameName(rr.Header().Name, q.Name) {
					t.Errorf("left: %v", rr)
				}
			}
		}
		if m.String() != before {
			t.Error("what others share has changed")
		}
	})
}
