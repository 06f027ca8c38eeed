package signedtree

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// compare is the canonical order of names (RFC 4034, section 6.1).
func compare(a, b string) int {
	as, bs := dns.SplitDomainName(a), dns.SplitDomainName(b)
	slices.Reverse(as)
	slices.Reverse(bs)
	return slices.Compare(as, bs)
}

// chain1 makes NSEC records.
func (z *zone) chain1() {
	slices.SortFunc(z.names, compare)
	for i, name := range z.names {
		z.chain = append(z.chain, &dns.NSEC{Hdr: z.header(name, dns.TypeNSEC), NextDomain: z.names[(i+1)%len(z.names)], TypeBitMap: z.types(name, dns.TypeNSEC, dns.TypeRRSIG)})
	}
}

func (z *zone) hash(name string) string {
	return strings.ToLower(dns.HashName(name, dns.SHA1, z.NSEC3.Iterations, z.NSEC3.Salt))
}

// chain3 makes NSEC3 records.
func (z *zone) chain3() {
	hashes := map[string]string{}
	var sorted []string
	for _, name := range z.names {
		h := z.hash(name)
		hashes[h] = name
		sorted = append(sorted, h)
	}
	slices.Sort(sorted)
	flags := uint8(0)
	if z.NSEC3.OptOut {
		flags = 1
	}
	for i, h := range sorted {
		z.chain = append(z.chain, &dns.NSEC3{Hdr: z.header(h+"."+strings.TrimPrefix(z.Name, "."), dns.TypeNSEC3), Hash: dns.SHA1, Flags: flags,
			Iterations: z.NSEC3.Iterations, SaltLength: uint8(len(z.NSEC3.Salt) / 2), Salt: z.NSEC3.Salt, HashLength: 20,
			NextDomain: strings.ToUpper(sorted[(i+1)%len(sorted)]), TypeBitMap: z.types(hashes[h])})
	}
}

// over is the record of the chain at a name, or else the one that covers it.
func (z *zone) over(name string) dns.RR {
	before := func(rr dns.RR) bool { return compare(rr.Header().Name, name) <= 0 }
	if z.NSEC3 != nil {
		h := z.hash(name)
		before = func(rr dns.RR) bool { return strings.SplitN(rr.Header().Name, ".", 2)[0] <= h }
	}
	last := z.chain[len(z.chain)-1]
	for _, rr := range z.chain {
		if !before(rr) {
			break
		}
		last = rr
	}
	return last
}

// deny proves something with the records over some names.
func (z *zone) deny(names ...string) (all []dns.RR) {
	soa := z.signed(z.nodes[z.Name][dns.TypeSOA])
	if z.key == nil {
		return soa
	}
	for _, name := range names {
		if rr := z.over(name); !slices.Contains(all, rr) {
			all = append(all, z.signed([]dns.RR{rr})...)
		}
	}
	return append(soa, all...)
}

// nextCloser is the name below an ancestor that leads to a name.
func nextCloser(name, encloser string) string {
	labels := dns.SplitDomainName(name)
	return dns.Fqdn(strings.Join(labels[len(labels)-dns.CountLabel(encloser)-1:], "."))
}

func wildcard(encloser string) string { return "*." + strings.TrimPrefix(encloser, ".") }

// denyType proves that a name has no such records.
func (z *zone) denyType(name string) []dns.RR {
	if z.NSEC3 != nil && z.key != nil && !slices.Contains(z.names, name) { // opted out
		encloser := z.closestEncloser(name)
		return z.deny(encloser, nextCloser(name, encloser))
	}
	return z.deny(name)
}

// denyName proves that there is no name.
func (z *zone) denyName(name, encloser string) []dns.RR {
	if z.NSEC3 != nil {
		return z.deny(encloser, nextCloser(name, encloser), wildcard(encloser))
	}
	return z.deny(name, wildcard(encloser))
}

// denyWild proves that a wildcard stands for a name, and has no such records.
func (z *zone) denyWild(name, encloser string) []dns.RR {
	if z.NSEC3 != nil {
		return z.deny(encloser, nextCloser(name, encloser), wildcard(encloser))
	}
	return z.deny(name, wildcard(encloser))
}

// denyExact proves that a wildcard stands for a name.
func (z *zone) denyExact(name, encloser string) []dns.RR {
	if z.key == nil {
		return nil
	}
	if z.NSEC3 != nil {
		return z.signed([]dns.RR{z.over(nextCloser(name, encloser))})
	}
	return z.signed([]dns.RR{z.over(name)})
}
