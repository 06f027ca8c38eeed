package ipdestinationguard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/spelling"
)

// clients are those who may ask a server block, and so those whom its grants are for:
// by the names in their certificates, or by their addresses. None is everybody.
type clients struct {
	names    []*regexp.Regexp
	networks []netip.Prefix
	place    string // file:line of the first with a certificate
}

func (c *clients) empty() bool { return len(c.names)+len(c.networks) == 0 }

// errExcluded is why somebody is none of a server block's clients.
type errExcluded string

func (e errExcluded) Error() string { return string(e) }

const (
	errNoCertificate = errExcluded("only its clients may ask here, and no verified certificate came with the question")
	errNotListed     = errExcluded("only its clients may ask here, and none of the names in your certificate is listed")
	errNoClient      = errExcluded("only its clients may ask here, and your address is none of theirs")
)

// excludes says why who asks may not, where not everybody may, or nothing. Lookups inside of an answer are those
// of who asked outside.
func (h *Handler) excludes(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) error {
	c := &h.policy.clients
	if ctx.Value(insideKey{}) != nil {
		return nil
	}
	if err := h.guard.await(ctx); err != nil {
		return err // before, nobody knows which forwarders to trust
	}
	addr, forwarded := h.guard.client(h.guard.settings.Load(), w, r)
	if addr.IsValid() && contains(c.networks, addr) {
		return nil
	}
	if len(c.names) == 0 {
		return errNoClient
	}
	// The certificate of a forwarder is not that of whom it asks for.
	id := identityOf(ctx, w)
	if forwarded || id == nil || !id.valid(h.guard.now()) {
		return errNoCertificate
	}
	if !slices.ContainsFunc(id.names, c.listed) {
		return errNotListed
	}
	return nil
}

func (c *clients) listed(name string) bool {
	name = lowerASCII(name)
	return slices.ContainsFunc(c.names, func(pattern *regexp.Regexp) bool { return pattern.MatchString(name) })
}

// exclude answers who may not ask.
func (h *Handler) exclude(w dns.ResponseWriter, r *dns.Msg, why error) (int, error) {
	var none errExcluded
	if errors.As(why, &none) {
		return h.refuse(w, r, string(none))
	}
	answersFailed.Inc()
	return dns.RcodeSuccess, w.WriteMsg(refusal(r, r.Question[0], why))
}

// check finds out whether the server block can know its clients' certificates.
func (c *clients) check(block *dnsserver.Config) error {
	if len(c.names) == 0 {
		return nil
	}
	const do = "write tls CERT KEY CA { client_auth require_and_verify } in this server block, and tls://, https://, https3:// or quic:// before its names"
	switch config := block.TLSConfig; {
	case config == nil:
		return fmt.Errorf("%s: clients cert: nobody shows a certificate here: %s", c.place, do)
	case config.ClientAuth != tls.RequireAndVerifyClientCert && config.ClientAuth != tls.VerifyClientCertIfGiven:
		return fmt.Errorf("%s: clients cert: clients' certificates are not verified here: %s", c.place, do)
	case config.ClientCAs == nil:
		return fmt.Errorf("%s: clients cert: whoever has a certificate of any public authority would count: name the authority of your clients as the third file of tls: %s", c.place, do)
	}
	return nil
}

// addClients reads names in certificates and networks.
func (p *parser) addClients(args []string) error {
	c := &p.policy.clients
	for _, arg := range args {
		pattern, certificate := strings.CutPrefix(arg, "cert:")
		word, of, colon := strings.Cut(arg, ":")
		switch {
		case certificate && pattern == "":
			return p.Errf("clients cert: the name is missing, as in cert:laptop.example.com; cert:** is every certificate of your authority")
		case certificate:
			c.names = append(c.names, certificatePattern(pattern))
			if c.place == "" {
				c.place = here(p.Controller)
			}
		case colon && spelling.Nearest(word, []string{"cert"}) != "":
			return p.Errf("clients %q: did you mean cert:%s?", arg, of)
		case !looksNumeric(arg):
			return p.Errf("clients %q is no address or network: for a name in a certificate write cert:%[1]s", arg)
		default:
			if err := p.addPrefixes(&c.networks, []string{arg}); err != nil {
				return err
			}
		}
	}
	return nil
}

var stars = regexp.MustCompile(`\*+`)

// certificatePattern is what a NAME in the Corefile means: * is some characters of one
// part, ** some characters whatever they are.
func certificatePattern(text string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`\A(?s:`)
	at := 0
	text = lowerASCII(text)
	for _, star := range stars.FindAllStringIndex(text, -1) {
		b.WriteString(regexp.QuoteMeta(text[at:star[0]]))
		if at = star[1]; at-star[0] == 1 {
			b.WriteString(`[^./@:]+`)
		} else {
			b.WriteString(`.+`)
		}
	}
	b.WriteString(regexp.QuoteMeta(text[at:]) + `)\z`)
	return regexp.MustCompile(b.String())
}

// lowerASCII leaves alone what only looks like ASCII when its case is changed, as the
// Kelvin sign does.
func lowerASCII(text string) string {
	b := []byte(text)
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b)
}
