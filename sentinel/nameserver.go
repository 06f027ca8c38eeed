package sentinel

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/forward"
	"github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"
)

const (
	// maxOpen is how many questions may wait for one nameserver: more get no answer.
	maxOpen = 1000

	// deadAfter is how many failures in a row mean that a nameserver is dead; then it is asked twice a second
	// whether it still is. These are forward's own numbers.
	deadAfter   = 2
	askInterval = 500 * time.Millisecond

	// patience is how long forward waits for an answer, before it asks once more. Both together are shorter than the
	// five seconds that glibc waits.
	patience = 2 * time.Second

	idleConnections = 10 * time.Second
)

var (
	errDead = errors.New("it is dead")
	errBusy = errors.New("too many questions wait for it")
)

// nameserver is one, and all that forward knows of it.
type nameserver struct {
	text    string // as the Corefile or the machine has it, with the scheme
	forward *forward.Forward
	proxy   *proxy.Proxy
	open    atomic.Int64
}

// newNameserver takes what hosts.HostPortOrFile has made of it: an address with a port, and a scheme unless it is plain
// DNS. It sends nothing before it is asked.
func newNameserver(server string, config *tls.Config) *nameserver {
	scheme, address := parse.Transport(server)
	if scheme != transport.DNS {
		address, config = cutServerName(address, config)
	}
	p := proxy.NewProxy(name, address, scheme)
	switch scheme {
	case transport.HTTPS:
		p.SetHTTPClient(&http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone(), Timeout: patience})
		p.SetDOHRequestOptions(http.MethodPost)
		p.SetDOHHost(config.ServerName)
		p.SetTLSConfig(config)
	case transport.TLS, transport.QUIC:
		p.SetTLSConfig(config)
	}
	p.SetExpire(idleConnections)
	p.SetReadTimeout(patience)
	f := forward.New()
	f.SetProxy(p)
	p.Start(askInterval)
	return &nameserver{text: scheme + "://" + address, forward: f, proxy: p}
}

// cutServerName takes the name that a certificate has to have off an address, "9.9.9.9%dns.quad9.net:853".
func cutServerName(address string, config *tls.Config) (string, *tls.Config) {
	config = config.Clone()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	host, rest, found := strings.Cut(address, "%")
	if !found {
		return address, config
	}
	end := strings.LastIndexAny(rest, "]:")
	if strings.HasPrefix(host, "[") {
		end = strings.LastIndex(rest, "]")
	}
	if end < 0 {
		end = len(rest)
	}
	config.ServerName = rest[:end]
	return host + rest[end:], config
}

// dead reports whether questions are left unanswered.
func (s *nameserver) dead() bool { return s.proxy.Down(deadAfter) }

// serve has the nameserver answer. With an error and SERVFAIL nothing has been written.
func (s *nameserver) serve(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if s.dead() {
		return dns.RcodeServerFailure, errDead
	}
	defer s.open.Add(-1)
	if s.open.Add(1) > maxOpen {
		return dns.RcodeServerFailure, errBusy
	}
	return s.forward.ServeDNS(ctx, w, r)
}

// close ends what it does by itself. Questions in flight end as they would.
func (s *nameserver) close() { _ = s.forward.OnShutdown() }
