package ipdestinationguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// records reads lines of a zone file.
func records(t testing.TB, lines string) (rrs []dns.RR) {
	t.Helper()
	for line := range strings.Lines(lines) {
		rr, err := dns.NewRR(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		if rr != nil {
			rrs = append(rrs, rr)
		}
	}
	return rrs
}

// question reads "name type" or "name class type".
func question(t testing.TB, text string) dns.Question {
	t.Helper()
	fields := strings.Fields(text)
	q := dns.Question{Name: fields[0], Qtype: dns.StringToType[fields[len(fields)-1]], Qclass: dns.ClassINET}
	if len(fields) == 3 {
		q.Qclass = dns.StringToClass[fields[1]]
	}
	if q.Qtype == 0 || q.Qclass == 0 {
		t.Fatalf("no question: %s", text)
	}
	return q
}

func targetsText(targets []target) string {
	var list []string
	for _, t := range targets {
		list = append(list, fmt.Sprint(t.key.Addr(), " ", t.ttl))
	}
	return strings.Join(list, ", ")
}

func TestReadAnswer(t *testing.T) {
	tests := []struct {
		name     string
		question string
		answer   string
		want     string // "address ttl, ..."
	}{
		{"A", "a.test. A", "a.test. 60 A 192.0.2.1", "192.0.2.1 60"},
		{"AAAA", "a.test. AAAA", "a.test. 60 AAAA 2001:db8::1", "2001:db8::1 60"},
		{"several, each with its own TTL", "a.test. A", `
			a.test. 60 A 192.0.2.1
			a.test. 5 A 192.0.2.2`, "192.0.2.1 60, 192.0.2.2 5"},
		{"one twice", "a.test. A", `
			a.test. 60 A 192.0.2.1
			a.test. 5 A 192.0.2.1`, "192.0.2.1 60, 192.0.2.1 5"},
		{"TTL 0", "a.test. A", "a.test. 0 A 192.0.2.1", "192.0.2.1 0"},
		{"the largest TTL", "a.test. A", "a.test. 4294967295 A 192.0.2.1", "192.0.2.1 4294967295"},
		{"case differs (0x20)", "WwW.tEsT. A", "www.TEST. 60 A 192.0.2.1", "192.0.2.1 60"},
		{"only ASCII letters have case", `\228.test. A`, `\196.test. 60 A 192.0.2.1`, ""},
		{"[ and { are not two cases of a letter", "[.test. A", "{.test. 60 A 192.0.2.1", ""},
		{"the root", ". A", ". 60 A 192.0.2.1", "192.0.2.1 60"},
		{"IPv4-mapped AAAA is IPv4", "a.test. AAAA", "a.test. 60 AAAA ::ffff:192.0.2.1", "192.0.2.1 60"},
		{"IPv4-compatible AAAA is IPv6", "a.test. AAAA", "a.test. 60 AAAA ::192.0.2.1", "::c000:201 60"},

		{"another name", "a.test. A", "b.test. 60 A 192.0.2.1", ""},
		{"a name below", "a.test. A", "x.a.test. 60 A 192.0.2.1", ""},
		{"a name above", "x.a.test. A", "a.test. 60 A 192.0.2.1", ""},
		{"another type", "a.test. AAAA", "a.test. 60 A 192.0.2.1", ""},
		{"a type without addresses", "a.test. MX", `
			a.test. 60 MX 10 a.test.
			a.test. 60 A 192.0.2.1`, ""},
		{"a record of another class", "a.test. A", "a.test. 60 CH A 192.0.2.1", ""},
		{"a question of class ANY", "a.test. ANY A", "a.test. 60 A 192.0.2.1", "192.0.2.1 60"},
		{"ANY", "a.test. ANY", `
			a.test. 60 A 192.0.2.1
			a.test. 70 AAAA 2001:db8::1
			a.test. 80 HTTPS 1 . ipv4hint=192.0.2.2
			a.test. 90 TXT "192.0.2.3"
			b.test. 60 A 192.0.2.4`, "192.0.2.1 60, 2001:db8::1 70, 192.0.2.2 80"},
		{"nothing", "a.test. A", "", ""},

		{"CNAME: the least TTL of the chain", "a.test. A", `
			a.test. 50 CNAME b.test.
			b.test. 40 CNAME c.test.
			c.test. 60 A 192.0.2.1`, "192.0.2.1 40"},
		{"CNAME: the address has the least TTL", "a.test. A", `
			a.test. 50 CNAME b.test.
			b.test. 10 A 192.0.2.1
			b.test. 90 A 192.0.2.2`, "192.0.2.1 10, 192.0.2.2 50"},
		{"CNAME: in any order", "a.test. A", `
			d.test. 60 A 192.0.2.1
			c.test. 60 CNAME d.test.
			b.test. 7 CNAME c.test.
			a.test. 60 CNAME b.test.`, "192.0.2.1 7"},
		{"CNAME: case differs", "a.test. A", `
			A.test. 60 CNAME B.test.
			b.TEST. 60 A 192.0.2.1`, "192.0.2.1 60"},
		{"CNAME: an address beside the alias", "a.test. A", `
			a.test. 5 CNAME b.test.
			a.test. 60 A 192.0.2.1
			b.test. 60 A 192.0.2.2`, "192.0.2.1 60, 192.0.2.2 5"},
		{"CNAME: somebody else's", "a.test. A", `
			x.test. 60 CNAME b.test.
			b.test. 60 A 192.0.2.1`, ""},
		{"CNAME: leads away from the address", "a.test. A", `
			a.test. 60 CNAME b.test.
			c.test. 60 A 192.0.2.1`, ""},
		{"CNAME: asked for itself", "a.test. CNAME", `
			a.test. 60 CNAME b.test.
			b.test. 60 A 192.0.2.1`, ""},
		{"CNAME: a loop", "a.test. A", `
			a.test. 60 CNAME b.test.
			b.test. 60 CNAME a.test.
			b.test. 60 A 192.0.2.1`, "192.0.2.1 60"},
		{"CNAME: to itself", "a.test. A", "a.test. 60 CNAME a.test.", ""},

		{"DNAME with its CNAME", "www.old.test. A", `
			old.test. 30 DNAME new.test.
			www.old.test. 30 CNAME www.new.test.
			www.new.test. 60 A 192.0.2.1`, "192.0.2.1 30"},
		{"DNAME alone", "www.old.test. A", `
			OLD.test. 30 DNAME new.test.
			www.new.test. 60 A 192.0.2.1`, "192.0.2.1 30"},
		{"DNAME: not its owner", "old.test. A", `
			old.test. 30 DNAME new.test.
			new.test. 60 A 192.0.2.1`, ""},
		{"DNAME: not what only ends alike", "bold.test. A", `
			old.test. 30 DNAME new.test.
			bnew.test. 60 A 192.0.2.1`, ""},
		{"DNAME to the root", "www.old.test. A", `
			old.test. 30 DNAME .
			www. 60 A 192.0.2.1`, "192.0.2.1 30"},
		{"DNAME after a CNAME", "a.test. A", `
			www.new.test. 60 A 192.0.2.1
			old.test. 20 DNAME new.test.
			a.test. 30 CNAME www.old.test.`, "192.0.2.1 20"},
		{"DNAME: of two names of the chain", "a.old.test. A", `
			old.test. 30 DNAME new.test.
			a.new.test. 30 CNAME b.old.test.
			b.new.test. 60 A 192.0.2.1`, "192.0.2.1 30"},
		{"DNAME: into itself, without end", "a.old.test. A", `
			a.old.test. 60 A 192.0.2.1
			old.test. 60 DNAME old.test.`, "192.0.2.1 60"},

		{"HTTPS: hints", "a.test. HTTPS", `
			a.test. 60 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1`,
			"192.0.2.1 60, 192.0.2.2 60, 2001:db8::1 60"},
		{"HTTPS: hints for another target", "a.test. HTTPS",
			"a.test. 60 HTTPS 1 b.test. ipv4hint=192.0.2.1", "192.0.2.1 60"},
		{"HTTPS: alias mode has no hints", "a.test. HTTPS",
			"a.test. 60 HTTPS 0 b.test. ipv4hint=192.0.2.1", ""},
		{"HTTPS: not the addresses beside it", "a.test. HTTPS", `
			a.test. 60 HTTPS 1 .
			a.test. 60 A 192.0.2.1`, ""},
		{"HTTPS: after a CNAME", "a.test. HTTPS", `
			a.test. 9 CNAME b.test.
			b.test. 60 HTTPS 1 . ipv4hint=192.0.2.1`, "192.0.2.1 9"},
		{"HTTPS: for a question for A", "a.test. A",
			"a.test. 60 HTTPS 1 . ipv4hint=192.0.2.1", ""},
		{"SVCB: hints", "_dns.a.test. SVCB",
			"_dns.a.test. 60 SVCB 1 dns.test. alpn=dot ipv4hint=192.0.2.1", "192.0.2.1 60"},
		{"SVCB: for a question for HTTPS", "a.test. HTTPS",
			"a.test. 60 SVCB 1 . ipv4hint=192.0.2.1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &dns.Msg{Answer: records(t, tt.answer)}
			got, err := readAnswer(question(t, tt.question), m, nil)
			if err != nil || targetsText(got) != tt.want {
				t.Errorf("got %q, %v, want %q", targetsText(got), err, tt.want)
			}
		})
	}
}

// Records in other sections, and in answers that are errors, give nothing.
func TestReadAnswerOfOtherSections(t *testing.T) {
	q, a := question(t, "a.test. A"), records(t, "a.test. 60 A 192.0.2.1")
	tests := map[string]*dns.Msg{
		"authority":  {Ns: a},
		"additional": {Extra: a},
		"NXDOMAIN":   {MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}, Answer: a},
		"SERVFAIL":   {MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}, Answer: a},
		"BADTIME":    {MsgHdr: dns.MsgHdr{Rcode: dns.RcodeBadTime}, Answer: a},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := readAnswer(q, m, nil); err != nil || len(got) > 0 {
				t.Errorf("got %q, %v", targetsText(got), err)
			}
		})
	}
}

// An address that is none, as a plugin may leave it, gives nothing.
func TestReadAnswerWithoutAddress(t *testing.T) {
	h := dns.RR_Header{Name: "a.test.", Class: dns.ClassINET, Ttl: 60}
	ha, haaaa := h, h
	ha.Rrtype, haaaa.Rrtype = dns.TypeA, dns.TypeAAAA
	m := &dns.Msg{Answer: []dns.RR{&dns.A{Hdr: ha}, &dns.A{Hdr: ha, A: net.IP{1, 2}}, &dns.AAAA{Hdr: haaaa}}}
	if got, err := readAnswer(question(t, "a.test. ANY"), m, nil); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v", targetsText(got), err)
	}
}

// chainOf leads from 0.test. over so many aliases to an address; the last alias
// comes first, so that each has to be looked for.
func chainOf(t testing.TB, aliases int) []dns.RR {
	lines := fmt.Sprintf("%d.test. 60 A 192.0.2.1\n", aliases)
	for i := aliases - 1; i >= 0; i-- {
		lines += fmt.Sprintf("%d.test. 60 CNAME %d.test.\n", i, i+1)
	}
	return records(t, lines)
}

func TestReadAnswerBoundsChains(t *testing.T) {
	q := question(t, "0.test. A")
	got, err := readAnswer(q, &dns.Msg{Answer: chainOf(t, maxChain-1)}, nil)
	if err != nil || targetsText(got) != "192.0.2.1 60" {
		t.Errorf("the longest chain: %q, %v", targetsText(got), err)
	}
	got, err = readAnswer(q, &dns.Msg{Answer: chainOf(t, maxChain)}, nil)
	if !errors.Is(err, errChain) || len(got) > 0 {
		t.Errorf("one more: %q, %v", targetsText(got), err)
	}
	for _, endless := range []string{"test. 60 DNAME a.test.", ". 60 DNAME a."} {
		m := &dns.Msg{Answer: records(t, endless+"\n0.test. 60 A 192.0.2.1")}
		if _, err := readAnswer(q, m, nil); !errors.Is(err, errChain) {
			t.Errorf("a DNAME that leads below itself, %s: %v", endless, err)
		}
	}
}

// Large answers are read whole, behind what the caller has already.
func TestReadAnswerAppends(t *testing.T) {
	const n = 4000
	m := new(dns.Msg)
	for i := range n {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: "a.test.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(i)},
			A:   net.IPv4(10, 0, byte(i>>8), byte(i)), // of 16 bytes, as plugins make them
		})
	}
	had := target{backend.KeyOf(netip.MustParseAddr("192.0.2.1")), 7}
	got, err := readAnswer(question(t, "a.test. A"), m, []target{had})
	if err != nil || len(got) != 1+n || got[0] != had {
		t.Fatalf("got %d targets, %v", len(got), err)
	}
	for i, x := range got[1:] {
		if want := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}); x.key.Addr() != want || x.ttl != uint32(i) {
			t.Fatalf("record %d: %v %d", i, x.key.Addr(), x.ttl)
		}
	}
}

// The usual answer costs no memory.
func TestReadAnswerAllocatesNothing(t *testing.T) {
	m := &dns.Msg{Answer: records(t, "a.test. 60 CNAME b.test.\nb.test. 60 A 192.0.2.1\nb.test. 60 A 192.0.2.2")}
	q := question(t, "a.test. A")
	buf := make([]target, 0, 8)
	if n := testing.AllocsPerRun(100, func() { _, _ = readAnswer(q, m, buf) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever a packet holds, an address is granted only if a record of the answer
// section gives it.
func FuzzReadAnswer(f *testing.F) {
	for _, s := range []struct{ question, answer, extra string }{
		{"a.test. A", "a.test. 60 A 192.0.2.1", "a.test. 60 A 192.0.2.9"},
		{"a.test. AAAA", "a.test. 60 CNAME b.test.\nb.test. 60 AAAA 2001:db8::1", "b.test. 60 A 192.0.2.9"},
		{"www.old.test. A", "old.test. 60 DNAME new.test.\nwww.new.test. 60 A 192.0.2.1", ""},
		{"a.test. HTTPS", "a.test. 60 HTTPS 1 . ipv4hint=192.0.2.1 ipv6hint=2001:db8::1", "a.test. 60 A 192.0.2.9"},
		{"a.test. ANY", "a.test. 60 A 192.0.2.1\na.test. 60 SVCB 0 b.test.", ""},
		{"0.test. A", "test. 60 DNAME a.test.", ""},
	} {
		m := &dns.Msg{
			Question: []dns.Question{question(f, s.question)}, Compress: true,
			Answer: records(f, s.answer), Extra: records(f, s.extra),
		}
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	long := &dns.Msg{Question: []dns.Question{question(f, "0.test. A")}, Answer: chainOf(f, maxChain)}
	packed, err := long.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)

	f.Fuzz(func(t *testing.T, packed []byte) {
		m := new(dns.Msg)
		if m.Unpack(packed) != nil || len(m.Question) == 0 {
			return
		}
		targets, err := readAnswer(m.Question[0], m, nil)
		if err != nil && len(targets) > 0 {
			t.Fatalf("%v, and yet %s", err, targetsText(targets))
		}
		for _, x := range targets {
			gives := func(rr dns.RR) bool {
				return x.ttl <= rr.Header().Ttl && slices.ContainsFunc(addressesOf(rr), func(ip net.IP) bool {
					return ip.Equal(x.key.Addr().AsSlice())
				})
			}
			if !slices.ContainsFunc(m.Answer, gives) {
				t.Fatalf("%s comes from nowhere:\n%v", targetsText([]target{x}), m)
			}
		}
	})
}

// addressesOf returns every address in a record, whatever it is for.
func addressesOf(rr dns.RR) (ips []net.IP) {
	switch rr := rr.(type) {
	case *dns.A:
		ips = append(ips, rr.A)
	case *dns.AAAA:
		ips = append(ips, rr.AAAA)
	case *dns.HTTPS:
		return addressesOf(&rr.SVCB)
	case *dns.SVCB:
		for _, v := range rr.Value {
			switch v := v.(type) {
			case *dns.SVCBIPv4Hint:
				ips = append(ips, v.Hint...)
			case *dns.SVCBIPv6Hint:
				ips = append(ips, v.Hint...)
			}
		}
	}
	return ips
}

// An answer made to be followed for long is refused.
func TestReadAnswerOfManyAliases(t *testing.T) {
	m := new(dns.Msg)
	for i := range maxAliases + 1 {
		m.Answer = append(m.Answer, records(t, fmt.Sprintf("b%d.test. 60 DNAME c%d.test.", i, i))...)
	}
	if _, err := readAnswer(question(t, "a.test. A"), m, nil); !errors.Is(err, errChain) {
		t.Error(err)
	}
}

// So is one that would open more addresses than any name has: an HTTPS record has
// room for 16,000.
func TestReadAnswerOfManyAddresses(t *testing.T) {
	hint := &dns.SVCBIPv4Hint{}
	for i := range maxTargets + 1 {
		hint.Hint = append(hint.Hint, net.IPv4(198, 18, byte(i>>8), byte(i)).To4())
	}
	m := &dns.Msg{Answer: []dns.RR{&dns.HTTPS{SVCB: dns.SVCB{
		Hdr:      dns.RR_Header{Name: "a.test.", Rrtype: dns.TypeHTTPS, Class: dns.ClassINET, Ttl: 60},
		Priority: 1, Target: ".", Value: []dns.SVCBKeyValue{hint},
	}}}}
	if _, err := readAnswer(question(t, "a.test. HTTPS"), m, nil); !errors.Is(err, errTargets) {
		t.Error(err)
	}
}

// A dot that belongs to a label does not end it.
func TestSubstituteKeepsToLabels(t *testing.T) {
	for _, tt := range []struct{ name, owner, want string }{
		{"a.old.", "old.", "a.new."},
		{"A.OLD.", "old.", "A.new."},
		{"old.", "old.", ""},
		{"aold.", "old.", ""},
		{`a\.old.`, "old.", ""},
		{`a\\.old.`, "old.", `a\\.new.`},
		{"a.old.", ".", "a.old.new."},
		{".", ".", ""},
	} {
		got, _ := substitute(tt.name, &dns.DNAME{Hdr: dns.RR_Header{Name: tt.owner}, Target: "new."})
		if got != tt.want {
			t.Errorf("%s by %s is %q, want %q", tt.name, tt.owner, got, tt.want)
		}
	}
}
