package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A name may not have an address that is not the internet's, unless its server block
// says so: then nobody is told of it, and nobody gets there.
func TestPrivateAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const private = "private **.home.test 198.18.0.0/16 2001:db8::/32\n"
	block := func(keys, directive string, plugins ...string) string { // as guardedBlock, but as it is written
		return keys + " {\n errors\n" + directive + "\n" + strings.Join(plugins, "\n") + "\n}\n"
	}
	w.start(block(".", guardBlock("nft-both", private, "allowedIPs 198.18.200.0/24"), "forward . "+resolver4, "prometheus 127.0.0.1:9153") +
		block("evil.test", "ipdestinationguard {\n"+private+"}",
			template("A", `answer "{{ .Name }} 60 IN CNAME nas.home.test."`, `answer "nas.home.test. 60 IN A 198.18.9.1"`),
			template("HTTPS", `answer "{{ .Name }} 60 IN HTTPS 1 . alpn=h2 ipv4hint=198.18.9.2,127.0.0.1"`),
			template("MX", `answer "{{ .Name }} 60 IN MX 10 nas.home.test."`, `additional "nas.home.test. 60 IN A 198.18.9.3"`)) +
		block("strict.home.test", guardTable, "forward . "+resolver4) +
		block("resolver.arpa", guardTable+" {\n canary off\n}", template("SVCB", `answer "{{ .Name }} 60 IN SVCB 1 dns.test. alpn=dot"`)))

	var all []attempt
	parties := []party{w.self(), w.behind()}
	for _, p := range parties {
		for _, tt := range []struct {
			name, qtype string
			addr        string // that it would have, and that is not open otherwise
			want        string // what the client is told
		}{
			{nameOf(60, p.addr4(1)), "A", p.addr4(1), ""},
			{nameOf(60, p.addr6(1)), "AAAA", p.addr6(1), ""},
			{"cname-1." + nameOf(60, p.addr4(2)), "A", p.addr4(2), "CNAME"},
			{"www.evil.test.", "A", "198.18.9.1", "CNAME"},
			{"www.evil.test.", "HTTPS", "198.18.9.2", "HTTPS"},
			{"www.evil.test.", "MX", "198.18.9.3", "MX"},
			{strings.Replace(nameOf(60, p.addr4(3)), "test.", "strict.home.test.", 1), "A", p.addr4(3), ""},
			{"a-198-19-1-1.home.test.", "A", "198.19.1.1", ""},
			{"a-169-254-169-254.home.test.", "A", "", ""},
			{"a-127-0-0-1.home.test.", "A", "", ""},
		} {
			m := w.query(p.Host, "udp", p.resolver4, tt.name, tt.qtype, 1232)
			var got []string
			for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
				if h := rr.Header(); h.Rrtype != dns.TypeOPT {
					got = append(got, dns.TypeToString[h.Rrtype])
				}
			}
			if m.Rcode != dns.RcodeSuccess || strings.Join(got, " ") != tt.want || strings.Contains(m.String(), "hint") || !filtered(m) {
				t.Errorf("%s: %s %s: got\n%v", p.Name(), tt.name, tt.qtype, m)
			}
			if tt.addr != "" {
				all = append(all, attempt{p, tt.addr, false})
			}
		}
	}
	w.want(all)
	if n := w.metric(`coredns_ipdestinationguard_stripped_total{reason="not_global"}`); n < 16 {
		t.Errorf("%v addresses were stripped", n)
	}

	all = nil
	for _, p := range parties {
		for _, name := range []string{"home.test.", "a.b.HOME.test."} {
			n := len(name)
			for qtype, addr := range map[string]string{"A": p.addr4(n), "AAAA": p.addr6(n)} {
				m := w.query(p.Host, "udp", p.resolver(addr), strings.Replace(nameOf(60, addr), "test.", name, 1), qtype, 1232)
				if !slices.Equal(addresses(m), []string{addr}) {
					t.Errorf("%s: got\n%v", p.Name(), m)
				}
				all = append(all, attempt{p, addr, true})
			}
		}
		// It is open anyway.
		if m := w.query(p.Host, "udp", p.resolver4, nameOf(60, "198.18.200.1"), "A", 0); len(addresses(m)) != 1 {
			t.Errorf("%s: an allowed address: got\n%v", p.Name(), m)
		}
		if m := w.query(p.Host, "udp", p.resolver4, "use-application-dns.net.", "A", 0); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: a canary: got\n%v", p.Name(), m)
		}
		if m := w.query(p.Host, "udp", p.resolver4, "_dns.resolver.arpa.", "SVCB", 0); len(m.Answer) != 1 {
			t.Errorf("%s: a canary that is off: got\n%v", p.Name(), m)
		}
	}
	w.want(all)
}

// filtered reports whether an answer says that something was taken out of it.
func filtered(m *dns.Msg) bool {
	opt := m.IsEdns0()
	return opt != nil && slices.ContainsFunc(opt.Option, func(o dns.EDNS0) bool {
		ede, ok := o.(*dns.EDNS0_EDE)
		return ok && ede.InfoCode == dns.ExtendedErrorCodeFiltered && strings.HasPrefix(ede.ExtraText, guardTable+": stripped ")
	})
}
