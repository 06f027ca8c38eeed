package ipdestinationguard

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/reach"
)

// clean reports whether no address in m is withheld, whatever its record is for:
// clients may use all that they are told.
func (f *filter) clean(m *dns.Msg) bool {
	for section := range f.sections(m) {
		for _, rr := range *section {
			if !f.cleanRecord(rr) {
				return false
			}
		}
	}
	return true
}

func (f *filter) cleanRecord(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A:
		return f.may(rr.A)
	case *dns.AAAA:
		return f.may(rr.AAAA)
	case *dns.HTTPS:
		return f.cleanHints(&rr.SVCB)
	case *dns.SVCB:
		return f.cleanHints(rr)
	}
	return true
}

func (f *filter) cleanHints(rr *dns.SVCB) bool {
	for _, v := range rr.Value {
		if slices.ContainsFunc(hintsOf(v), func(ip net.IP) bool { return !f.may(ip) }) {
			return false
		}
	}
	return true
}

// may reports whether an address, if it is one, is not withheld.
func (f *filter) may(ip net.IP) bool {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	return !ok || f.take(addr) == nil
}

func hintsOf(v dns.SVCBKeyValue) []net.IP {
	switch v := v.(type) {
	case *dns.SVCBIPv4Hint:
		return v.Hint
	case *dns.SVCBIPv6Hint:
		return v.Hint
	}
	return nil
}

// stripping is what was taken out of an answer.
type stripping struct {
	filter
	counts map[*reach.Block]int // addresses
	first  netip.Addr
	why    *reach.Block // the first one; nil if there was none after all
	sets   map[recordSet]bool
	empty  bool // no address is left that was asked for: the answer says so
}

// stripReason is a block's kind as a metric has it.
func stripReason(b *reach.Block) string {
	switch {
	case b == ownAddress:
		return "own"
	case b == unreachable:
		return "ip_version"
	case b == surplus:
		return "too_many"
	case b == ofPool:
		return "mapped"
	case b.Kind == reach.Metadata:
		return "metadata"
	case b.Kind == reach.Loopback:
		return "loopback"
	}
	return "not_global"
}

// recordSet names the records that a signature is for.
type recordSet struct {
	name   string // in lower case
	rrtype uint16
}

// strip returns what the client gets instead of m: a copy without the addresses
// that are withheld. Nothing of m changes, since caches and zones share records.
func (f *filter) strip(q dns.Question, m *dns.Msg) (*dns.Msg, *stripping) {
	s := &stripping{filter: *f, counts: map[*reach.Block]int{}, sets: map[recordSet]bool{}}
	out := *m
	for section := range s.sections(&out) {
		*section = s.records(*section)
	}
	for section := range s.sections(&out) {
		*section = without(*section, s.signs)
	}
	out.AuthenticatedData = false
	if s.empty = answered(q, m) && !answered(q, &out); s.empty {
		out.Rcode = dns.RcodeSuccess
		out.Answer = without(out.Answer, func(rr dns.RR) bool { return !aliases(rr) })
		// With name servers there, this would look like a referral.
		out.Ns = nil
		out.Extra = without(out.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
	}
	return &out, s
}

// records are those of a section that are left, as far as they are.
func (s *stripping) records(section []dns.RR) []dns.RR {
	left := make([]dns.RR, 0, len(section))
	for _, rr := range section {
		kept, whole := s.record(rr)
		if kept != nil {
			left = append(left, kept)
		}
		if !whole {
			s.sets[recordSet{strings.ToLower(rr.Header().Name), rr.Header().Rrtype}] = true
		}
	}
	return left
}

// record returns what is left of rr, and whether that is rr.
func (s *stripping) record(rr dns.RR) (left dns.RR, whole bool) {
	switch rr := rr.(type) {
	case *dns.A:
		if len(s.addresses([]net.IP{rr.A})) == 0 {
			return nil, false
		}
	case *dns.AAAA:
		if len(s.addresses([]net.IP{rr.AAAA})) == 0 {
			return nil, false
		}
	case *dns.HTTPS:
		svcb, whole := s.service(&rr.SVCB)
		switch {
		case svcb == nil:
			return nil, false
		case !whole:
			return &dns.HTTPS{SVCB: *svcb}, false
		}
	case *dns.SVCB:
		svcb, whole := s.service(rr)
		switch {
		case svcb == nil:
			return nil, false
		case !whole:
			return svcb, false
		}
	}
	return rr, true
}

// service is record for those with hints. Nothing is left of one that must not be
// used without a hint that is gone (RFC 9460, section 8).
func (s *stripping) service(rr *dns.SVCB) (left *dns.SVCB, whole bool) {
	left, whole = new(dns.SVCB), true
	*left = *rr
	left.Value = make([]dns.SVCBKeyValue, 0, len(rr.Value))
	var gone []dns.SVCBKey
	for _, v := range rr.Value {
		had := hintsOf(v)
		hints := s.addresses(had)
		switch {
		case len(hints) == len(had):
			left.Value = append(left.Value, v)
			continue
		case len(hints) == 0:
			gone = append(gone, v.Key())
		case v.Key() == dns.SVCB_IPV4HINT:
			left.Value = append(left.Value, &dns.SVCBIPv4Hint{Hint: hints})
		default:
			left.Value = append(left.Value, &dns.SVCBIPv6Hint{Hint: hints})
		}
		whole = false
	}
	for _, v := range left.Value {
		mandatory, ok := v.(*dns.SVCBMandatory)
		if ok && slices.ContainsFunc(mandatory.Code, func(key dns.SVCBKey) bool { return slices.Contains(gone, key) }) {
			return nil, false
		}
	}
	return left, whole
}

// addresses returns those that are left, and notes the others.
func (s *stripping) addresses(ips []net.IP) (left []net.IP) {
	for _, ip := range ips {
		addr, ok := netip.AddrFromSlice(ip)
		addr = addr.Unmap()
		why := (*reach.Block)(nil)
		if ok {
			why = s.take(addr)
		}
		switch {
		case why == nil:
			left = append(left, ip)
			continue
		case s.why == nil:
			s.first, s.why = addr, why
		}
		s.counts[why]++
	}
	return left
}

// signs reports whether a record is the signature of a set that has changed.
func (s *stripping) signs(rr dns.RR) bool {
	sig, ok := rr.(*dns.RRSIG)
	return ok && s.sets[recordSet{strings.ToLower(sig.Hdr.Name), sig.TypeCovered}]
}

// without returns a section without some records; the backing array is not reused.
func without(section []dns.RR, drop func(dns.RR) bool) []dns.RR {
	left := make([]dns.RR, 0, len(section))
	for _, rr := range section {
		if !drop(rr) {
			left = append(left, rr)
		}
	}
	return left
}

// answered reports whether m has what was asked for, and not only says where it is.
func answered(q dns.Question, m *dns.Msg) bool {
	if m.Rcode&0xf != dns.RcodeSuccess {
		return false
	}
	chain, err := follow(q.Name, m.Answer, nil)
	return err == nil && slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		h := rr.Header()
		asked := h.Rrtype == q.Qtype || q.Qtype == dns.TypeANY && !aliases(rr)
		return asked && h.Class == dns.ClassINET && find(chain, h.Name) != nil
	})
}

// aliases reports whether a record leads from a name to another, or is the signature
// of such records.
func aliases(rr dns.RR) bool {
	rrtype := rr.Header().Rrtype
	if sig, ok := rr.(*dns.RRSIG); ok {
		rrtype = sig.TypeCovered
	}
	return rrtype == dns.TypeCNAME || rrtype == dns.TypeDNAME
}
