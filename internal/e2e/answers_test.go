package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// query asks one question over udp or tcp. size is what EDNS says of the room
// for the answer; 0 is no EDNS.
func (w *world) query(from sender, network, server, name, qtype string, size uint16) *dns.Msg {
	w.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	if size > 0 {
		m.SetEdns0(size, false)
	}
	answer, err := exchange(from, network, server, m)
	w.must(err)
	return answer
}

func exchange(from sender, network, server string, m *dns.Msg) (*dns.Msg, error) {
	return exchangeAt(from, network, net.JoinHostPort(server, "53"), m, 5*time.Second)
}

func exchangeAt(from sender, network, server string, m *dns.Msg, patience time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := from.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := dns.Client{Net: network, Timeout: patience}
	answer, _, err := client.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	return answer, err
}

// addresses are those of A and AAAA records in the answer section.
func addresses(m *dns.Msg) (all []string) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.AAAA:
			all = append(all, rr.AAAA.String())
		}
	}
	return all
}

// However an answer comes about: what it gives the client is open, and nothing
// else that it happens to mention.
func TestAnswersOfEveryKind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	zone := filepath.Join(t.TempDir(), "db.zone.test")
	text := `$ORIGIN zone.test.
@     3600 IN SOA ns hostmaster 1 3600 600 86400 60
@     3600 IN NS  ns
ns    3600 IN A   198.18.60.1
www   3600 IN A   198.18.60.2
www   3600 IN AAAA 2001:db8:18:60::2
alias 3600 IN CNAME www
out   3600 IN CNAME a-198-18-60-3.test.
*.any 3600 IN A   198.18.60.4
sub   3600 IN DNAME any
`
	for i := range 60 {
		text += fmt.Sprintf("many 3600 IN A 198.18.61.%d\n", i+1)
	}
	w.save(zone, text)
	w.start(guardedBlock(".", guardBlock("nft-local"), "forward . "+resolver4) +
		guardedBlock("dns64.test", "", "dns64 {\n prefix 2001:db8:18:64::/96\n allow_ipv4\n }", "forward . "+resolver4) +
		guardedBlock("siit.test", "", "siit {\n ipv6_prefix 2001:db8:18:64::/96\n }", "forward . "+resolver4) +
		guardedBlock("template.test", "",
			template("A", `answer "{{ .Name }} 60 IN A 198.18.50.1"`),
			template("AAAA", `answer "{{ .Name }} 60 IN AAAA 2001:db8:18:50::1"`),
			template("HTTPS", `answer "{{ .Name }} 60 IN HTTPS 1 . alpn=h2 ipv4hint=198.18.50.2,198.18.50.3 ipv6hint=2001:db8:18:50::2"`),
			template("SVCB", `answer "{{ .Name }} 60 IN SVCB 1 svc.template.test. ipv4hint=198.18.50.4"`),
			template("MX", `answer "{{ .Name }} 60 IN MX 10 mail.template.test."`,
				`additional "mail.template.test. 60 IN A 198.18.50.5"`,
				`authority "template.test. 60 IN NS ns.template.test."`,
				`additional "ns.template.test. 60 IN AAAA 2001:db8:18:50::5"`)) +
		guardedBlock("more.test", "",
			template("A", `answer "{{ .Name }} 60 IN A 198.18.50.6"`,
				`answer "somebody.else. 60 IN A 198.18.50.7"`,
				`authority "more.test. 60 IN A 198.18.50.8"`,
				`additional "{{ .Name }} 60 IN A 198.18.50.9"`),
			template("TXT", `answer "{{ .Name }} 60 IN A 198.18.50.10"`)) +
		guardedBlock("hosts.test", "", "hosts {\n 198.18.50.11 www.hosts.test\n 2001:db8:18:50::11 www.hosts.test\n }") +
		guardedBlock("zone.test", "", "file "+zone, "transfer {\n to *\n }") +
		guardedBlock("rewrite.test", "", "rewrite stop {\n name exact www.rewrite.test "+nameOf(60, "198.18.50.12")+"\n answer auto\n }", "forward . "+resolver4) +
		guardedBlock("type.test", "", "rewrite type AAAA A", "forward . "+resolver4))

	tests := []struct {
		name, qtype string
		open, shut  []string
	}{
		{nameOf(60, "198.18.51.1"), "A", []string{"198.18.51.1"}, nil},
		{nameOf(60, "2001:db8:18:51::1"), "AAAA", []string{"2001:db8:18:51::1"}, nil},
		{nameOf(60, "198.18.51.2", "2001:db8:18:51::2"), "A", []string{"198.18.51.2"}, []string{"2001:db8:18:51::2"}},
		{strings.ToUpper(nameOf(60, "198.18.51.3")), "A", []string{"198.18.51.3"}, nil},
		{nameOf(60, "198.18.51.4"), "TXT", nil, []string{"198.18.51.4"}},
		{"nx." + nameOf(60, "198.18.51.5"), "A", nil, []string{"198.18.51.5"}},
		{"cname-1.cname-2.cname-3." + nameOf(60, "198.18.51.6", "198.18.51.7"), "A", []string{"198.18.51.6", "198.18.51.7"}, nil},
		{"cname-1." + nameOf(60, "198.18.51.8"), "CNAME", nil, []string{"198.18.51.8"}},
		{nameOf(0, "198.18.51.9"), "A", []string{"198.18.51.9"}, nil},
		{nameOf(1<<32-1, "198.18.51.10"), "A", []string{"198.18.51.10"}, nil},

		{"a-198-18-52-1.dns64.test.", "AAAA", []string{"2001:db8:18:64::c612:3401"}, []string{"198.18.52.1"}},
		{"cname-1.a-198-18-52-2.dns64.test.", "AAAA", []string{"2001:db8:18:64::c612:3402"}, []string{"198.18.52.2"}},
		{"aaaa-2001-db8-18-64--c612-3403.siit.test.", "A", []string{"198.18.52.3"}, []string{"2001:db8:18:64::c612:3403"}},

		{"x.template.test.", "A", []string{"198.18.50.1"}, []string{"2001:db8:18:50::1"}},
		{"x.template.test.", "HTTPS", []string{"198.18.50.2", "198.18.50.3", "2001:db8:18:50::2"}, nil},
		{"x.template.test.", "SVCB", []string{"198.18.50.4"}, nil},
		{"template.test.", "MX", nil, []string{"198.18.50.5", "2001:db8:18:50::5"}},
		{"x.more.test.", "A", []string{"198.18.50.6"}, []string{"198.18.50.7", "198.18.50.8", "198.18.50.9"}},
		{"x.more.test.", "TXT", nil, []string{"198.18.50.10"}},

		{"www.hosts.test.", "A", []string{"198.18.50.11"}, []string{"2001:db8:18:50::11"}},
		{"alias.zone.test.", "A", []string{"198.18.60.2"}, nil},
		{"alias.zone.test.", "AAAA", []string{"2001:db8:18:60::2"}, nil},
		{"zone.test.", "NS", nil, []string{"198.18.60.1"}},
		{"out.zone.test.", "A", []string{"198.18.60.3"}, nil},
		{"x.sub.zone.test.", "A", []string{"198.18.60.4"}, nil},
		{"www.rewrite.test.", "A", []string{"198.18.50.12"}, nil},
		{"a-198-18-50-13.type.test.", "AAAA", nil, []string{"198.18.50.13"}},
	}
	guard := w.self()
	// First the whole zone: it opens nothing.
	conn, err := w.guard.Dial(t.Context(), "tcp", "127.0.0.1:53")
	w.must(err)
	defer conn.Close()
	transfer, err := (&dns.Transfer{Conn: &dns.Conn{Conn: conn}}).In(new(dns.Msg).SetAxfr("zone.test."), "")
	w.must(err)
	records := 0
	for part := range transfer {
		w.must(part.Error)
		records += len(part.RR)
	}
	if records < 60 {
		t.Errorf("the zone was transferred with %d records", records)
	}
	w.want([]attempt{
		{guard, "198.18.60.1", false}, {guard, "198.18.60.2", false}, {guard, "2001:db8:18:60::2", false}, {guard, "198.18.61.1", false},
	})

	var all []attempt
	for i, tt := range tests {
		m := w.query(w.guard, networks[i%2], "127.0.0.1", tt.name, tt.qtype, 1232)
		if m.Rcode == dns.RcodeServerFailure || len(tt.open) > 0 && len(m.Answer) == 0 {
			t.Errorf("%s %s: %v", tt.name, tt.qtype, m)
		}
		for _, addr := range tt.open {
			all = append(all, attempt{guard, addr, true})
		}
		for _, addr := range tt.shut {
			all = append(all, attempt{guard, addr, false})
		}
	}
	w.want(all)
}

// guardedBlock is a server block with the directive, which joins the guard that
// another block sets up unless it says something itself.
func guardedBlock(keys, directive string, plugins ...string) string {
	if directive == "" {
		directive = guardTable
	}
	return keys + " {\n\terrors\n\t" + withExamples(directive) + "\n\t" + strings.Join(plugins, "\n\t") + "\n}\n"
}

// template answers questions of one type.
func template(qtype string, records ...string) string {
	return "template IN " + qtype + " {\n\t" + strings.Join(records, "\n\t") + "\n}"
}

// What of a truncated answer the client has seen is open, and the rest once it
// has asked over TCP, whether CoreDNS cuts the answer or its upstream.
func TestTruncatedAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	zone := filepath.Join(t.TempDir(), "db.zone.test")
	text := "$ORIGIN zone.test.\n@ 3600 IN SOA ns hostmaster 1 3600 600 86400 60\n"
	for i := range 60 {
		text += fmt.Sprintf("many 3600 IN A 198.18.61.%d\nmany 3600 IN AAAA 2001:db8:18:61::%d\n", i+1, i+1)
	}
	w.save(zone, text)
	w.start(guardedBlock(".", guardBlock("nft-both"), "forward . "+resolver4) +
		guardedBlock("zone.test", "", "file "+zone) +
		guardedBlock("tcp.test", "", "forward . "+resolver4+" {\n force_tcp\n }"))

	many := func(n, third int) (labels string) { // just more than 512 bytes have room for
		for i := range n {
			labels += fmt.Sprintf("a-198-18-%d-%d.", third, i+1)
		}
		return labels
	}
	for _, tt := range []struct {
		name, qtype string
		size        uint16
	}{
		{many(17, 62) + "test.", "A", 0},
		{many(16, 63) + "tcp.test.", "A", 0},
		{"many.zone.test.", "A", 600},
		{"many.zone.test.", "AAAA", 0},
	} {
		part := w.query(w.guard, "udp", "127.0.0.1", tt.name, tt.qtype, tt.size)
		carried := addresses(part)
		if !part.Truncated || len(carried) == 0 {
			t.Errorf("%s: %d addresses, truncated is %v: nothing is tested here", tt.name, len(carried), part.Truncated)
		}
		for _, addr := range carried {
			w.wantOpen(w.guard, "tcp", addr)
		}
		whole := w.query(w.client, "tcp", gateway4, tt.name, tt.qtype, tt.size)
		if n := len(addresses(whole)); whole.Truncated || n <= len(carried) {
			t.Errorf("%s: over TCP %d addresses, truncated is %v", tt.name, n, whole.Truncated)
		}
		for _, addr := range addresses(whole) {
			w.wantOpen(w.client, "tcp", addr)
		}
	}
}

// An answer from the cache opens anew what has expired since, also a stale one,
// while the upstream is dead.
func TestAnswersFromTheCache(t *testing.T) {
	for _, tt := range []struct {
		name, cache string
		least       uint32 // TTL of an answer from the cache
		most        uint32
	}{
		{"fresh", "cache {\n success 1000 3600 3600\n }", 3500, 3600},
		{"stale", "cache {\n success 1000 1 1\n serve_stale 1h\n }", 0, 0},
		{"stale, verified", "cache {\n success 1000 1 1\n serve_stale 1h verify 100ms\n }", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var dead atomic.Bool
			w.must(w.world.ServeDNS(5353, dns.HandlerFunc(func(rw dns.ResponseWriter, m *dns.Msg) {
				if !dead.Load() {
					netlab.Zone().ServeDNS(rw, m)
				}
			})))
			w.start(guardedBlock(".", guardBlock("nft-both", "ttl 1s 2s", "margin 1s"), tt.cache, "forward . "+resolver4+":5353 {\n max_fails 0\n }"))
			guarded := []party{w.self(), w.behind()}
			for _, p := range guarded {
				w.lookup(p.Host, p.resolver4, p.addr4(1), 60)
				w.lookup(p.Host, p.resolver6, p.addr6(1), 60)
			}
			dead.Store(true)
			together(guarded, func(p party) {
				for _, addr := range []string{p.addr4(1), p.addr6(1)} {
					for deadline := time.Now().Add(20 * time.Second); w.connect(p.Host, "tcp", addr) == nil; {
						if time.Now().After(deadline) {
							w.Errorf("%s is still open", addr)
							return
						}
						time.Sleep(20 * time.Millisecond)
					}
				}
			})
			for _, p := range guarded {
				for addr, qtype := range map[string]string{p.addr4(1): "A", p.addr6(1): "AAAA"} {
					w.eventually(addr+" is open", func() bool {
						asked := time.Now()
						m := w.query(p.Host, "udp", p.resolver(addr), nameOf(60, addr), qtype, 0)
						err := w.connect(p.Host, "tcp", addr)
						took := time.Since(asked)
						if len(m.Answer) != 1 || m.Answer[0].Header().Ttl < tt.least || m.Answer[0].Header().Ttl > tt.most {
							t.Fatalf("not what the cache should have: %v", m)
						}
						if err != nil && took < 2*time.Second { // later it may have ended again
							t.Fatalf("%s: %s is refused right after an answer from the cache: %v", p.Name(), addr, err)
						}
						return err == nil
					})
				}
			}
		})
	}
}
