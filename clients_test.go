package ipdestinationguard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	dnsrequest "github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// secured is what a question over TLS came by.
type secured struct {
	ends
	state *tls.ConnectionState
}

func (s secured) ConnectionState() *tls.ConnectionState { return s.state }
func (s secured) WriteMsg(*dns.Msg) error               { return nil }

// shown is a connection whose client has shown a certificate, below an authority.
func shown(leaf, authority x509.Certificate) *tls.ConnectionState {
	if leaf.NotAfter.IsZero() {
		leaf.NotBefore, leaf.NotAfter = time.Unix(0, 0), time.Unix(2e9, 0)
	}
	chain := []*x509.Certificate{&leaf, &authority}
	return &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: chain[:1], VerifiedChains: [][]*x509.Certificate{chain}}
}

func TestClients(t *testing.T) {
	directive := func(lines ...string) string {
		return "ipdestinationguard {\nmode nft-gateway\ntrusted_forwarder 192.168.0.9\n" + strings.Join(lines, "\n") + "\n}"
	}
	named := func(names ...string) x509.Certificate { return x509.Certificate{DNSNames: names} }
	common := func(name string) x509.Certificate {
		return x509.Certificate{Subject: pkix.Name{CommonName: name}}
	}
	var none x509.Certificate
	unverified := shown(named("a.test"), none)
	unverified.VerifiedChains = nil
	handshaking := shown(named("a.test"), none)
	handshaking.HandshakeComplete = false
	past := named("a.test")
	past.NotBefore, past.NotAfter = time.Unix(0, 0), time.Unix(1e9-1, 0) // the clock of tests is at 1e9
	future := named("a.test")
	future.NotBefore, future.NotAfter = time.Unix(1e9+1, 0), time.Unix(2e9, 0)
	spiffe, _ := url.Parse("spiffe://prod.test/laptops/7")
	withCommon := named("b.test")
	withCommon.Subject.CommonName = "a.test"
	const may, refused = "", "refused"
	for _, tt := range []struct {
		name, directive, from string
		state                 *tls.ConnectionState
		want                  string
	}{
		{"no line is everybody", directive(), "192.168.0.2:1", nil, may},
		{"a listed network", directive("clients 192.168.0.0/24"), "192.168.0.2:1", nil, may},
		{"on another line", directive("clients 10.0.0.0/8", "clients 192.168.0.2"), "192.168.0.2:1", nil, may},
		{"another network", directive("clients 192.168.1.0/24"), "192.168.0.2:1", nil, refused},
		{"a zone", directive("clients fe80::/10"), "[fe80::1%eth0]:1", nil, may},
		{"a forwarder for a listed one", directive("clients 10.0.0.1"), "192.168.0.9:1", nil, may},
		{"a forwarder, itself listed, for another", directive("clients 192.168.0.9"), "192.168.0.9:1", nil, refused},
		{"a forwarder's certificate", directive("clients cert:a.test"), "192.168.0.9:1", shown(named("a.test"), none), refused},
		{"its name", directive("clients cert:a.test"), "192.168.0.2:1", shown(named("b.test", "a.test"), none), may},
		{"in any case", directive("clients cert:A.test"), "192.168.0.2:1", shown(named("a.TEST"), none), may},
		{"another name", directive("clients cert:a.test"), "192.168.0.2:1", shown(named("a.test.b.test", "aatest", "x.a.test"), none), refused},
		{"no certificate", directive("clients cert:a.test"), "192.168.0.2:1", nil, refused},
		{"but a listed network", directive("clients cert:a.test 192.168.0.0/24"), "192.168.0.2:1", nil, may},
		{"from another network", directive("clients cert:a.test 10.0.0.0/8"), "192.168.0.2:1", shown(named("a.test"), none), may},
		{"unverified", directive("clients cert:a.test"), "192.168.0.2:1", unverified, refused},
		{"in the middle of the handshake", directive("clients cert:a.test"), "192.168.0.2:1", handshaking, refused},
		{"run out while connected", directive("clients cert:a.test"), "192.168.0.2:1", shown(past, none), refused},
		{"not begun", directive("clients cert:a.test"), "192.168.0.2:1", shown(future, none), refused},
		{"one label", directive("clients cert:*.test"), "192.168.0.2:1", shown(named("a.test"), none), may},
		{"not two", directive("clients cert:*.test"), "192.168.0.2:1", shown(named("b.a.test"), none), refused},
		{"not none", directive("clients cert:*.test"), "192.168.0.2:1", shown(named(".test", "test"), none), refused},
		{"any labels", directive("clients cert:**.test"), "192.168.0.2:1", shown(named("b.a.test"), none), may},
		{"every certificate", directive("clients cert:**"), "192.168.0.2:1", shown(common("Anna's laptop"), none), may},
		{"a name with nothing in it", directive("clients cert:**"), "192.168.0.2:1", shown(none, none), refused},
		{"a common name", directive(`clients "cert:Anna's laptop"`), "192.168.0.2:1", shown(common("anna's laptop"), none), may},
		{"a common name beside others", directive("clients cert:a.test"), "192.168.0.2:1", shown(withCommon, none), refused},
		{"a common name of a constrained authority", directive("clients cert:a.test"), "192.168.0.2:1",
			shown(common("a.test"), x509.Certificate{PermittedDNSDomains: []string{"other.test"}}), refused},
		{"a mail address", directive("clients cert:*@a.test"), "192.168.0.2:1", shown(x509.Certificate{EmailAddresses: []string{"anna@a.test"}}, none), may},
		{"a URI", directive("clients cert:spiffe://prod.test/laptops/*"), "192.168.0.2:1", shown(x509.Certificate{URIs: []*url.URL{spiffe}}, none), may},
		{"no deeper one", directive("clients cert:spiffe://prod.test/*"), "192.168.0.2:1", shown(x509.Certificate{URIs: []*url.URL{spiffe}}, none), refused},
		{"an address in a certificate", directive("clients cert:192.168.0.7"), "192.168.0.2:1", shown(x509.Certificate{IPAddresses: []net.IP{{192, 168, 0, 7}}}, none), may},
		{"no regular expression", directive("clients cert:a.t.st cert:.+"), "192.168.0.2:1", shown(named("a.test"), none), refused},
		{"no escapes", directive("clients cert:admin.test"), "192.168.0.2:1", shown(common(`adm\105n.test`), none), refused},
		{"nothing that looks like it", directive("clients cert:kelvin.test"), "192.168.0.2:1", shown(common("\u212Aelvin.test"), none), refused},
		{"no second line", directive("clients cert:a.test"), "192.168.0.2:1", shown(common("a.test\nb.test"), none), refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			from := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tt.from))
			req := explained(t, "a.test. A")
			if strings.HasPrefix(tt.from, "192.168.0.9") {
				opt := req.IsEdns0()
				opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 32, Address: net.IP{10, 0, 0, 1}})
			}
			h := &Handler{guard: r.guard, policy: r.policy, Next: answering(t, "a.test. 300 IN A 9.9.9.9")}
			for how, ask := range map[string]func(rec *dnstest.Recorder) (int, error){
				"dot": func(rec *dnstest.Recorder) (int, error) {
					// As the server does: the state is in a writer that others wrap.
					ctx := h.Collect(t.Context(), dnsrequest.Request{Req: req, W: dnsrequest.NewScrubWriter(req, secured{ends{remote: from}, tt.state})})
					return h.ServeDNS(ctx, rec, req)
				},
				"doh": func(rec *dnstest.Recorder) (int, error) {
					ctx := context.WithValue(t.Context(), dnsserver.HTTPRequestKey{}, &http.Request{TLS: tt.state})
					return h.ServeDNS(ctx, rec, req)
				},
				"bare": func(rec *dnstest.Recorder) (int, error) {
					return h.ServeDNS(t.Context(), struct {
						*dnstest.Recorder
						dns.ConnectionStater
					}{rec, secured{state: tt.state}}, req)
				},
			} {
				rec := dnstest.NewRecorder(secured{ends: ends{remote: from}})
				if _, err := ask(rec); err != nil || rec.Msg == nil {
					t.Fatalf("%s: %v, %v", how, rec.Msg, err)
				}
				got := may
				if rec.Msg.Rcode == dns.RcodeRefused {
					got = refused
					ede := rec.Msg.IsEdns0().Option[0].(*dns.EDNS0_EDE)
					if ede.InfoCode != dns.ExtendedErrorCodeProhibited || len(rec.Msg.Answer) > 0 {
						t.Errorf("%s:\n%v", how, rec.Msg)
					}
				}
				if list, _ := r.kernel.List(); got != tt.want || got == refused && len(list) > 0 {
					t.Errorf("%s: %q, want %q; granted: %v\n%v", how, got, tt.want, list, rec.Msg)
				}
			}
		})
	}
}

// explained is a request that can be told why not.
func explained(t testing.TB, text string) *dns.Msg {
	r := request(t, text)
	r.SetEdns0(1232, false)
	return r
}

// Who is none of the clients gets no mapped address, and hears of none.
func TestRoutesOfClients(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-gateway\nclients 10.0.0.1\nroute **.routed.test\n}")
	const lines, refused = "www.routed.test. 60 A 9.9.9.9", "REFUSED\nProhibited: only its clients may ask here, and your address is none of theirs\n"
	r.wantText(r.at("10.0.0.2").ask("www.routed.test. A", lines), refused)
	r.wantMapped()
	r.wantText(r.at("10.0.0.1").ask("www.routed.test. A", lines), "www.routed.test. 60 IN A 100.96.0.1\n")
	r.wantMapped("100.96.0.1 > 9.9.9.9")
	r.wantText(r.at("10.0.0.2").ask("1.0.96.100.in-addr.arpa. PTR", ""), refused)
}

// What a plugin asks inside of an answer is no client's.
func TestClientsInside(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-gateway\nclients 192.168.0.0/16\n}")
	c := r.client()
	h := &Handler{guard: r.guard, policy: r.policy, Next: answering(t, "")}
	rcode, err := h.ServeDNS(context.WithValue(t.Context(), insideKey{}, 1), c, request(t, "a.test. A"))
	if rcode != dns.RcodeSuccess || err != nil {
		t.Errorf("%d, %v", rcode, err)
	}
	axfr := request(t, "a.test. AXFR")
	if rcode, _ = h.ServeDNS(t.Context(), c, axfr); !plugin.ClientWrite(rcode) || c.Msg.Rcode != dns.RcodeRefused {
		t.Errorf("a zone transfer: %d, %v", rcode, c.Msg)
	}
}

func TestClientMetadata(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-gateway")
	h := &Handler{guard: r.guard, policy: r.policy}
	collect := func(state *tls.ConnectionState) string {
		ctx := h.Metadata(metadata.ContextWithMetadata(t.Context()), dnsrequest.Request{W: secured{state: state}})
		if f := metadata.ValueFunc(ctx, "ipdestinationguard/client"); f != nil {
			return f()
		}
		return ""
	}
	if got := collect(shown(x509.Certificate{DNSNames: []string{"a.test", "b.test"}}, x509.Certificate{})); got != "a.test" {
		t.Errorf("the client is %q", got)
	}
	if got := collect(nil); got != "" {
		t.Errorf("without a certificate the client is %q", got)
	}
}

func TestParseClientsErrors(t *testing.T) {
	for _, tt := range []struct{ name, line, want string }{
		{"no name", "clients cert:", "the name is missing"},
		{"a name without cert", "clients laptop.test", "write cert:laptop.test"},
		{"no network", "clients 192.168.0.0/33", `"192.168.0.0/33": an IPv4 network has at most 32 bits`},
		{"mistyped", "clients cret:laptop.test", `Testfile:2 - Error during parsing: clients "cret:laptop.test": did you mean cert:laptop.test?`},
		{"in upper case", "clients Cert:laptop.test", "did you mean cert:laptop.test?"},
		{"nothing", "clients", "needs a value"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := parse(caddy.NewTestController("dns", "ipdestinationguard nft-gateway {\n"+tt.line+"\n}"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestClientsNeedVerifiedCertificates(t *testing.T) {
	pool := x509.NewCertPool()
	for _, tt := range []struct {
		name, line string
		config     *tls.Config
		want       string
	}{
		{"by network only", "clients 10.0.0.0/8", nil, ""},
		{"no TLS", "clients cert:a", nil, "nobody shows a certificate"},
		{"not asked for", "clients cert:a", &tls.Config{ClientCAs: pool}, "not verified"},
		{"asked for, not verified", "clients cert:a", &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAnyClientCert}, "not verified"},
		{"of anybody's authority", "clients cert:a", &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}, "any public authority"},
		{"verified", "clients cert:a", &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, ""},
		{"if given", "clients cert:a 10.0.0.0/8", &tls.Config{ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard nft-gateway {\n"+tt.line+"\n}"))
			if err != nil {
				t.Fatal(err)
			}
			err = p.clients.check(&dnsserver.Config{TLSConfig: tt.config})
			if err == nil && tt.want != "" || err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestNamesOfCertificates(t *testing.T) {
	leaf := x509.Certificate{DNSNames: []string{"a.test"}, EmailAddresses: []string{"b@test"}, IPAddresses: []net.IP{net.ParseIP("::1")},
		Subject: pkix.Name{CommonName: "c"}}
	id := certifiedBy(shown(leaf, x509.Certificate{}))
	if want := []string{"a.test", "b@test", "::1"}; !slices.Equal(id.names, want) {
		t.Errorf("%v, want %v", id.names, want)
	}
}
