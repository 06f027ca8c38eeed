package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// website serves HTTPS in the world, on all addresses: by SNI, and with no certificate
// for names that it does not know. A page tells how it was asked for.
func (w *world) website(a *authority, names ...string) {
	w.Helper()
	certificates := map[string]tls.Certificate{}
	for _, name := range names {
		certificates[name] = a.server(name).Certificates[0]
	}
	ln, err := w.world.Listen("tcp", ":443")
	w.must(err)
	server := &http.Server{
		TLSConfig: &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c, ok := certificates[hello.ServerName]; ok {
				return &c, nil
			}
			return nil, fmt.Errorf("not served here: %s", hello.ServerName)
		}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			real := r.Context().Value(http.LocalAddrContextKey).(net.Addr).(*net.TCPAddr).IP
			source, _, _ := net.SplitHostPort(r.RemoteAddr)
			if r.URL.Path == "/large" {
				_, _ = w.Write([]byte(strings.Repeat("large ", 1<<20/6)))
				return
			}
			fmt.Fprintf(w, "%s %s %s %s", r.Host, r.Proto, real, source)
		}),
		ErrorLog: nil,
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.ServeTLS(ln, "", "") }()
	w.Cleanup(func() { _ = server.Close(); <-ended })
}

// curl fetches a page on a host, whose resolver is the guard: it looks the name up as
// every program does, and checks the certificate.
func (w *world) curl(a *authority, from *netlab.Host, server string, args ...string) (string, error) {
	w.Helper()
	conf := filepath.Join(w.TempDir(), "resolv.conf")
	w.save(conf, "nameserver "+server+"\n")
	script := `mount --bind "$1" /etc/resolv.conf; shift; exec curl -sS --max-time 10 --noproxy '*' "$@"`
	c := from.Command("unshare", append([]string{"--mount", "sh", "-ec", script, "sh", conf, "--cacert", a.file}, args...)...)
	err := c.Run()
	return strings.TrimSpace(c.Output()), err
}

// A program that knows nothing of all this fetches pages through routes: two names on
// one address, by IPv4 and IPv6, over HTTP/2, with the certificates of their names.
func TestBrowsersGetThroughRoutes(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			m := newMappedWorld(t)
			for _, program := range []string{"curl", "unshare"} {
				_, err := exec.LookPath(program)
				m.lacks(err)
			}
			a := newAuthority(m.T, "authority")
			m.website(a, "www.shop.test", "www.bank.test")
			m.start(m.corefile(mode.name, "max_grants_client 100", m.routedTo("shop.test"), m.route("**.bank.test", "egress "+secondEgress4+" "+secondEgress6)))
			const real4, real6 = "198.18.81.1", "2001:db8:18:81::1"
			for _, name := range []string{"www.shop.test.", "www.bank.test."} {
				m.atlas.set(name, "60 A "+real4, "60 AAAA "+real6, "60 HTTPS 1 . alpn=h2 ipv4hint="+real4+" ipv6hint="+real6)
			}
			guarded, _ := mode.parties(m.world)
			for _, p := range guarded {
				for _, tt := range []struct{ version, name, real, source string }{
					{"-4", "www.shop.test", real4, routeEgress4},
					{"-6", "www.shop.test", real6, routeEgress6},
					{"-4", "www.bank.test", real4, secondEgress4},
					{"-6", "www.bank.test", real6, secondEgress6},
				} {
					page, err := m.curl(a, p.Host, p.resolver4, tt.version, "--http2", "https://"+tt.name+"/")
					if want := fmt.Sprintf("%s HTTP/2.0 %s %s", tt.name, tt.real, tt.source); err != nil || page != want {
						t.Errorf("%s: %s %s: %q %v, want %q", p.Name(), tt.name, tt.version, page, err, want)
					}
				}
				// As it likes, with what the HTTPS record says looked up before, as browsers do.
				answer := m.question(p.Host, p.resolver4, "www.shop.test.", "HTTPS")
				if text := answer.String(); len(answer.Answer) != 1 || !strings.Contains(text, `alpn="h2"`) || strings.Contains(text, "hint") {
					t.Errorf("%s: HTTPS: %v", p.Name(), answer)
				}
				if size, err := m.curl(a, p.Host, p.resolver4, "--http2", "-o", "/dev/null", "-w", "%{http_version} %{size_download}", "https://www.shop.test/large"); err != nil || size != fmt.Sprintf("2 %d", 1<<20/6*6) {
					t.Errorf("%s: a large page: %q %v", p.Name(), size, err)
				}
				// The certificate is that of the name: another name's server is not taken for it.
				mapped := m.mapped(p.Host, p.resolver4, "www.shop.test.", true)[0]
				if page, err := m.curl(a, p.Host, p.resolver4, "--resolve", "www.else.test:443:"+mapped, "https://www.else.test/"); err == nil {
					t.Errorf("%s: a server without a certificate for the name was believed: %q", p.Name(), page)
				}
				// Not by the real address, not for names that are not there.
				if page, err := m.curl(a, p.Host, p.resolver4, "--resolve", "www.shop.test:443:"+real4, "https://www.shop.test/"); err == nil {
					t.Errorf("%s: by the real address: %q", p.Name(), page)
				}
				if page, err := m.curl(a, p.Host, p.resolver4, "https://none.shop.test/"); err == nil || !strings.Contains(page, "Could not resolve") {
					t.Errorf("%s: a name that does not exist: %q %v", p.Name(), page, err)
				}
			}
		})
	}
}
