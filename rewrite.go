package ipdestinationguard

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// A rewriting makes the answer for a name of a route: at the name that was asked for, with
// mapped addresses in place of real ones.
type rewriting struct {
	*policy
	route    *namedRoute
	question dns.Question
	chain    []link // from the question's name
}

// concerns reports whether m has what only a rewritten answer may have: all others pass as
// they are, that there is no such name or record, say.
func (w *rewriting) concerns(m *dns.Msg) bool {
	return m.Rcode&0xf == dns.RcodeSuccess && slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		l, _ := w.asked(rr)
		return l != nil
	})
}

// asked returns where on the chain a record stands that leads to an address and that the
// client has asked for, and that address if it is one.
func (w *rewriting) asked(rr dns.RR) (at *link, real netip.Addr) {
	h := rr.Header()
	if h.Rrtype != w.question.Qtype && w.question.Qtype != dns.TypeANY || h.Class != dns.ClassINET {
		return nil, netip.Addr{}
	}
	switch rr := rr.(type) {
	case *dns.A:
		real, _ = netip.AddrFromSlice(rr.A)
		real = real.Unmap()
	case *dns.AAAA:
		real, _ = netip.AddrFromSlice(rr.AAAA)
	case *dns.HTTPS, *dns.SVCB:
		return find(w.chain, h.Name), netip.Addr{}
	default:
		return nil, netip.Addr{}
	}
	return find(w.chain, h.Name), real
}

// real appends the addresses that m gives, each once, and returns the least TTL that leads
// to one of them. IPv4 in IPv6's clothes is of neither version.
func (w *rewriting) real(m *dns.Msg, buf []netip.Addr) (all []netip.Addr, ttl uint32) {
	ttl = w.route.ceiling
	for _, rr := range m.Answer {
		at, addr := w.asked(rr)
		if at == nil || !addr.IsValid() || addr.Is4In6() || slices.Contains(buf, addr) {
			continue
		}
		buf, ttl = append(buf, addr), min(ttl, at.ttl, rr.Header().Ttl)
	}
	return buf, max(ttl, w.route.floor)
}

// rewrite returns what the client gets instead of m: these mapped addresses. Nothing of m
// changes, since caches and zones share records.
func (w *rewriting) rewrite(m *dns.Msg, mapped []netip.Addr, ttl uint32) *dns.Msg {
	out := *m
	out.AuthenticatedData = false
	out.Answer = make([]dns.RR, 0, len(mapped)+1)
	for _, addr := range mapped {
		h := dns.RR_Header{Name: w.question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}
		if addr.Is4() {
			out.Answer = append(out.Answer, &dns.A{Hdr: h, A: addr.AsSlice()})
			continue
		}
		h.Rrtype = dns.TypeAAAA
		out.Answer = append(out.Answer, &dns.AAAA{Hdr: h, AAAA: addr.AsSlice()})
	}
	for _, rr := range m.Answer {
		if rr = w.beside(rr); rr != nil {
			out.Answer = append(out.Answer, rr)
		}
	}
	signs := func(rr dns.RR) bool { return dnssec[rr.Header().Rrtype] }
	if len(out.Answer) == 0 {
		// With name servers there, this would look like a referral.
		out.Ns = without(m.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeSOA })
		out.Extra = without(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
		return &out
	}
	if slices.ContainsFunc(out.Ns, signs) {
		out.Ns = without(out.Ns, signs)
	}
	if slices.ContainsFunc(out.Extra, signs) {
		out.Extra = without(out.Extra, signs)
	}
	return &out
}

// dnssec are records that vouch for others, or for that there are no others (RFC 4034,
// RFC 5155).
var dnssec = map[uint16]bool{dns.TypeRRSIG: true, dns.TypeNSEC: true, dns.TypeNSEC3: true}

// beside returns what is left in the answer of a record that is no address: a service, and
// to a question for everything what else there is at the name.
func (w *rewriting) beside(rr dns.RR) dns.RR {
	if at, addr := w.asked(rr); at != nil && !addr.IsValid() {
		switch rr := rr.(type) {
		case *dns.HTTPS:
			if s := w.service(&rr.SVCB, at); s != nil {
				return &dns.HTTPS{SVCB: *s}
			}
		case *dns.SVCB:
			if s := w.service(rr, at); s != nil {
				return s
			}
		}
		return nil
	}
	h := rr.Header()
	switch {
	case w.question.Qtype != dns.TypeANY, !sameName(h.Name, w.question.Name), dnssec[h.Rrtype]:
		return nil
	}
	switch h.Rrtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeDNAME, dns.TypeHTTPS, dns.TypeSVCB:
		return nil
	}
	return rr
}

// service returns a service record as it is for the question's name: without hints. There
// is none if it cannot be used without (RFC 9460, section 8), or if it leads to a name that
// is not of this route.
func (w *rewriting) service(rr *dns.SVCB, at *link) *dns.SVCB {
	s := *rr
	s.Hdr.Name, s.Hdr.Ttl = w.question.Name, min(at.ttl, rr.Hdr.Ttl)
	switch {
	case s.Target == ".":
	case s.Priority > 0 && find(w.chain, s.Target) != nil:
		s.Target = "." // which now means the same
	case w.of(s.Target) != w.route:
		return nil
	}
	return withoutHints(&s)
}

// withoutHints returns a service record that has no hints, or nil if it says that it needs
// them.
func withoutHints(rr *dns.SVCB) *dns.SVCB {
	s := *rr
	s.Value = make([]dns.SVCBKeyValue, 0, len(rr.Value))
	for _, v := range rr.Value {
		switch v := v.(type) {
		case *dns.SVCBIPv4Hint, *dns.SVCBIPv6Hint:
			continue
		case *dns.SVCBMandatory:
			if slices.Contains(v.Code, dns.SVCB_IPV4HINT) || slices.Contains(v.Code, dns.SVCB_IPV6HINT) {
				return nil
			}
		}
		s.Value = append(s.Value, v)
	}
	return &s
}

func hasHints(rr *dns.SVCB) bool {
	return slices.ContainsFunc(rr.Value, func(v dns.SVCBKeyValue) bool { return len(hintsOf(v)) > 0 })
}
