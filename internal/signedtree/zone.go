package signedtree

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Zone is one as a test wants it.
type Zone struct {
	Name        string
	Records     string        // as in a zone file
	Algorithm   uint8         // of its key; 0 is unsigned
	NSEC3       *NSEC3        // or NSEC
	Shift       time.Duration // of the time in which signatures are valid, which is an hour about now
	Undisclosed bool          // no DS above it
	Revoke      int           // 1: its key is revoked; 2: another one is, beside it
	Foreign     bool          // the DS above is of another key
	Unheard     bool          // the DS above is of an algorithm that nobody knows
}

// NSEC3 is how names are hashed.
type NSEC3 struct {
	Iterations uint16
	Salt       string
	OptOut     bool
}

type zone struct {
	Zone
	key   *key
	old   *key // revoked
	next  *key // introduced
	nodes map[string]map[uint16][]dns.RR
	names []string // of nodes that NSEC or NSEC3 know, sorted
	chain []dns.RR // NSEC or NSEC3, in their order
	sigs  map[string]*dns.RRSIG
}

func newZone(spec Zone) (z *zone, err error) {
	z = &zone{Zone: spec, nodes: map[string]map[uint16][]dns.RR{}, sigs: map[string]*dns.RRSIG{}}
	parser := dns.NewZoneParser(strings.NewReader("@ 300 IN SOA ns hostmaster 1 3600 600 86400 60\n@ 300 IN NS ns.invalid.\n"+spec.Records), spec.Name, "")
	parser.SetDefaultTTL(300)
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		z.add(rr)
	}
	if err := parser.Err(); err != nil {
		return nil, err
	}
	if spec.Algorithm == 0 {
		return z, nil
	}
	if z.key, err = newKey(spec.Name, spec.Algorithm); err != nil {
		return nil, err
	}
	switch spec.Revoke {
	case 1:
		z.key.Flags |= dns.REVOKE
	case 2:
		if z.old, err = newKey(spec.Name, spec.Algorithm); err != nil {
			return nil, err
		}
		z.old.Flags |= dns.REVOKE
		z.add(&z.old.DNSKEY)
	}
	z.add(&z.key.DNSKEY)
	return z, nil
}

func (z *zone) add(rr dns.RR) {
	name := dns.CanonicalName(rr.Header().Name)
	if z.nodes[name] == nil {
		z.nodes[name] = map[uint16][]dns.RR{}
	}
	z.nodes[name][rr.Header().Rrtype] = append(z.nodes[name][rr.Header().Rrtype], rr)
}

// rekey has the zone signed anew, by the keys that there are.
func (z *zone) rekey() {
	var keys []dns.RR
	for _, k := range []*key{z.key, z.old, z.next} {
		if k != nil {
			keys = append(keys, &k.DNSKEY)
		}
	}
	z.nodes[z.Name][dns.TypeDNSKEY] = keys
	z.sigs = map[string]*dns.RRSIG{}
}

func (z *zone) ds() *dns.DS {
	known := z.key.DNSKEY
	known.Flags &^= dns.REVOKE // it is from before
	ds := known.ToDS(dns.SHA256)
	ds.Hdr.Ttl = 300
	return ds
}

// delegate makes a zone known above it.
func (z *zone) delegate(child *zone) {
	z.add(&dns.NS{Hdr: dns.RR_Header{Name: child.Name, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 300}, Ns: "ns.invalid."})
	if child.key == nil || child.Undisclosed {
		return
	}
	ds := child.ds()
	if child.Foreign {
		ds.Digest = strings.Repeat("ab", 32)
	}
	if child.Unheard {
		ds.Algorithm = 200
	}
	z.add(ds)
}

// close makes the chain of names, when all are there.
func (z *zone) close() {
	if z.key == nil {
		return
	}
	for name, node := range z.nodes {
		if z.NSEC3 != nil && z.NSEC3.OptOut && name != z.Name && node[dns.TypeNS] != nil && node[dns.TypeDS] == nil {
			continue
		}
		z.names = append(z.names, name)
		if z.NSEC3 != nil {
			for _, a := range ancestors(name, z.Name) {
				if len(a) > len(z.Name) && z.nodes[a] == nil && !slices.Contains(z.names, a) {
					z.names = append(z.names, a)
				}
			}
		}
	}
	if z.NSEC3 != nil {
		z.chain3()
	} else {
		z.chain1()
	}
}

func (z *zone) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: 60}
}

func (z *zone) types(name string, more ...uint16) (all []uint16) {
	node := z.nodes[name]
	for t := range node {
		all = append(all, t)
	}
	if len(node) > 0 && !(node[dns.TypeNS] != nil && node[dns.TypeSOA] == nil && node[dns.TypeDS] == nil && z.NSEC3 != nil) {
		all = append(all, dns.TypeRRSIG)
	}
	all = append(all, more...)
	slices.Sort(all)
	return slices.Compact(all)
}

func (z *zone) emptyNonTerminal(name string) bool {
	for other := range z.nodes {
		if other != name && dns.IsSubDomain(name, other) {
			return true
		}
	}
	return false
}

// closestEncloser is the longest ancestor that exists.
func (z *zone) closestEncloser(name string) string {
	for _, a := range ancestors(name, z.Name) {
		if z.nodes[a] != nil || z.emptyNonTerminal(a) {
			return a
		}
	}
	return z.Name
}

// signed are records with their signature.
func (z *zone) signed(set []dns.RR) []dns.RR {
	all := slices.Clone(set)
	if z.key == nil || set[0].Header().Rrtype == dns.TypeNS && set[0].Header().Name != z.Name {
		return all
	}
	h := set[0].Header()
	id := h.Name + dns.TypeToString[h.Rrtype]
	if z.sigs[id] == nil {
		z.sigs[id] = z.key.sign(set, z.Name, z.Shift)
	}
	all = append(all, z.sigs[id])
	for _, other := range []*key{z.old, z.next} {
		if other != nil && h.Rrtype == dns.TypeDNSKEY {
			all = append(all, other.sign(set, z.Name, z.Shift)) // a key revokes itself (RFC 5011)
		}
	}
	return all
}
