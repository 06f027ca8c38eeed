package e2e

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const deployment = "../../deployment/"

// channels are the transports to the resolver, by the ending of the Corefile in deployment.
var channels = map[string]string{"dot": "tls", "doh": "https", "doq": "quic"}

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// keysOfUpstreamMD runs the lines with which upstream.md makes keys and certificates.
func keysOfUpstreamMD(t *testing.T) (dir string) {
	t.Helper()
	text, err := os.ReadFile(deployment + "upstream.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## Keys and certificates")
	lines := shellBlock.FindStringSubmatch(section)
	dir = t.TempDir()
	cmd := exec.Command("/bin/sh", "-e", "-u", "-c", lines[1])
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	last := strings.Split(strings.TrimSpace(string(out)), "\n")
	if n := len(last); n < 4 || !strings.HasSuffix(last[n-4], ": OK") || !strings.HasSuffix(last[n-3], ": OK") || last[n-2] != last[n-1] {
		t.Errorf("they do not fit:\n%s", out)
	}
	return dir
}

// resolverWithTLS is a CoreDNS in the world that wants certificates of an authority. It
// is ended by what it returns.
func (w *world) resolverWithTLS(blocks ...string) (end func()) {
	w.Helper()
	path := filepath.Join(w.TempDir(), "Corefile")
	w.save(path, strings.Join(blocks, ""))
	c := w.world.Command(binary(w.T), "-conf", path)
	w.must(c.Start())
	w.Cleanup(func() {
		if w.Failed() {
			w.Logf("the resolver wrote:\n%s", c.Output())
		}
	})
	w.eventually("the resolver listens", func() bool { return strings.Contains(c.Output(), "CoreDNS-") })
	return func() { w.must(c.Stop()) }
}

func resolverBlock(keys, cert, key, ca string) string {
	return keys + " {\n errors\n tls " + cert + " " + key + " " + ca + " {\n client_auth require_and_verify\n }\n forward . 127.0.0.1\n}\n"
}

// channel is the Corefile in deployment for a transport, with keys of a folder and with
// the world's resolver.
func channel(t *testing.T, ending, keys string) string {
	t.Helper()
	text, err := os.ReadFile(deployment + "Corefile." + ending)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("192.0.2.53", resolver4, "/etc/coredns/tls", keys, "require encrypted", "require encrypted\n"+examples).Replace(string(text))
}

// authorityIn is the one that upstream.md makes.
func authorityIn(t *testing.T, keys string) *authority {
	t.Helper()
	a := &authority{T: t, dir: t.TempDir(), file: filepath.Join(keys, "ca.pem"), issued: time.Now().Unix()}
	pair, err := tls.LoadX509KeyPair(a.file, filepath.Join(keys, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// A fault is something wrong with a certificate, on either end.
type fault struct {
	name   string
	change func(corefile string) string
	log    string // what it says
}

var ownCertificate = regexp.MustCompile(`tls \S+ \S+ (\S+\n)`)

func faults(t *testing.T, transport, keys string) []fault {
	foreign, ours := newAuthority(t, "foreign"), authorityIn(t, keys)
	own := func(a *authority, c x509.Certificate) func(string) string {
		cert, key := a.issue("own", c)
		return func(text string) string {
			return ownCertificate.ReplaceAllString(text, "tls "+cert+" "+key+" $1")
		}
	}
	at := func(port string) func(string) string {
		return func(text string) string {
			return strings.ReplaceAll(text, transport+"://"+resolver4, transport+"://"+resolver4+":"+port)
		}
	}
	late := x509.Certificate{DNSNames: []string{"guard.example.com"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	return []fault{
		{"wrong name", func(text string) string { return strings.Replace(text, "resolver.example.com", "other.example.com", 1) },
			"certificate is valid for resolver.example.com, not other.example.com"},
		{"unknown authority", func(text string) string { return strings.Replace(text, ours.file, foreign.file, 1) },
			"certificate signed by unknown authority"},
		{"resolver's certificate has run out", at("8531"), "certificate has expired"},
		{"no certificate", func(text string) string { return ownCertificate.ReplaceAllString(text, "tls $1") }, "certificate required"},
		{"own certificate of another authority", own(foreign, x509.Certificate{DNSNames: []string{"guard.example.com"}}), "certificate required"},
		{"own certificate has run out", own(ours, late), "expired certificate"},
	}
}

var settingsOfBlock = regexp.MustCompile(`nft-local \{\s*upstream \S+`)

// The three Corefiles work as they are, with the keys as the text makes them. What is
// wrong with a certificate, on either end, lets no answer through and opens nothing, and
// the log says what it is. A new certificate is taken up by a reload.
func TestChannels(t *testing.T) {
	t.Parallel()
	for ending, transport := range channels {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			keys := keysOfUpstreamMD(t)
			in := func(file string) string { return filepath.Join(keys, file) }
			old, err := os.ReadFile(in("client-key.pem"))
			w.must(err)
			all := faults(t, transport, keys)
			right := channel(t, ending, keys)
			corefile := right
			for i, f := range all {
				joined := settingsOfBlock.ReplaceAllString(right, "{")
				corefile += f.change(strings.Replace(joined, ". {", fmt.Sprintf(".:%d {", 5300+i), 1))
			}
			cert, key := authorityIn(t, keys).issue("late", x509.Certificate{DNSNames: []string{"resolver.example.com"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
			late := resolverBlock("tls://.:8531 https://.:8531 quic://.:8531", cert, key, in("ca.pem"))
			resolver := resolverBlock("tls://. https://. quic://.", in("server.pem"), in("server-key.pem"), in("ca.pem"))
			end := w.resolverWithTLS(resolver, late)
			c := w.start(corefile)
			p := w.self()
			w.lookup(w.guard, "127.0.0.1", p.addr4(1), 60)
			w.wantOpen(w.guard, "tcp", p.addr4(1))
			together(all, func(f fault) {
				i := slices.IndexFunc(all, func(g fault) bool { return g.name == f.name })
				server := fmt.Sprintf("127.0.0.1:%d", 5300+i)
				addr := p.addr4(10 * (i + 1))
				said := regexp.MustCompile(regexp.QuoteMeta(nameOf(60, addr)) + " A: .*" + regexp.QuoteMeta(f.log))
				for n := 0; !said.MatchString(c.Output()); n++ { // what a connection that is being refused says first is a matter of luck
					if n == 50 {
						t.Errorf("%s: the log does not say %q", f.name, f.log)
						break
					}
					m, err := exchangeAt(w.guard, "udp", server, edns(new(dns.Msg).SetQuestion(fmt.Sprintf("%d.%s", n, nameOf(60, addr)), dns.TypeA)), 15*time.Second)
					if err != nil || m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
						t.Errorf("%s: %v %v", f.name, m, err)
					}
				}
				w.wantShut(w.guard, addr)
			})
			if t.Failed() {
				return
			}

			// Half a pair, or less, is not taken up: it goes on with the old one.
			live, err := w.dial(w.guard, "tcp", p.addr4(1))
			w.must(err)
			defer live.Close()
			next := newAuthority(t, "next")
			cert, key = next.issue("client", x509.Certificate{DNSNames: []string{"guard.example.com"}})
			w.must(os.Remove(in("client-key.pem")))
			if err := w.reload(c, right); err == nil || !strings.Contains(err.Error(), "could not load TLS cert") {
				t.Errorf("a reload without a key: %v", err)
			}
			another := w.launch(right)
			if err := another.Wait(); err == nil || !strings.Contains(another.Output(), "could not load TLS cert") {
				t.Errorf("a start without a key: %v\n%s", err, another.Output())
			}
			w.must(os.WriteFile(in("client-key.pem"), old, 0o600))
			w.must(os.Rename(cert, in("client.pem")))
			if err := w.reload(c, right); err == nil || !strings.Contains(err.Error(), "private key does not match public key") {
				t.Errorf("half a pair was taken up: %v", err)
			}
			w.lookup(w.guard, "127.0.0.1", p.addr4(4), 60)
			w.wantOpen(w.guard, "tcp", p.addr4(4))

			// The resolver's operator has another authority from now on, and so has the guard.
			end()
			w.resolverWithTLS(resolverBlock("tls://. https://. quic://.", in("server.pem"), in("server-key.pem"), next.file))
			if err := w.resolve(w.guard, "127.0.0.1", p.addr4(2), 60); err == nil {
				t.Error("the resolver takes the old certificate")
			}
			w.wantShut(w.guard, p.addr4(2))
			w.must(os.Rename(key, in("client-key.pem")))
			w.mustReload(c, right)
			w.lookup(w.guard, "127.0.0.1", p.addr4(3), 60)
			w.wantOpen(w.guard, "tcp", p.addr4(3))
			w.wantOpen(w.guard, "tcp", p.addr4(1))
			w.must(echo(live))
		})
	}
}
