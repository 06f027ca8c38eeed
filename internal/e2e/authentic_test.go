package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// serveTLS answers DNS over TLS in the world, on port 853.
func (w *world) serveTLS(config *tls.Config, handler dns.Handler) {
	w.Helper()
	listener, err := w.world.Listen("tcp", ":853")
	w.must(err)
	server := &dns.Server{Listener: tls.NewListener(listener, config), Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	w.Cleanup(func() { _ = listener.Close(); <-done })
}

// server is the other end of the authority's clients.
func (a *authority) server(names ...string) *tls.Config {
	a.Helper()
	cert, err := tls.LoadX509KeyPair(a.issue("server", x509.Certificate{DNSNames: names}))
	if err != nil {
		a.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

// authenticating answers as a resolver does that validates: what is signed with AD, if it
// is asked for that, and what is forged only to those who want no validation.
func authenticating() dns.Handler {
	zone := netlab.Zone()
	return dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		name := strings.ToLower(r.Question[0].Name)
		switch {
		case strings.HasSuffix(name, ".forged.test.") && !r.CheckingDisabled:
			_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
			return
		case strings.HasSuffix(name, ".signed.test.") && !r.CheckingDisabled && r.AuthenticatedData:
			w = vouching{w}
		}
		zone.ServeDNS(w, r)
	})
}

type vouching struct{ dns.ResponseWriter }

func (v vouching) WriteMsg(m *dns.Msg) error {
	m.AuthenticatedData = true
	return v.ResponseWriter.WriteMsg(m)
}

// What the upstream authenticates opens its addresses; what it does not opens nothing in
// zones that have to be authenticated, whatever the client wants to know.
func TestDNSSECByAD(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	theirs := newAuthority(t, "theirs")
	w.serveTLS(theirs.server(serverName), authenticating())
	w.start(guardedBlock(".", guardBlock("nft-both", "require encrypted", "dnssec ad signed.test unsigned.test forged.test made.test"),
		"template IN A made.test {\n answer \"{{ .Name }} 60 IN A "+w.self().addr4(99)+"\"\n }",
		"forward . tls://"+resolver4+" {\n tls "+theirs.file+"\n tls_servername "+serverName+"\n }", "cache"))
	made, err := exchangeAt(w.guard, "udp", "127.0.0.1:53", edns(new(dns.Msg).SetQuestion("www.made.test.", dns.TypeA)), 5*time.Second)
	w.must(err)
	if made.Rcode != dns.RcodeServerFailure || !hasEDE(made, dns.ExtendedErrorCodeDNSSECIndeterminate) {
		t.Errorf("CoreDNS has made it: %v", made)
	}
	w.wantShut(w.guard, w.self().addr4(99))
	n := 0
	for _, p := range []party{w.self(), w.behind()} {
		for _, tt := range []struct {
			zone string
			open bool
		}{{"signed.test.", true}, {"unsigned.test.", false}, {"forged.test.", false}, {"test.", true}} {
			for _, cd := range []bool{false, true} {
				n++
				addr := p.addr4(n)
				q := edns(new(dns.Msg).SetQuestion(strings.Replace(nameOf(60, addr), "test.", tt.zone, 1), dns.TypeA))
				q.CheckingDisabled = cd
				for range 2 { // and from the cache
					m, err := exchangeAt(p.Host, "udp", p.resolver4+":53", q, 5*time.Second)
					w.must(err)
					if (m.Rcode == dns.RcodeSuccess) != tt.open || m.AuthenticatedData || (len(addresses(m)) == 1) != tt.open {
						t.Errorf("%s, CD %v: %v", tt.zone, cd, m)
					}
					if tt.zone == "unsigned.test." && !hasEDE(m, dns.ExtendedErrorCodeDNSSECIndeterminate) {
						t.Errorf("no EDE 5: %v", m)
					}
				}
				if tt.open {
					w.wantOpen(p.Host, "tcp", addr)
				} else {
					w.wantShut(p.Host, addr)
				}
			}
		}
	}
}

// What is demanded of the upstream and is not so keeps CoreDNS from starting, and the
// firewall from being touched.
func TestDemandsOfTheUpstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for option, want := range map[string]string{
		"require encrypted": "require encrypted: forward asks " + resolver4 + ":53 in plain text",
		"dnssec ad .":       "anybody on the way could say AD",
	} {
		c := w.launch(guardedBlock(".", guardBlock("nft-local", option), "forward . "+resolver4))
		if err := c.Wait(); err == nil || !strings.Contains(c.Output(), want) {
			t.Errorf("%s: %v\n%s", option, err, c.Output())
		}
		w.wantOpen(w.guard, "tcp", w.self().addr4(1))
	}
	c := w.start(guardedBlock(".", guardBlock("nft-local", "require encrypted"), "forward . 127.0.0.1:5399"))
	if !strings.Contains(c.Output(), "require encrypted cannot find out how 127.0.0.1:5399 asks on") {
		t.Errorf("it does not say what it cannot find out:\n%s", c.Output())
	}
}
