package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
	"github.com/destination-guard/coredns-ip-destination-guard/validate"
)

// judged is a validator that says what a test wants.
type judged struct {
	answer *validate.Answer
	err    error
	asked  []dns.Question
	askers []uint64
	closed int
}

func (j *judged) Validate(_ context.Context, q dns.Question, asker uint64) (*validate.Answer, error) {
	j.asked, j.askers = append(j.asked, q), append(j.askers, asker)
	return j.answer, j.err
}
func (j *judged) Close() { j.closed++ }

// validating lets a policy validate all names but those of a zone.
func validating(t *testing.T, p *policy, v validator) {
	t.Helper()
	all, err := namesIn([]string{"."})
	if err != nil {
		t.Fatal(err)
	}
	lan, err := namesIn([]string{"lan"})
	if err != nil {
		t.Fatal(err)
	}
	p.validation = &validation{names: all, except: lan, v: v}
}

func TestValidation(t *testing.T) {
	answer := func(verdict validate.Verdict, code uint16, rcode int, lines string) *validate.Answer {
		m := new(dns.Msg)
		m.Rcode, m.Answer = rcode, records(t, lines)
		m.Ns = records(t, "a.test. 60 IN NSEC b.test. A")
		m.SetEdns0(4096, true)
		return &validate.Answer{Verdict: verdict, Msg: m, Why: "for a reason", Code: code}
	}
	const genuine, forged = "a.test. 300 IN A 9.9.9.9\na.test. 300 IN RRSIG A 13 2 300 20300101000000 20200101000000 1 test. AAAA", "a.test. 300 IN A 6.6.6.6"
	do := func(r *dns.Msg) { r.SetEdns0(1232, true) }
	ad := func(r *dns.Msg) { r.AuthenticatedData = true }
	cd := func(r *dns.Msg) { r.CheckingDisabled = true }
	as := func(*dns.Msg) {}
	for _, tt := range []struct {
		name, option, question string
		verdict                *validate.Answer
		err                    error
		asks                   func(*dns.Msg)
		granted                string
		rcode                  int
		ede                    uint16
		ad                     bool
		records                int // in the answer section
	}{
		{"secure", "", "a.test. A", answer(validate.Secure, 0, 0, genuine), nil, as, "9.9.9.9", 0, 0, false, 1},
		{"secure, for who wants signatures", "", "a.test. A", answer(validate.Secure, 0, 0, genuine), nil, do, "9.9.9.9", 0, 0, true, 2},
		{"secure, for who wants to know", "", "a.test. A", answer(validate.Secure, 0, 0, genuine), nil, ad, "9.9.9.9", 0, 0, true, 1},
		{"secure, for who wants no validation", "", "a.test. A", answer(validate.Secure, 0, 0, genuine), nil, cd, "9.9.9.9", 0, 0, false, 1},
		{"secure: there is no such name", "", "a.test. A", answer(validate.Secure, 0, dns.RcodeNameError, ""), nil, as, "", dns.RcodeNameError, 0, false, 0},
		{"insecure", "", "a.test. A", answer(validate.Insecure, 0, 0, genuine), nil, ad, "9.9.9.9", 0, 0, false, 1},
		{"insecure, and only signed ones count", "require signed", "a.test. A", answer(validate.Insecure, 0, 0, genuine), nil, as, "", dns.RcodeServerFailure, 10, false, 0},
		{"bogus", "", "a.test. A", answer(validate.Bogus, 7, 0, forged), nil, as, "", dns.RcodeServerFailure, 7, false, 0},
		{"bogus, for who wants no validation", "", "a.test. A", answer(validate.Bogus, 7, 0, forged), nil, cd, "", dns.RcodeServerFailure, 7, false, 0},
		{"unknown", "", "a.test. A", answer(validate.Unknown, 5, 0, forged), nil, as, "", dns.RcodeServerFailure, 5, false, 0},
		{"nobody to ask", "", "a.test. A", nil, errors.New("no"), as, "", dns.RcodeServerFailure, 5, false, 0},
		{"not validated", "", "a.lan. A", nil, errors.New("no"), as, "6.6.6.6", 0, 0, false, 1},
		{"not validated, though only signed ones count", "require signed", "a.lan. A", nil, errors.New("no"), as, "6.6.6.6", 0, 0, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			r.policy.dnssec.signed = tt.option != ""
			v := &judged{answer: tt.verdict, err: tt.err}
			validating(t, r.policy, v)
			req := explained(t, tt.question)
			tt.asks(req)
			c := r.client()
			if _, err := c.serve(req, answering(t, strings.Replace(forged, "a.test.", strings.Fields(tt.question)[0], 1))); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(c.granted, " "); got != tt.granted || c.Msg.Rcode != tt.rcode || c.Msg.AuthenticatedData != tt.ad || len(c.Msg.Answer) != tt.records {
				t.Errorf("granted %q, want %q:\n%v", got, tt.granted, c.Msg)
			}
			if tt.ede != 0 {
				if ede := c.Msg.IsEdns0().Option[0].(*dns.EDNS0_EDE); ede.InfoCode != tt.ede {
					t.Errorf("EDE %v, want %d", ede, tt.ede)
				}
			}
			if c.Msg.Question[0] != req.Question[0] || c.Msg.Id != req.Id {
				t.Errorf("to another question:\n%v", c.Msg)
			}
			if err := r.policy.close(); err != nil || v.closed != 1 {
				t.Errorf("closed %d times, %v", v.closed, err)
			}
		})
	}
}

// What has failed already, and what is no question for addresses of the internet, is not
// validated.
func TestNothingToValidate(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	v := &judged{err: errors.New("no")}
	validating(t, r.policy, v)
	refusing := test.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeRefused))
	})
	if c := r.client(); true {
		if _, err := c.serve(request(t, "a.test. A"), refusing); err != nil || c.Msg.Rcode != dns.RcodeRefused {
			t.Errorf("%v\n%v", err, c.Msg)
		}
	}
	if len(v.asked) > 0 {
		t.Errorf("asked %v", v.asked)
	}
}

// What only looks like something that has no addresses is not let off: clients without EDNS see
// no more than half of a code, and the chain answers for other classes and operations too.
func TestNothingGetsPastValidation(t *testing.T) {
	for _, tt := range []struct {
		name   string
		asks   func(*dns.Msg)
		rcode  int
		judged int
	}{
		{"an extended code that others take for success", func(*dns.Msg) {}, dns.RcodeBadVers, 1},
		{"another of them", func(*dns.Msg) {}, 2 << 4, 1},
		{"another class", func(r *dns.Msg) { r.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeSuccess, 0},
		{"every class", func(r *dns.Msg) { r.Question[0].Qclass = dns.ClassANY }, dns.RcodeSuccess, 0},
		{"another operation", func(r *dns.Msg) { r.Opcode = dns.OpcodeNotify }, dns.RcodeSuccess, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			v := &judged{answer: &validate.Answer{Verdict: validate.Bogus}}
			validating(t, r.policy, v)
			forging := test.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				m := new(dns.Msg).SetReply(r)
				m.Rcode, m.Answer = tt.rcode, records(t, "a.test. 300 IN A 6.6.6.6")
				m.SetEdns0(4096, false)
				return dns.RcodeSuccess, w.WriteMsg(m)
			})
			req := request(t, "a.test. A")
			tt.asks(req)
			c := r.client()
			if _, err := c.serve(req, forging); err != nil {
				t.Fatal(err)
			}
			if len(c.granted) > 0 || c.Msg.Rcode != dns.RcodeServerFailure || len(v.asked) != tt.judged {
				t.Errorf("granted %v, judged %d times:\n%v", c.granted, len(v.asked), c.Msg)
			}
		})
	}
}

// Everyone who can be told from others has a share of the places for validation, whosever the grants are.
func TestValidationKnowsWhoAsks(t *testing.T) {
	const local, application = "ipdestinationguard nft-local", "ipdestinationguard {\nmode nft-local\nscope application\n}"
	const gateway, anybody = "ipdestinationguard nft-gateway", "ipdestinationguard {\nmode nft-gateway\nscope any\n}"
	for _, tt := range []struct {
		name, directive, one, another string
		same                          bool
	}{
		{"one client", gateway, "192.168.0.2:1", "192.168.0.2:2", true},
		{"two clients", gateway, "192.168.0.2:1", "192.168.0.3:1", false},
		{"a client under two addresses", gateway, "192.168.0.2:1", "[fd00::2]:1", true},
		{"clients of a network of their own", gateway, "10.0.0.2:1", "10.0.0.3:1", false},
		{"clients, where grants are everybody's", anybody, "192.168.0.2:1", "192.168.0.3:1", false},
		{"a client and the gateway", anybody, "192.168.0.2:1", "127.0.0.1:1", false},
		{"addresses that nobody has", anybody, "192.168.0.8:1", "192.168.0.9:1", true},
		{"who asks a server from elsewhere", local, "10.0.0.2:1", "10.0.0.3:1", false},
		{"the server itself", local, "127.0.0.1:1", "127.0.0.9:1", true},
		{"two applications", application, "127.0.0.1:1", "127.0.0.1:2", false},
		{"one application", application, "127.0.0.1:1", "127.0.0.1:3", true},
		{"who asks from elsewhere, beside applications", application, "10.0.0.2:1", "10.0.0.3:1", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			r.network.links = map[netip.Addr][6]byte{
				netip.MustParseAddr("192.168.0.2"): {2, 0, 0, 0, 0, 2}, netip.MustParseAddr("192.168.0.3"): {2, 0, 0, 0, 0, 3}, netip.MustParseAddr("fd00::2"): {2, 0, 0, 0, 0, 2},
			}
			for client, cgroup := range map[string]uint64{"127.0.0.1:1": 71, "127.0.0.1:2": 72, "127.0.0.1:3": 71} {
				r.programs[netip.MustParseAddrPort(client)] = program{identity.Asker{UID: 7, Cgroup: cgroup}, fmt.Sprintf("/%d.service", cgroup)}
			}
			v := &judged{answer: &validate.Answer{Verdict: validate.Secure, Msg: new(dns.Msg)}}
			validating(t, r.policy, v)
			for _, from := range []string{tt.one, tt.another} {
				if _, err := r.clientAt(from).serve(request(t, "a.test. A"), answering(t, "")); err != nil {
					t.Fatal(err)
				}
			}
			if len(v.askers) != 2 || (v.askers[0] == v.askers[1]) != tt.same {
				t.Errorf("askers %x, the same: %v", v.askers, tt.same)
			}
		})
	}
}

// A validator is started by the first question, and after the end by none.
func TestValidatorIsStartedOnce(t *testing.T) {
	started, real := 0, newValidator
	v := &judged{answer: &validate.Answer{Verdict: validate.Secure, Msg: new(dns.Msg)}}
	newValidator = func(validate.Config) (validator, error) { started++; return v, nil }
	defer func() { newValidator = real }()
	validation := new(validation)
	for range 2 {
		if _, err := validation.judge(t.Context(), dns.Question{Name: "a.test."}, 0); err != nil {
			t.Fatal(err)
		}
	}
	validation.close()
	if _, err := validation.judge(t.Context(), dns.Question{Name: "a.test."}, 0); !errors.Is(err, validate.ErrClosed) || started != 1 || v.closed != 1 {
		t.Errorf("%v; started %d times, closed %d times", err, started, v.closed)
	}
}

// Those who ask for keys get an answer always, and as much of it as they can take.
func TestAskingTheUpstream(t *testing.T) {
	for _, tt := range []struct {
		name  string
		next  test.HandlerFunc
		rcode int
	}{
		{"an answer", answering(t, "a.test. 300 IN A 9.9.9.9"), dns.RcodeSuccess},
		{"trouble", func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
			return dns.RcodeServerFailure, errors.New("trouble")
		}, dns.RcodeServerFailure},
	} {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &dns.Server{PacketConn: packets, Handler: asking(tt.next)}
		go func() { _ = server.ActivateAndServe() }()
		client := dns.Client{Timeout: 5 * time.Second}
		m, _, err := client.Exchange(request(t, "a.test. A"), packets.LocalAddr().String())
		if err != nil || m.Rcode != tt.rcode {
			t.Errorf("%s: %v\n%v", tt.name, err, m)
		}
		_ = server.Shutdown()
	}
}

// Who may ask by the port that validation asks at is this very CoreDNS: by its user, and by
// its cgroup where it has one.
func TestValidationAsksForItselfOnly(t *testing.T) {
	real := self
	defer func() { self = real }()
	for _, tt := range []struct {
		name   string
		cgroup uint64 // of CoreDNS; 0 is none of its own
		asker  identity.Asker
		ours   bool
	}{
		{"itself", 7, identity.Asker{UID: 53, Cgroup: 7}, true},
		{"another user", 7, identity.Asker{UID: 54, Cgroup: 7}, false},
		{"another cgroup", 7, identity.Asker{UID: 53, Cgroup: 8}, false},
		{"itself, without a cgroup", 0, identity.Asker{UID: 53, Cgroup: 8}, true},
		{"another user, without a cgroup", 0, identity.Asker{UID: 54, Cgroup: 8}, false},
	} {
		self = func() (backend.Program, error) {
			return backend.Program{User: 53, Cgroup: backend.Cgroup{ID: tt.cgroup}}, nil
		}
		v := &validation{askers: programList{netip.MustParseAddrPort("127.0.0.1:1"): {tt.asker, ""}}}
		rec := dnstest.NewRecorder(&from{addr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:1"))})
		v.ours(dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetReply(r)) })).ServeDNS(rec, request(t, "a.test. A"))
		if ours := rec.Msg.Rcode == dns.RcodeSuccess; ours != tt.ours {
			t.Errorf("%s: %v", tt.name, rec.Msg)
		}
	}
}

func TestParseValidation(t *testing.T) {
	if !validate.Built {
		t.Skip(validate.ErrNotBuilt)
	}
	t.Setenv("STATE_DIRECTORY", "/a:/b")
	for _, tt := range []struct{ line, concerned, other, negative, state string }{
		{"dnssec validate", "a.test. lan.", "", "", "/a"},
		{"dnssec validate test example {\nnegative_anchor lan.test\nnegative_anchor corp.example\nstate /c\n}", "test. a.test. A.Example.",
			"a.org. atest. lan.test. nas.Lan.Test. a.corp.example.", "lan.test. corp.example.", "/c"},
	} {
		_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard nft-local {\n"+tt.line+"\n}"))
		if err != nil {
			t.Fatal(err)
		}
		v := p.validation
		for names, want := range map[string]bool{tt.concerned: true, tt.other: false} {
			for _, name := range strings.Fields(names) {
				if v.concerns(name) != want {
					t.Errorf("%s: %s is validated: %v", tt.line, name, !want)
				}
			}
		}
		if negative := strings.Join(v.config.Negative, " "); negative != tt.negative || v.config.State != tt.state {
			t.Errorf("%s: negative anchors %q, state in %q", tt.line, negative, v.config.State)
		}
	}
}

func TestParseValidationErrors(t *testing.T) {
	for _, tt := range []struct{ line, built, without string }{
		{"dnssec validate", "", "make build-unbound"},
		{"dnssec validate .\ndnssec validate test", "is given twice", "make build-unbound"},
		{"dnssec validate *.test", "is no zone", "make build-unbound"},
		{"dnssec validate {\nanchor /nowhere\nstate /tmp\n}", "Testfile:3 - Error during parsing: dnssec validate: anchor: open /nowhere: no such file", "make build-unbound"},
		{"dnssec validate {\nanchor\n}", "anchor needs a value", "make build-unbound"},
		{"dnssec validate {\nnegative_anchor a..b\n}", "is no zone", "make build-unbound"},
		{"dnssec validate {\nsecret a\n}", `Testfile:3 - Error during parsing: unknown option "secret" in dnssec validate { }: there are anchor, negative_anchor, state`, "make build-unbound"},
		{"dnssec validate {\nnegative_anchors a.test\n}", `unknown option "negative_anchors" in dnssec validate { }: did you mean negative_anchor?`, "make build-unbound"},
		{"dnssec validate {\nmargin 1s\n}", `unknown option "margin" in dnssec validate { }: it belongs in ipdestinationguard { }, behind the } of the block which begins at Testfile:2`, "make build-unbound"},
		{"dnssec validate test {\nnegative_anchor lan\nstate /tmp\n}\nrequire signed\nhold 2s", "", "make build-unbound"},
		{"require signed", "it takes a line dnssec validate", "it takes a line dnssec validate"},
	} {
		want := tt.without
		if validate.Built {
			want = tt.built
		}
		_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard nft-local {\n"+tt.line+"\n}"))
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", tt.line, err, want)
		}
		if err == nil {
			if err := p.validation.check(&dnsserver.Config{}); err == nil || !strings.Contains(err.Error(), "nobody to ask for keys") {
				t.Errorf("%s: without forward: %v", tt.line, err)
			}
		}
	}
}
