package ipdestinationguard

import (
	"errors"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/names"
)

// dnssec is what the answers of a server block have to prove before they open addresses.
type dnssec struct {
	ad       *names.List // names whose answers the upstream must have authenticated
	insecure bool        // also an upstream that anybody could speak for

	signed bool // what is proven to be unsigned opens nothing

	zones []string // that ad is of
	place string   // file:line of the first line
}

// An unproven error withholds an answer that nothing vouches for.
type unproven struct {
	code uint16 // Extended DNS Error (RFC 8914)
	why  string
}

func (e *unproven) Error() string { return e.why }

var errNotAuthenticated = &unproven{dns.ExtendedErrorCodeDNSSECIndeterminate,
	"answers for this name have to be signed, and the upstream has not authenticated this one (dnssec ad)"}

// ask returns the question that the chain gets for the client's. Nobody can have
// validation switched off, by CD, for what is to open addresses; and an upstream says AD
// only to those who want to know (RFC 6840, section 5.7).
func (q *query) ask(r *dns.Msg) *dns.Msg {
	ad := !r.AuthenticatedData && q.handler.policy.dnssec.ad.Match(q.question.Name)
	if !ad && !r.CheckingDisabled {
		return r
	}
	r = r.Copy() // others may look at the client's
	r.CheckingDisabled = false
	r.AuthenticatedData = r.AuthenticatedData || ad
	return r
}

// proven returns why nobody may have an answer, or nothing.
func (q *query) proven(m *dns.Msg) error {
	if m.AuthenticatedData || !q.handler.policy.dnssec.ad.Match(q.question.Name) {
		return nil
	}
	if targets, err := readAnswer(q.question, m, nil); err != nil || len(targets) > 0 {
		return errNotAuthenticated
	}
	return nil
}

// returned is an answer with the flags that the client expects: AD if it has asked, by AD
// or DO, and its own CD (RFC 4035, section 3.2.2).
func (q *query) returned(m *dns.Msg) *dns.Msg {
	r := q.request
	hide := m.AuthenticatedData && !r.AuthenticatedData && !wantsSignatures(r)
	if !hide && m.CheckingDisabled == r.CheckingDisabled {
		return m
	}
	out := *m // it may be somebody else's too
	out.CheckingDisabled = r.CheckingDisabled
	out.AuthenticatedData = m.AuthenticatedData && !hide
	return &out
}

// wantsSignatures reports whether a client has set DO (RFC 3225).
func wantsSignatures(r *dns.Msg) bool {
	opt := r.IsEdns0()
	return opt != nil && opt.Do()
}

// addDNSSEC reads `dnssec ad ZONE... [insecure]` and `dnssec validate`.
func (p *parser) addDNSSEC(args []string) error {
	d := &p.policy.dnssec
	if d.place == "" {
		d.place = here(p.Controller)
	}
	switch kind, zones := args[0], args[1:]; kind {
	case "ad":
		if n := len(zones); n > 0 && zones[n-1] == "insecure" {
			zones, d.insecure = zones[:n-1], true
		}
		if len(zones) == 0 {
			return p.Errf("dnssec ad: for which zones? With dnssec ad . nothing opens but what is signed")
		}
		return p.addZones("dnssec ad", &d.zones, zones)
	case "validate":
		return p.addValidation(zones)
	default:
		return p.Errf("dnssec %q: it is ad (the upstream has to authenticate answers) or validate (that is done here)", kind)
	}
}

// addZones reads zones, each of which stands for all names in it.
func (p *parser) addZones(option string, list *[]string, zones []string) error {
	for _, zone := range zones {
		if _, ok := dns.IsDomainName(zone); !ok || strings.ContainsAny(zone, `*?\/:`) {
			return p.Errf("%s %q is no zone: write its name, as in example.com, which stands for all below it", option, zone)
		}
		zone = dns.CanonicalName(zone)
		if !slices.Contains(*list, zone) {
			*list = append(*list, zone)
		}
	}
	return nil
}

// namesIn are those in the zones.
func namesIn(zones []string) (*names.List, error) {
	var patterns []string
	for _, zone := range zones {
		if zone == "." {
			zone = ""
		}
		patterns = append(patterns, strings.TrimSuffix("**."+zone, "."))
	}
	return names.Parse(patterns...)
}

// settleDNSSEC reads the zones of all lines together.
func (p *parser) settleDNSSEC() (err error) {
	d := &p.policy.dnssec
	if d.ad, err = namesIn(d.zones); err != nil {
		return p.Errf("dnssec: %v", err)
	}
	if d.signed && p.policy.validation == nil {
		return p.errAt("require", "require signed: nothing is validated in this server block: it takes a line dnssec validate")
	}
	return nil
}

// codeOf is the Extended DNS Error of a reason.
func codeOf(reason error) (code uint16, ok bool) {
	var u *unproven
	if errors.As(reason, &u) {
		return u.code, true
	}
	return 0, false
}

// requireOption reads `require encrypted` and `require signed`.
func (p *parser) requireOption(args []string) error {
	for _, arg := range args {
		switch arg {
		case "encrypted":
			p.policy.encrypted = here(p.Controller)
		case "signed":
			p.policy.dnssec.signed = true
		default:
			return p.Errf("require %q: it is encrypted (no question leaves in plain text) or signed (dnssec validate: what nobody has signed opens nothing)", arg)
		}
	}
	return nil
}
