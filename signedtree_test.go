//go:build unbound

package ipdestinationguard

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/signedtree"
	"github.com/destination-guard/coredns-ip-destination-guard/validate"
)

// resolving answers as the tree does, to whoever asks.
func resolving(tree dns.Handler) test.HandlerFunc {
	return func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		tree.ServeDNS(w, r)
		return dns.RcodeSuccess, nil
	}
}

// authenticating answers as a resolver does that validates, and says AD to those who ask.
func authenticating(t *testing.T, tree dns.Handler, v validator) test.HandlerFunc {
	return func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		if r.CheckingDisabled {
			tree.ServeDNS(w, r)
			return dns.RcodeSuccess, nil
		}
		a, err := v.Validate(ctx, r.Question[0], 1)
		if err != nil {
			t.Error(err)
		}
		m := new(dns.Msg).SetReply(r)
		if a.Msg == nil {
			m.Rcode = dns.RcodeServerFailure
		} else {
			m.Rcode, m.Answer = a.Msg.Rcode, without(a.Msg.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeRRSIG })
			m.AuthenticatedData = a.Verdict == validate.Secure && (r.AuthenticatedData || wantsSignatures(r))
		}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
}

// What answers of a signed tree open, some of which somebody has tampered with: to who
// validates, and to who believes a resolver that does.
func TestSignedTree(t *testing.T) {
	tree, cases, err := signedtree.Cases()
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 40 {
		t.Errorf("only %d cases", len(cases))
	}
	dir := t.TempDir()
	anchor := filepath.Join(dir, "anchor")
	if err := os.WriteFile(anchor, []byte(tree.Anchor()), 0o600); err != nil {
		t.Fatal(err)
	}
	resolver, err := newValidator(validate.Config{Upstream: tree, Anchors: []string{anchor}, State: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()
	for _, mode := range []struct {
		name, line string
		next       test.HandlerFunc
		insecure   bool // opens something
	}{
		{"validate", "dnssec validate {\nanchor " + anchor + "\nstate " + dir + "\n}", resolving(tree), true},
		{"validate, signed", "dnssec validate {\nanchor " + anchor + "\nstate " + dir + "\n}\nrequire signed", resolving(tree), false},
		{"ad", "dnssec ad . insecure", authenticating(t, tree, resolver), false},
	} {
		t.Run(mode.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local {\n"+mode.line+"\n}")
			if v := r.policy.validation; v != nil {
				v.config.Upstream = tree
				defer v.close()
			}
			for _, c := range cases {
				for _, cd := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, CD %v", c.Name, cd), func(t *testing.T) {
						before, _ := r.kernel.List()
						had := map[string]bool{}
						for _, g := range before {
							had[g.Addr.String()] = true
						}
						m := new(dns.Msg)
						m.SetQuestion(c.Q().Name, c.Q().Qtype).SetEdns0(1232, false)
						m.CheckingDisabled = cd
						asker := r.client()
						if _, err := asker.serve(m, mode.next); err != nil {
							t.Fatal(err)
						}
						want := c.Address
						if c.Verdict == "bogus" || c.Verdict == "insecure" && !mode.insecure {
							want = ""
						}
						text := asker.Msg.String()
						for _, addr := range asker.granted {
							if addr != want && !had[addr] {
								t.Errorf("%s is open:\n%s", addr, text)
							}
						}
						if want != "" && !strings.Contains(strings.Join(asker.granted, " ")+" ", want+" ") {
							t.Errorf("%s is not open: %v\n%s", want, asker.granted, text)
						}
						if refused := asker.Msg.Rcode == dns.RcodeServerFailure; refused && c.Verdict == "secure" || !refused && c.Verdict == "bogus" {
							t.Errorf("it is %s:\n%s", c.Verdict, text)
						}
						if opt := asker.Msg.IsEdns0(); mode.name != "ad" && c.Code != 0 && opt.Option[0].(*dns.EDNS0_EDE).InfoCode != c.Code {
							t.Errorf("want code %d:\n%s", c.Code, text)
						}
						if strings.Contains(text, "\tRRSIG\t") || asker.Msg.AuthenticatedData {
							t.Errorf("more than was asked for:\n%s", text)
						}
					})
				}
			}
		})
	}
}

// Below a negative anchor nothing counts as bogus, neither for who asks nor for libunbound.
func TestSignedTreeUnderNegativeAnchor(t *testing.T) {
	tree, err := signedtree.New(signedtree.Zone{Name: ".", Algorithm: dns.ECDSAP256SHA256},
		signedtree.Zone{Name: "late.", Algorithm: dns.ECDSAP256SHA256, Shift: -48 * time.Hour, Records: "www A 9.9.9.9\n"},
		signedtree.Zone{Name: "lan.", Algorithm: dns.ECDSAP256SHA256, Shift: -48 * time.Hour, Records: "www A 9.9.9.10\n"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	anchor := filepath.Join(dir, "anchor")
	if err := os.WriteFile(anchor, []byte(tree.Anchor()), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, "ipdestinationguard nft-local {\ndnssec validate {\nanchor "+anchor+"\nstate "+dir+"\nnegative_anchor lan\n}\n}")
	v := r.policy.validation
	v.config.Upstream = tree
	defer v.close()
	for _, tt := range []struct {
		name, open string // after it has been asked for
		verdict    validate.Verdict
	}{
		{"www.late.", "", validate.Bogus},
		{"www.lan.", "9.9.9.10", validate.Insecure},
	} {
		asker := r.client()
		if _, err := asker.serve(explained(t, tt.name+" A"), resolving(tree)); err != nil {
			t.Fatal(err)
		}
		a, err := v.judge(t.Context(), dns.Question{Name: tt.name, Qtype: dns.TypeA, Qclass: dns.ClassINET}, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(asker.granted, " "); got != tt.open || a.Verdict != tt.verdict {
			t.Errorf("%s: open is %q; it is %v:\n%v", tt.name, got, a.Verdict, asker.Msg)
		}
	}
}
