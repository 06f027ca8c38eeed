package ipdestinationguard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"slices"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/metadata"
	dnsrequest "github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// certified is who a client is, by a certificate that the server has verified.
type certified struct {
	names       []string // at least one
	from, until time.Time
}

// String is the name that logs and views know the client by.
func (c *certified) String() string { return c.names[0] }

// valid reports whether the certificate counts now: connections may outlive it.
func (c *certified) valid(now time.Time) bool { return !now.Before(c.from) && !now.After(c.until) }

// certifiedBy reads the state of a connection. A certificate that nobody has verified says
// nothing.
func certifiedBy(state *tls.ConnectionState) *certified {
	if state == nil || !state.HandshakeComplete || len(state.VerifiedChains) == 0 {
		return nil
	}
	leaf := state.VerifiedChains[0][0]
	c := &certified{names: namesOf(leaf, state.VerifiedChains), from: leaf.NotBefore, until: leaf.NotAfter}
	if len(c.names) == 0 {
		return nil
	}
	return c
}

// namesOf are the alternative names of a certificate, or else its common name. That
// counts for nothing below an authority that may give some names only: nothing checks
// common names against its constraints (RFC 5280, section 4.2.1.10).
func namesOf(leaf *x509.Certificate, chains [][]*x509.Certificate) (all []string) {
	all = append(all, leaf.DNSNames...)
	all = append(all, leaf.EmailAddresses...)
	for _, uri := range leaf.URIs {
		all = append(all, uri.String())
	}
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	unconstrained := func(chain []*x509.Certificate) bool { return !slices.ContainsFunc(chain[1:], constrained) }
	if len(all) == 0 && leaf.Subject.CommonName != "" && slices.ContainsFunc(chains, unconstrained) {
		all = append(all, leaf.Subject.CommonName)
	}
	return slices.DeleteFunc(all, func(name string) bool { return name == "" })
}

// constrained reports whether an authority may not give every name.
func constrained(c *x509.Certificate) bool {
	return len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+
		len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses)+
		len(c.PermittedURIDomains)+len(c.ExcludedURIDomains)+
		len(c.PermittedIPRanges)+len(c.ExcludedIPRanges) > 0
}

// certifiedKey is known to contexts of clients with a certificate.
type certifiedKey struct{}

// identityOf is who asks, by certificate, or nil. DoH has the connection in the context;
// DoT and DoQ have it in the writer, which plugins before this one wrap: so it is taken
// from there when metadata is collected.
func identityOf(ctx context.Context, w dns.ResponseWriter) *certified {
	if c, ok := ctx.Value(certifiedKey{}).(*certified); ok {
		return c
	}
	if r, ok := ctx.Value(dnsserver.HTTPRequestKey{}).(*http.Request); ok {
		return certifiedBy(r.TLS)
	}
	if w, ok := w.(dns.ConnectionStater); ok {
		return certifiedBy(w.ConnectionState())
	}
	return nil
}

// Metadata implements metadata.Provider: ipdestinationguard/client is the name in the
// client's certificate, if one has been verified.
func (h *Handler) Metadata(ctx context.Context, state dnsrequest.Request) context.Context {
	id := identityOf(ctx, state.W)
	if id == nil {
		return ctx
	}
	metadata.SetValueFunc(ctx, name+"/client", id.String)
	return context.WithValue(ctx, certifiedKey{}, id)
}

// Collect implements dnsserver.MetadataCollector, for server blocks that have no plugin
// metadata, which would come first.
func (h *Handler) Collect(ctx context.Context, state dnsrequest.Request) context.Context {
	if len(h.policy.clients.names) == 0 {
		return ctx
	}
	return h.Metadata(ctx, state)
}

var (
	_ metadata.Provider           = (*Handler)(nil)
	_ dnsserver.MetadataCollector = (*Handler)(nil)
)
