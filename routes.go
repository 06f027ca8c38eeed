package ipdestinationguard

import (
	"net/netip"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// namedRoute is a route as a server block has it: for names.
type namedRoute struct {
	patterns       []string
	pools          []netip.Prefix // sorted, of the IP versions that it carries
	literal        bool           // the patterns are names
	slots          int            // mapped addresses of a name and IP version, at most
	egress         []netip.Addr   // sorted
	masquerade     bool           // spelled out
	out            string         // interface
	mark           uint32
	floor, ceiling uint32 // of TTLs, in seconds
	family         string
	ports          []backend.Ports
	cut            bool   // connections to an address that has left its name
	state          string // path of the book; empty is the default one

	place string // file:line

	predicates backend.Predicates // of the packets that its grants are for
	class      backend.Class

	// Once all server blocks have been read: it as the kernel and the book know it.
	kernel backend.Route
	listed route.Route
	book   *book
}

// carries reports whether there are mapped addresses of an IP version.
func (r *namedRoute) carries(is4 bool) bool {
	return r.family == familyBoth || r.family == familyIPv4 == is4
}

// of returns the route that a name belongs to, or nil.
func (p *policy) of(name string) *namedRoute {
	if i, ok := p.routed.Match(name); ok {
		return p.routes[i]
	}
	return nil
}

// decides returns the first route along a chain and the name that belongs to it.
func (p *policy) decides(chain []link) (*namedRoute, string) {
	for _, l := range chain {
		if r := p.of(l.name); r != nil {
			return r, l.name
		}
	}
	return nil, ""
}

// shows reports whether a record of an answer that no route decides gives a client the
// real address of a name that has one: by a record of its own beside the chain, or by the
// hint of a service that stands at another name.
func (p *policy) shows(chain []link, rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A, *dns.AAAA:
		owner := rr.Header().Name
		return find(chain, owner) == nil && p.of(owner) != nil
	case *dns.HTTPS:
		return p.showsHints(&rr.SVCB)
	case *dns.SVCB:
		return p.showsHints(rr)
	}
	return false
}

func (p *policy) showsHints(rr *dns.SVCB) bool {
	return hasHints(rr) && (p.of(rr.Hdr.Name) != nil || p.of(rr.Target) != nil)
}

// hide returns m without what shows real addresses: mostly m.
func (p *policy) hide(chain []link, m *dns.Msg) *dns.Msg {
	clean := func(section []dns.RR) bool {
		for _, rr := range section {
			if p.shows(chain, rr) {
				return false
			}
		}
		return true
	}
	if clean(m.Answer) && clean(m.Ns) && clean(m.Extra) {
		return m
	}
	out := *m
	out.AuthenticatedData = false
	for _, section := range []*[]dns.RR{&out.Answer, &out.Ns, &out.Extra} {
		left := make([]dns.RR, 0, len(*section))
		for _, rr := range *section {
			if p.shows(chain, rr) {
				rr = unhinted(rr)
			}
			if rr != nil {
				left = append(left, rr)
			}
		}
		*section = left
	}
	return &out
}

// unhinted returns what is left of a record without addresses, or nil.
func unhinted(rr dns.RR) dns.RR {
	switch rr := rr.(type) {
	case *dns.HTTPS:
		if s := withoutHints(&rr.SVCB); s != nil {
			return &dns.HTTPS{SVCB: *s}
		}
	case *dns.SVCB:
		if s := withoutHints(rr); s != nil {
			return s
		}
	}
	return nil
}
