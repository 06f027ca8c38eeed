package ipdestinationguard

import "github.com/miekg/dns"

// Names by which programs find out whether to turn to a resolver of their own, which
// would get them nowhere.
const (
	// Firefox asks for it; that it does not exist says no.
	canaryName = "use-application-dns.net."
	// What the resolver itself designates (RFC 9462): nothing.
	designatedName = "_dns.resolver.arpa."
)

// canary returns the answer to a question for such a name, or nil.
func canary(r *dns.Msg) *dns.Msg {
	name := r.Question[0].Name
	rcode := dns.RcodeSuccess
	switch {
	case sameName(name, canaryName):
		rcode = dns.RcodeNameError
	case !isBelow(name, designatedName):
		return nil
	}
	if r.Opcode != dns.OpcodeQuery {
		return nil
	}
	m := new(dns.Msg).SetRcode(r, rcode)
	m.RecursionAvailable = true
	return m
}

// isBelow reports whether a name is top or below it.
func isBelow(name, top string) bool {
	at := len(name) - len(top)
	return at >= 0 && sameName(name[at:], top) && (at == 0 || endsLabel(name[:at]))
}
