package ipdestinationguard

import (
	"context"
	"fmt"
	stdlog "log"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/reach"
)

// sections reads a message: lines of a zone file, where "authority" and "additional"
// begin the next section.
func sections(t testing.TB, text string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	text, additional, _ := strings.Cut(text, "additional\n")
	answer, authority, _ := strings.Cut(text, "authority\n")
	m.Answer, m.Ns, m.Extra = records(t, answer), records(t, authority), records(t, additional)
	return m
}

// sectionsText writes a message as sections reads it.
func sectionsText(m *dns.Msg) string {
	var b strings.Builder
	for _, s := range []struct {
		title   string
		records []dns.RR
	}{{"", m.Answer}, {"authority\n", m.Ns}, {"additional\n", m.Extra}} {
		for _, rr := range s.records {
			if rr.Header().Rrtype != dns.TypeOPT {
				b.WriteString(s.title + strings.ReplaceAll(rr.String(), "\t", " ") + "\n")
				s.title = ""
			}
		}
	}
	return b.String()
}

func TestStrip(t *testing.T) {
	tests := []struct {
		name, question, answer string
		want                   string // "same", or the sections that are left
		empty                  bool
	}{
		{"nothing is withheld", "a.test. A", "a.test. 60 A 9.9.9.9", "same", false},
		{"no addresses", "a.test. TXT", `a.test. 60 TXT "10.0.0.1"`, "same", false},

		{"A", "a.test. A", "a.test. 60 A 10.0.0.1", "", true},
		{"AAAA", "a.test. AAAA", "a.test. 60 AAAA fd00::1", "", true},
		{"IPv4-mapped", "a.test. AAAA", "a.test. 60 AAAA ::ffff:10.0.0.1", "", true},
		{"one of two", "a.test. A", `
			a.test. 60 A 10.0.0.1
			a.test. 60 A 9.9.9.9`, "a.test. 60 IN A 9.9.9.9\n", false},
		{"of another class", "a.test. A", "a.test. 60 CH A 10.0.0.1", "", false},
		{"through CNAME", "a.test. A", `
			a.test. 60 CNAME b.test.
			b.test. 60 A 10.0.0.1`, "a.test. 60 IN CNAME b.test.\n", true},
		{"through DNAME", "www.a.test. A", `
			a.test. 60 DNAME b.test.
			www.a.test. 60 CNAME www.b.test.
			www.b.test. 60 A 10.0.0.1`,
			"a.test. 60 IN DNAME b.test.\nwww.a.test. 60 IN CNAME www.b.test.\n", true},
		{"a name that may have it, asked for by one that may not", "a.test. A", `
			a.test. 60 CNAME printer.lan.
			printer.lan. 60 A 192.168.1.5`, "a.test. 60 IN CNAME printer.lan.\n", true},
		{"a name that may have it leads elsewhere", "printer.lan. A", `
			printer.lan. 60 CNAME a.test.
			a.test. 60 A 192.168.1.5`, "same", false},
		{"a private name's metadata", "printer.lan. A", `
			printer.lan. 60 A 169.254.169.254
			printer.lan. 60 A 192.168.1.5`, "printer.lan. 60 IN A 192.168.1.5\n", false},

		{"at another name", "a.test. A", `
			a.test. 60 A 9.9.9.9
			b.test. 60 A 10.0.0.1`, "a.test. 60 IN A 9.9.9.9\n", false},
		{"only at another name", "a.test. A", "b.test. 60 A 10.0.0.1", "", false},
		{"in other sections", "a.test. MX", `
			a.test. 60 MX 10 b.test.
			authority
			test. 60 NS ns.test.
			x.test. 60 AAAA fe80::1
			additional
			b.test. 60 A 10.0.0.1
			b.test. 60 A 9.9.9.9`, `a.test. 60 IN MX 10 b.test.
authority
test. 60 IN NS ns.test.
additional
b.test. 60 IN A 9.9.9.9
`, false},
		{"nothing left: no referral either", "a.test. A", `
			a.test. 60 A 10.0.0.1
			c.test. 60 A 9.9.9.9
			authority
			test. 60 NS ns.test.
			additional
			ns.test. 60 A 9.9.9.10`, "", true},
		{"ANY", "a.test. ANY", `
			a.test. 60 A 10.0.0.1
			a.test. 60 TXT "x"`, "a.test. 60 IN TXT \"x\"\n", false},
		{"ANY, nothing left", "a.test. ANY", `
			a.test. 60 CNAME b.test.
			b.test. 60 A 10.0.0.1`, "a.test. 60 IN CNAME b.test.\n", true},

		{"hints", "a.test. HTTPS",
			`a.test. 60 HTTPS 1 . alpn=h2 ipv4hint=10.0.0.1,9.9.9.9 ipv6hint=fd00::1,2620:fe::fe,fe80::1`,
			"a.test. 60 IN HTTPS 1 . alpn=\"h2\" ipv4hint=\"9.9.9.9\" ipv6hint=\"2620:fe::fe\"\n", false},
		{"no hints left", "a.test. HTTPS",
			`a.test. 60 HTTPS 1 . alpn=h2 ipv4hint=10.0.0.1 ipv6hint=fd00::1 port=8443`,
			"a.test. 60 IN HTTPS 1 . alpn=\"h2\" port=\"8443\"\n", false},
		{"no hints left that are not mandatory", "a.test. HTTPS",
			`a.test. 60 HTTPS 1 . mandatory=alpn,ipv6hint alpn=h2 ipv4hint=10.0.0.1 ipv6hint=2620:fe::fe`,
			"a.test. 60 IN HTTPS 1 . mandatory=\"alpn,ipv6hint\" alpn=\"h2\" ipv6hint=\"2620:fe::fe\"\n", false},
		{"some mandatory hints left", "a.test. HTTPS",
			`a.test. 60 HTTPS 1 . mandatory=ipv4hint ipv4hint=10.0.0.1,9.9.9.9`,
			"a.test. 60 IN HTTPS 1 . mandatory=\"ipv4hint\" ipv4hint=\"9.9.9.9\"\n", false},
		{"no mandatory hints left", "a.test. HTTPS", `
			a.test. 60 HTTPS 1 . mandatory=ipv4hint ipv4hint=10.0.0.1
			a.test. 60 HTTPS 2 . alpn=h2`, "a.test. 60 IN HTTPS 2 . alpn=\"h2\"\n", false},
		{"no record left", "a.test. HTTPS",
			`a.test. 60 HTTPS 1 . mandatory=ipv6hint ipv4hint=9.9.9.9 ipv6hint=::1`, "", true},
		{"hints of an alias", "a.test. HTTPS",
			`a.test. 60 HTTPS 0 b.test. ipv4hint=10.0.0.1`, "a.test. 60 IN HTTPS 0 b.test.\n", false},
		{"SVCB", "_dns.a.test. SVCB",
			`_dns.a.test. 60 SVCB 1 b.test. alpn=dot ipv4hint=127.0.0.1,9.9.9.9`,
			"_dns.a.test. 60 IN SVCB 1 b.test. alpn=\"dot\" ipv4hint=\"9.9.9.9\"\n", false},
		{"SVCB, mandatory", "_dns.a.test. SVCB",
			`_dns.a.test. 60 SVCB 1 b.test. mandatory=ipv4hint ipv4hint=127.0.0.1`, "", true},
		{"hints beside an answer", "a.test. A", `
			a.test. 60 A 9.9.9.9
			additional
			a.test. 60 HTTPS 1 . ipv4hint=10.0.0.1`, `a.test. 60 IN A 9.9.9.9
additional
a.test. 60 IN HTTPS 1 .
`, false},

		{"signatures", "a.test. A", signed(`
			a.test. 60 CNAME b.test.
			a.test. 60 RRSIG CNAME
			B.test. 60 A 10.0.0.1
			b.test. 60 A 9.9.9.9
			b.test. 60 RRSIG A
			b.test. 60 RRSIG AAAA
			c.test. 60 RRSIG A
			additional
			b.TEST. 60 RRSIG A
			d.test. 60 HTTPS 1 . ipv4hint=10.0.0.1
			d.test. 60 RRSIG HTTPS`), signed(`a.test. 60 IN CNAME b.test.
a.test. 60 IN RRSIG CNAME
b.test. 60 IN A 9.9.9.9
b.test. 60 IN RRSIG AAAA
c.test. 60 IN RRSIG A
additional
d.test. 60 IN HTTPS 1 .
`), false},
		{"signatures when nothing is left", "a.test. A", signed(`
			a.test. 60 CNAME b.test.
			a.test. 60 RRSIG CNAME
			b.test. 60 A 10.0.0.1
			b.test. 60 RRSIG A`), signed(`a.test. 60 IN CNAME b.test.
a.test. 60 IN RRSIG CNAME
`), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q, m := question(t, tt.question), sections(t, tt.answer)
			m.AuthenticatedData = true
			before := m.Copy()
			f := newFilter(t, "ipdestinationguard {\nprivate **.lan\n}", q.Name)
			if f.clean(m) != (tt.want == "same") {
				t.Fatalf("clean: %v", f.clean(m))
			}
			if tt.want == "same" {
				return
			}
			got, s := f.strip(q, m)
			if sectionsText(got) != tt.want || s.empty != tt.empty || got.AuthenticatedData {
				t.Errorf("got\n%s\nwant\n%s\nempty is %v, AD is %v", sectionsText(got), tt.want, s.empty, got.AuthenticatedData)
			}
			if m.String() != before.String() {
				t.Errorf("the answer itself has become\n%v", m)
			}
			if !f.clean(got) {
				t.Error("and still it is not clean")
			}
		})
	}
}

// signed completes RRSIG records that only say what they cover.
func signed(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, " RRSIG ") {
			line = strings.TrimRight(line, "\n") + " 8 2 60 20300101000000 20200101000000 1 test. AAAA\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// An answer that is an error stays one.
func TestStripKeepsErrors(t *testing.T) {
	q, m := question(t, "a.test. A"), sections(t, "a.test. 60 A 10.0.0.1")
	m.Rcode = dns.RcodeNameError
	got, s := newFilter(t, "ipdestinationguard", q.Name).strip(q, m)
	if got.Rcode != dns.RcodeNameError || s.empty || len(got.Answer) > 0 {
		t.Errorf("got\n%v", got)
	}
}

// What is no address, as a plugin may leave it, is not touched.
func TestStripWithoutAddress(t *testing.T) {
	h := dns.RR_Header{Name: "a.test.", Class: dns.ClassINET, Ttl: 60}
	m := &dns.Msg{Answer: []dns.RR{&dns.A{Hdr: h}, &dns.A{Hdr: h, A: net.IP{1, 2}}, &dns.AAAA{Hdr: h}}}
	f := newFilter(t, "ipdestinationguard", "a.test.")
	if !f.clean(m) {
		t.Error("withheld")
	}
	m.Answer = append(m.Answer, &dns.A{Hdr: h, A: net.IPv4(10, 0, 0, 1)})
	if got, _ := f.strip(question(t, "a.test. A"), m); len(got.Answer) != 3 {
		t.Errorf("got\n%v", got)
	}
}

// A client that gets nothing learns why, if it can read it.
func TestNothingLeft(t *testing.T) {
	for _, edns := range []bool{true, false} {
		t.Run(fmt.Sprintf("EDNS %v", edns), func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			before := metrics(t)
			req := request(t, "a.test. A")
			if edns {
				req.SetEdns0(1400, true)
			}
			upstream := new(dns.OPT)
			upstream.Hdr.Name, upstream.Hdr.Rrtype = ".", dns.TypeOPT
			upstream.Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"}}
			had := upstream.String()
			c := r.client()
			rcode, err := c.serve(req, func(_ context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
				m := new(dns.Msg).SetReply(req)
				m.Answer = records(t, "a.test. 60 CNAME b.test.\nb.test. 60 A 10.0.0.1\nb.test. 60 A 169.254.169.254\nb.test. 60 A 127.0.0.1\nb.test. 60 A 10.0.0.2")
				if edns {
					m.Extra = []dns.RR{upstream}
				}
				return dns.RcodeSuccess, w.WriteMsg(m)
			})
			m := c.Msg
			if err != nil || rcode != dns.RcodeSuccess || m.Rcode != dns.RcodeSuccess || sectionsText(m) != "a.test. 60 IN CNAME b.test.\n" {
				t.Errorf("served with %d, %v:\n%v", rcode, err, m)
			}
			r.wantTransactions(0)
			before.wantMoved(t, values{`stripped_total{not_global}`: 2, `stripped_total{metadata}`: 1, `stripped_total{loopback}`: 1})
			opt := m.IsEdns0()
			if !edns {
				if opt != nil {
					t.Errorf("EDNS for one who does not know it:\n%v", m)
				}
				return
			}
			if opt == nil || len(opt.Option) != 2 || len(m.Extra) != 1 {
				t.Fatalf("got\n%v", m)
			}
			const want = "ipdestinationguard: stripped 10.0.0.1: private-use (RFC 1918)"
			if ede, ok := opt.Option[1].(*dns.EDNS0_EDE); !ok || ede.InfoCode != 17 || ede.ExtraText != want {
				t.Errorf("got %v, want %s", opt.Option[1], want)
			}
			if upstream.String() != had {
				t.Errorf("the record of the chain has become %v", upstream)
			}
			if _, err := m.Pack(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is left is granted, and nothing else.
func TestOnlyWhatIsLeftIsGranted(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nprivate **.lan 10.0.0.0/8\n}")
	r.own = func(addr netip.Addr) bool { return addr == netip.MustParseAddr("9.9.9.9") }
	for _, tt := range []struct {
		question, answer string
		granted          []string // in all
	}{
		{"a.test. A", "a.test. 60 A 10.0.0.1\na.test. 60 A 9.9.9.10\na.test. 60 A 9.9.9.9", []string{"9.9.9.10"}},
		{"a.test. A", "a.test. 60 A 10.0.0.1", []string{"9.9.9.10"}},
		{"a.test. A", "a.test. 60 CNAME nas.lan.\nnas.lan. 60 A 10.0.0.2", []string{"9.9.9.10"}},
		{"nas.lan. A", "nas.lan. 60 A 10.0.0.2\nnas.lan. 60 A 192.168.1.1", []string{"9.9.9.10", "10.0.0.2"}},
		{"a.test. A", "a.test. 60 A 10.0.0.2", []string{"9.9.9.10", "10.0.0.2"}},
		{"a.test. HTTPS", "a.test. 60 HTTPS 1 . ipv4hint=10.0.0.3,9.9.9.11", []string{"9.9.9.10", "9.9.9.11", "10.0.0.2"}},
	} {
		c := r.client()
		if _, err := c.serve(request(t, tt.question), answering(t, tt.answer)); err != nil {
			t.Error(err)
		}
		if !slices.Equal(c.granted, tt.granted) {
			t.Errorf("%s %q: granted %v, want %v", tt.question, tt.answer, c.granted, tt.granted)
		}
	}
}

// One message, as a cache might hand it out, for many at once: the race detector
// sees who writes to it.
func TestSharedAnswersAreStrippedElsewhere(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nprivate **.lan\n}")
	shared := sections(t, signed(`
		a.lan. 60 CNAME b.test.
		b.test. 60 A 10.0.0.1
		b.test. 60 A 127.0.0.1
		b.test. 60 RRSIG A
		authority
		test. 60 NS ns.test.
		additional
		ns.test. 60 HTTPS 1 . ipv4hint=10.0.0.1,127.0.0.1,9.9.9.9`))
	shared.Response, shared.AuthenticatedData = true, true
	shared.SetEdns0(1232, false)
	for _, section := range []*[]dns.RR{&shared.Answer, &shared.Ns, &shared.Extra} {
		*section = append(make([]dns.RR, 0, 20), *section...) // with room to append to
	}
	before := shared.String()
	next := func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		return dns.RcodeSuccess, w.WriteMsg(shared)
	}
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			name, want := "a.test.", ""
			if i%2 == 0 {
				name, want = "a.lan.", "b.test. 60 IN A 10.0.0.1\n"
			}
			for range 50 {
				req := request(t, name+" A")
				req.SetEdns0(1232, false)
				c := r.client()
				_, _ = c.serve(req, next)
				if got := sectionsText(c.Msg); !strings.Contains(got, want) || strings.Contains(got, "127.0.0.1") || strings.Contains(got, "10.0.0.1") != (want != "") {
					t.Errorf("%s: got\n%s", name, got)
				}
				c.Msg.Extra = append(c.Msg.Extra, &dns.TXT{}) // as the server's writer does
			}
		})
	}
	clients.Wait()
	if shared.String() != before {
		t.Errorf("it has become\n%v", shared)
	}
}

// The log has one line now and then, and what a stranger writes does not end it.
func TestStrippedIsLogged(t *testing.T) {
	var lines strings.Builder
	stdlog.SetOutput(&lines)
	defer stdlog.SetOutput(os.Stderr)
	r := newRig(t, "ipdestinationguard nft-local")
	packed := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5, 'a', '\n', '\'', ' ', 0xff, 0, 0, 1, 0, 1}
	req := new(dns.Msg)
	if err := req.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, _ = r.client().serve(req, func(_ context.Context, w dns.ResponseWriter, req *dns.Msg) (int, error) {
			m := new(dns.Msg).SetReply(req)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: req.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(10, 0, 0, 1)}}
			return dns.RcodeSuccess, w.WriteMsg(m)
		})
	}
	const want = `Stripped 10.0.0.1 from the answer for a\010\'\ \255: private-use (RFC 1918). ` +
		`If that name is yours and may have it, the directive needs the line: private a\010\'\ \255 10.0.0.1` + "\n"
	if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Whoever asks why is told the line that helps, if one does.
func TestLineForStripped(t *testing.T) {
	for stripped, want := range map[string]string{
		"": "", "private-use (RFC 1918)": "private a.test 10.0.0.1", ownAddress.Why: "private a.test 10.0.0.1",
		surplus.Why: "max_addresses_answer N", ofPool.Why: "", unreachable.Why: "",
	} {
		if got := lineFor("a.test", netip.MustParseAddr("10.0.0.1"), stripped); got != want {
			t.Errorf("%q: %q, want %q", stripped, got, want)
		}
	}
	r := newRig(t, "ipdestinationguard nft-local")
	if _, err := r.client().serve(request(t, "a.test. A"), answering(t, "a.test. 60 A 10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	all, err := r.administration().Answers(t.Context(), admin.AnswersQuery{})
	if err != nil || len(all.Answers) != 1 || all.Answers[0].Line != "private a.test 10.0.0.1" {
		t.Errorf("%+v, %v", all, err)
	}
}

// Whatever a packet holds, no address is left that may not be had, in any section;
// nothing else is lost, and the packet itself stays as it is.
func FuzzStrip(f *testing.F) {
	for _, s := range []struct{ question, answer string }{
		{"a.test. A", "a.test. 60 A 10.0.0.1"},
		{"a.test. A", "a.test. 60 CNAME b.test.\nb.test. 60 A 9.9.9.9\nadditional\nb.test. 60 AAAA ::1"},
		{"a.test. AAAA", "a.test. 60 AAAA 64:ff9b::a9fe:a9fe\nauthority\na.test. 60 AAAA 2002:a00:1::"},
		{"a.test. HTTPS", "a.test. 60 HTTPS 1 . mandatory=ipv4hint ipv4hint=10.0.0.1 ipv6hint=2620:fe::fe"},
		{"a.test. SVCB", "a.test. 60 SVCB 1 . ipv4hint=9.9.9.9,10.0.0.1 ipv6hint=fe80::1"},
		{"a.test. A", signed("a.test. 60 A 10.0.0.1\na.test. 60 RRSIG A\n")},
	} {
		m := sections(f, s.answer)
		m.Question = []dns.Question{question(f, s.question)}
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	filter := newFilter(f, "ipdestinationguard", "")
	f.Fuzz(func(t *testing.T, packed []byte) {
		m := new(dns.Msg)
		if m.Unpack(packed) != nil || len(m.Question) == 0 {
			return
		}
		before, q := m.String(), m.Question[0]
		out, s := filter.strip(q, m)
		if m.String() != before {
			t.Fatalf("it has become\n%v\nfrom\n%s", m, before)
		}
		if filter.clean(m) != (s.why == nil) || !filter.clean(out) {
			t.Fatalf("clean before: %v, after: %v, %+v", filter.clean(m), filter.clean(out), s)
		}
		kept := 0
		for _, section := range [][]dns.RR{out.Answer, out.Ns, out.Extra} {
			for _, rr := range section {
				kept++
				for _, ip := range addressesOf(rr) {
					if addr, ok := netip.AddrFromSlice(ip); ok && !reach.Global(addr.Unmap()) {
						t.Fatalf("%v is left in\n%v", ip, out)
					}
				}
			}
		}
		if had := len(m.Answer) + len(m.Ns) + len(m.Extra); s.why == nil && kept != had {
			t.Fatalf("%d records of %d are left of\n%v", kept, had, m)
		}
		if s.empty && (out.Rcode != dns.RcodeSuccess || answered(q, out) || len(out.Ns) > 0) {
			t.Fatalf("an empty answer:\n%v", out)
		}
	})
}
