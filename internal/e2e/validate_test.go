package e2e

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/signedtree"
)

// validatingBinary is as make build-unbound makes it. Where that cannot be done the test
// is skipped, but not on CI.
func (w *world) validatingBinary() string {
	w.Helper()
	path, err := validating()
	w.lacks(err)
	return path
}

// What is proven opens its addresses, and what is not opens nothing: a tree of signed
// zones behind an encrypted upstream, with real connections to all that its answers say.
func TestDNSSECValidated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := w.validatingBinary()
	tree, cases, err := signedtree.Cases()
	w.must(err)
	theirs := newAuthority(t, "theirs")
	w.serveTLS(theirs.server(serverName), tree)
	anchor := filepath.Join(t.TempDir(), "anchor")
	w.save(anchor, tree.Anchor())
	state := t.TempDir()
	socket, option := w.socket()
	corefile := func(more ...string) string {
		lines := append([]string{examples, option, "require encrypted", "dnssec validate {\n anchor " + anchor + "\n state " + state + "\n }"}, more...)
		return ". {\n errors\n " + guardBlock("nft-both", lines...) +
			"\n forward . tls://" + resolver4 + " {\n tls " + theirs.file + "\n tls_servername " + serverName + "\n }\n cache\n}\n"
	}
	c := w.armed(w.run(path, netlab.As{Cgroup: w.cgroup("coredns.service")}, w.guard, corefile()))
	w.wantCases(tree, cases, "secure", "insecure")
	if !strings.Contains(c.Output(), "is withheld: bogus") || !strings.Contains(c.Output(), "needs the line: negative_anchor ") {
		t.Error("the log says nothing of bogus answers")
	}
	for _, bad := range cases {
		if bad.Verdict == "bogus" {
			if out := w.ctl(socket, exitNo, "explain", bad.Q().Name); !strings.Contains(out, " ago: withheld, bogus: ") {
				t.Errorf("%s is explained by: %s", bad.Name, out)
			}
			break
		}
	}

	p := w.behind()
	// A reload changes what counts; what is open stays open. Nobody else can ask by the port
	// that the validator asks at.
	w.mustReload(c, corefile("require signed"))
	w.wantOpen(p.Host, "tcp", signedtree.Address(30))
	m, err := exchangeAt(p.Host, "udp", p.resolver4+":53", edns(new(dns.Msg).SetQuestion("www.plain.test.", dns.TypeA)), 10*time.Second)
	w.must(err)
	if m.Rcode != dns.RcodeServerFailure || !hasEDE(m, dns.ExtendedErrorCodeRRSIGsMissing) {
		t.Errorf("nobody has signed it: %v", m)
	}
	if m, err = exchangeAt(p.Host, "udp", p.resolver4+":53", edns(new(dns.Msg).SetQuestion("www.main.test.", dns.TypeA)), 10*time.Second); err != nil || m.Rcode != dns.RcodeSuccess {
		t.Errorf("after the reload: %v, %v", m, err)
	}
	strangers := []*netlab.Program{w.program(netlab.As{User: w.user(1001)}), w.program(netlab.As{Cgroup: w.cgroup("other.service")})}
	ports := w.loopbackPorts()
	for _, stranger := range strangers {
		refuses := 0
		for _, port := range ports {
			m, err := exchangeAt(stranger, "udp", "127.0.0.1:"+port, new(dns.Msg).SetQuestion("www.main.test.", dns.TypeA), 5*time.Second)
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue // the validator asks from it
			}
			w.must(err)
			refuses++
			if m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 {
				t.Errorf("%s asks at port %s: %v", stranger.Name(), port, m)
			}
		}
		if refuses == 0 {
			t.Errorf("%s: the validator asks at no port of loopback", stranger.Name())
		}
	}
	w.must(c.Stop())
}

// The same tree behind a resolver that validates, and says AD: only what it vouches for is
// opened.
func TestDNSSECByADOfTree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := w.validatingBinary()
	tree, cases, err := signedtree.Cases()
	w.must(err)
	w.must(w.world.ServeDNS(5353, tree))
	theirs := newAuthority(t, "theirs")
	cert, key := theirs.issue("server", x509.Certificate{DNSNames: []string{serverName}})
	anchor, file := filepath.Join(t.TempDir(), "anchor"), filepath.Join(t.TempDir(), "Corefile")
	w.save(anchor, tree.Anchor())
	// It guards itself, and lets everything out.
	w.save(file, "tls://. {\n errors\n tls "+cert+" "+key+"\n ipdestinationguard nft-local 0.0.0.0/0 ::/0 {\n "+examples+
		"\n dnssec validate {\n anchor "+anchor+"\n state "+t.TempDir()+"\n }\n }\n forward . 127.0.0.1:5353\n}\n")
	resolver := w.world.Command(path, "-conf", file)
	w.must(resolver.Start())
	w.Cleanup(func() {
		if w.Failed() {
			w.Logf("the resolver wrote:\n%s", resolver.Output())
		}
	})
	w.eventually("the resolver answers", func() bool { return strings.Contains(resolver.Output(), "In force: ") })
	w.start(guardedBlock(".", guardBlock("nft-both", "require encrypted", "dnssec ad ."),
		"forward . tls://"+resolver4+" {\n tls "+theirs.file+"\n tls_servername "+serverName+"\n }", "cache"))
	w.wantCases(tree, cases, "secure")
}

// wantCases asks all that there is to ask of a tree, and connects to all that its answers
// say, before and after: only the addresses of answers with these verdicts are open then.
func (w *world) wantCases(tree *signedtree.Tree, cases []signedtree.Case, opened ...string) {
	w.Helper()
	p, open := w.behind(), map[string]bool{}
	for _, c := range cases {
		if slices.Contains(opened, c.Verdict) {
			open[c.Address] = true
		}
	}
	told := func(c signedtree.Case) []string {
		return addresses(tree.Answer(new(dns.Msg).SetQuestion(c.Q().Name, c.Q().Qtype)))
	}
	together(cases, func(c signedtree.Case) {
		w.Helper()
		for _, addr := range told(c) {
			if !open[addr] {
				w.wantShut(p.Host, addr)
			}
		}
		for _, cd := range []bool{false, true} {
			q := edns(new(dns.Msg).SetQuestion(c.Q().Name, c.Q().Qtype))
			q.CheckingDisabled = cd
			m, err := exchangeAt(p.Host, "udp", p.resolver4+":53", q, 15*time.Second)
			if err != nil {
				w.Errorf("%s: %v", c.Name, err)
				return
			}
			// Without an address there is nothing to withhold, unless it is bogus.
			refused := c.Verdict == "bogus" || c.Address != "" && !slices.Contains(opened, c.Verdict)
			if (m.Rcode == dns.RcodeServerFailure) != refused {
				w.Errorf("%s: it is %s: %v", c.Name, c.Verdict, m)
			}
			if c.Code != 0 && slices.Contains(opened, "insecure") && !hasEDE(m, c.Code) {
				w.Errorf("%s: no EDE %d: %v", c.Name, c.Code, m)
			}
		}
		if slices.Contains(opened, c.Verdict) && c.Address != "" {
			w.wantOpen(p.Host, "tcp", c.Address)
		}
	})
	for _, c := range cases {
		for _, addr := range told(c) {
			if !open[addr] {
				w.wantShut(p.Host, addr)
			}
		}
	}
}

// loopbackPorts are the UDP ports of 127.0.0.1 that are bound on the guard.
func (w *world) loopbackPorts() (ports []string) {
	w.Helper()
	w.must(w.guard.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/udp")
		for _, m := range regexp.MustCompile(`: 0100007F:([0-9A-F]{4}) `).FindAllStringSubmatch(string(table), -1) {
			port, _ := strconv.ParseUint(m[1], 16, 16)
			ports = append(ports, fmt.Sprint(port))
		}
		return err
	}))
	return ports
}

// The binary without libunbound says what it takes, and touches nothing.
func TestValidationTakesAnotherBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.launch(guardedBlock(".", guardBlock("nft-local", "dnssec validate"), "forward . "+resolver4))
	if err := c.Wait(); err == nil || !strings.Contains(c.Output(), "make build-unbound") {
		t.Errorf("%v\n%s", err, c.Output())
	}
	w.wantOpen(w.guard, "tcp", w.self().addr4(1))
}
