package ipdestinationguard

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A target is an address that an answer gives to the client, and for how long
// the client may use it.
type target struct {
	key backend.Key
	ttl uint32 // seconds: the least along the chain that leads to the address
}

// What an answer may make us do. Resolvers follow far fewer names (BIND and
// Unbound 11), and no name has that many addresses.
const (
	maxChain   = 32   // names that a question may lead through
	maxAliases = 64   // CNAME and DNAME records
	maxTargets = 4096 // addresses
)

var (
	errChain   = errors.New("the answer leads through too many names")
	errTargets = errors.New("the answer has too many addresses")
)

// link is a name that the question leads to.
type link struct {
	name string
	ttl  uint32
}

// readAnswer appends to buf every address that m, an answer to q, gives a
// client: A and AAAA records and the address hints of HTTPS and SVCB records,
// of the type that was asked for, at the name that was asked for or where
// CNAME and DNAME records lead from it. All other records give nothing: not
// those at other names, and none outside the answer section.
func readAnswer(q dns.Question, m *dns.Msg, buf []target) ([]target, error) {
	// The rest of an extended code is not seen by clients without EDNS.
	if m.Rcode&0xf != dns.RcodeSuccess {
		return buf, nil
	}
	var short [3]link
	chain, err := follow(q.Name, m.Answer, short[:0])
	if err != nil {
		return buf, err
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype != q.Qtype && q.Qtype != dns.TypeANY || h.Class != dns.ClassINET {
			continue
		}
		if l := find(chain, h.Name); l != nil {
			buf = appendTargets(buf, rr, min(l.ttl, h.Ttl))
		}
		if len(buf) > maxTargets {
			return buf, errTargets
		}
	}
	return buf, nil
}

func appendTargets(buf []target, rr dns.RR, ttl uint32) []target {
	switch rr := rr.(type) {
	case *dns.A:
		buf = appendTarget(buf, rr.A, ttl)
	case *dns.AAAA:
		buf = appendTarget(buf, rr.AAAA, ttl)
	case *dns.HTTPS:
		buf = appendHints(buf, &rr.SVCB, ttl)
	case *dns.SVCB:
		buf = appendHints(buf, rr, ttl)
	}
	return buf
}

// appendHints appends the hints of a record in service mode; in alias mode,
// priority 0, parameters mean nothing (RFC 9460, section 2.4.2).
func appendHints(buf []target, rr *dns.SVCB, ttl uint32) []target {
	if rr.Priority == 0 {
		return buf
	}
	for _, v := range rr.Value {
		var hints []net.IP
		switch v := v.(type) {
		case *dns.SVCBIPv4Hint:
			hints = v.Hint
		case *dns.SVCBIPv6Hint:
			hints = v.Hint
		}
		for _, ip := range hints {
			buf = appendTarget(buf, ip, ttl)
		}
	}
	return buf
}

// appendTarget appends ip. To the kernel an IPv4-mapped address is IPv4, and it
// is one here.
func appendTarget(buf []target, ip net.IP, ttl uint32) []target {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return buf
	}
	return append(buf, target{backend.KeyOf(addr), ttl})
}

// follow returns the names that lead from the question's name, itself first,
// however the records are ordered. Each name looks at each record once.
func follow(name string, answer []dns.RR, chain []link) ([]link, error) {
	chain = append(chain, link{name, math.MaxUint32})
	aliases := 0
	for _, rr := range answer {
		switch rr.(type) {
		case *dns.CNAME, *dns.DNAME:
			aliases++
		}
	}
	switch {
	case aliases == 0:
		return chain, nil
	case aliases > maxAliases:
		return nil, errChain
	}
	for i := 0; i < len(chain); i++ {
		for _, rr := range answer {
			next, ok := chain[i].alias(rr)
			if !ok || find(chain, next.name) != nil {
				continue
			}
			if len(chain) == maxChain {
				return nil, errChain
			}
			chain = append(chain, next)
		}
	}
	return chain, nil
}

// alias returns where rr leads from l, if it does.
func (l link) alias(rr dns.RR) (next link, ok bool) {
	switch rr := rr.(type) {
	case *dns.CNAME:
		next.name, ok = rr.Target, sameName(l.name, rr.Hdr.Name)
	case *dns.DNAME:
		next.name, ok = substitute(l.name, rr)
	default:
		return link{}, false
	}
	next.ttl = min(l.ttl, rr.Header().Ttl)
	return next, ok
}

// substitute puts the target of a DNAME in the place of its owner at the end of
// name (RFC 6672, section 2.2). The owner itself is not redirected.
func substitute(name string, rr *dns.DNAME) (string, bool) {
	owner := rr.Hdr.Name
	if owner == "." {
		owner = ""
	}
	prefix := name[:max(len(name)-len(owner), 0)]
	if !endsLabel(prefix) || !sameName(name[len(prefix):], owner) {
		return "", false
	}
	if rr.Target == "." {
		return prefix, true
	}
	return prefix + rr.Target, true
}

// endsLabel reports whether a name ends here in a dot that parts labels: one that
// no odd number of backslashes makes a part of the label.
func endsLabel(prefix string) bool {
	if prefix == "" || prefix == "." || prefix[len(prefix)-1] != '.' {
		return false
	}
	label := prefix[:len(prefix)-1]
	return (len(label)-len(strings.TrimRight(label, `\`)))%2 == 0
}

func find(chain []link, name string) *link {
	for i := range chain {
		if sameName(chain[i].name, name) {
			return &chain[i]
		}
	}
	return nil
}

// sameName compares names as the DNS does: by bytes, but for the case of ASCII
// letters (RFC 4343, section 3).
func sameName(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
