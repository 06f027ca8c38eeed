// Package signedtree is a tree of signed zones, from the root on, for tests: it answers as a
// resolver does that validates nothing, and somebody may tamper with its answers.
package signedtree

import (
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// A Tree is some zones, the root among them.
type Tree struct {
	zones map[string]*zone

	mu     sync.Mutex // signatures are made when they are needed
	tamper map[string]func(*dns.Msg)
}

// New signs zones. Each is delegated by the one above it, with DS if it is signed.
func New(zones ...Zone) (*Tree, error) {
	t := &Tree{zones: map[string]*zone{}, tamper: map[string]func(*dns.Msg){}}
	for _, spec := range zones {
		z, err := newZone(spec)
		if err != nil {
			return nil, err
		}
		t.zones[z.Name] = z
	}
	for _, z := range t.zones {
		if z.Name != "." {
			t.above(z.Name).delegate(z)
		}
	}
	for _, z := range t.zones {
		z.close()
	}
	return t, nil
}

// Anchor is what is trusted: the key of the root, as a DS record.
func (t *Tree) Anchor() string { return t.zones["."].ds().String() + "\n" }

// AnchorOf is the same of a zone.
func (t *Tree) AnchorOf(zone string) string { return t.zones[zone].ds().String() + "\n" }

// Tamper has answers about a name changed.
func (t *Tree) Tamper(name string, change func(*dns.Msg)) { t.tamper[name] = change }

// Introduce lets the root have one more key, which signs nothing yet but the keys.
func (t *Tree) Introduce() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	root := t.zones["."]
	next, err := newKey(".", root.Algorithm)
	if err == nil {
		root.next = next
		root.rekey()
	}
	return err
}

// Revoke takes the root's old key back; the one that was introduced signs from now on.
func (t *Tree) Revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	root := t.zones["."]
	root.old, root.key, root.next = root.key, root.next, nil
	root.old.Flags |= dns.REVOKE
	root.rekey()
}

func (t *Tree) above(name string) *zone {
	off, _ := dns.NextLabel(name, 0)
	if rest := name[off:]; rest != "" {
		return t.at(rest)
	}
	return t.zones["."]
}

// at is the zone that a name is in.
func (t *Tree) at(name string) *zone {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if z := t.zones[name[off:]]; z != nil {
			return z
		}
	}
	return t.zones["."]
}

// ServeDNS implements dns.Handler.
func (t *Tree) ServeDNS(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(t.Answer(r)) }

// Answer answers a question.
func (t *Tree) Answer(r *dns.Msg) *dns.Msg {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	q := r.Question[0]
	name := dns.CanonicalName(q.Name)
	for range 10 {
		next := t.step(m, name, q.Qtype)
		if next == "" {
			break
		}
		name = next
	}
	if change := t.tamper[dns.CanonicalName(q.Name)]; change != nil {
		change(m)
	}
	if opt := r.IsEdns0(); opt == nil || !opt.Do() {
		unsigned := func(rr dns.RR) bool {
			switch rr.(type) {
			case *dns.RRSIG, *dns.NSEC, *dns.NSEC3:
				return rr.Header().Rrtype != q.Qtype
			}
			return false
		}
		m.Answer, m.Ns = slices.DeleteFunc(m.Answer, unsigned), slices.DeleteFunc(m.Ns, unsigned)
	}
	if opt := r.IsEdns0(); opt != nil {
		m.SetEdns0(dns.DefaultMsgSize, opt.Do())
	}
	return m
}

// step answers for one name, and says where an alias leads.
func (t *Tree) step(m *dns.Msg, name string, qtype uint16) (next string) {
	z := t.at(name)
	if qtype == dns.TypeDS && name == z.Name && name != "." {
		z = t.above(name)
	}
	node := z.nodes[name]
	switch {
	case node[qtype] != nil:
		m.Answer = append(m.Answer, z.signed(node[qtype])...)
		return ""
	case node[dns.TypeCNAME] != nil:
		m.Answer = append(m.Answer, z.signed(node[dns.TypeCNAME])...)
		return dns.CanonicalName(node[dns.TypeCNAME][0].(*dns.CNAME).Target)
	case node != nil || z.emptyNonTerminal(name):
		m.Ns = append(m.Ns, z.denyType(name)...)
		return ""
	}
	for _, owner := range ancestors(name, z.Name) {
		if set := z.nodes[owner][dns.TypeDNAME]; set != nil {
			d := set[0].(*dns.DNAME)
			target := strings.TrimSuffix(name, owner) + d.Target
			m.Answer = append(m.Answer, z.signed(set)...)
			m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: d.Hdr.Ttl}, Target: target})
			return dns.CanonicalName(target)
		}
	}
	encloser := z.closestEncloser(name)
	wild := z.nodes[wildcard(encloser)]
	switch {
	case wild == nil:
		m.Rcode = dns.RcodeNameError
		m.Ns = append(m.Ns, z.denyName(name, encloser)...)
	case wild[qtype] != nil:
		m.Answer = append(m.Answer, renamed(z.signed(wild[qtype]), name)...)
		m.Ns = append(m.Ns, z.denyExact(name, encloser)...)
	case wild[dns.TypeCNAME] != nil:
		m.Answer = append(m.Answer, renamed(z.signed(wild[dns.TypeCNAME]), name)...)
		m.Ns = append(m.Ns, z.denyExact(name, encloser)...)
		return dns.CanonicalName(wild[dns.TypeCNAME][0].(*dns.CNAME).Target)
	default:
		m.Ns = append(m.Ns, z.denyWild(name, encloser)...)
	}
	return ""
}

// renamed are copies of records of a wildcard, at a name that it stands for.
func renamed(set []dns.RR, name string) (all []dns.RR) {
	for _, rr := range set {
		rr = dns.Copy(rr)
		rr.Header().Name = name
		all = append(all, rr)
	}
	return all
}

// ancestors of a name, from its parent up to a zone.
func ancestors(name, zone string) (all []string) {
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		all = append(all, name[off:])
		if name[off:] == zone {
			return all
		}
	}
	return append(all, ".")
}
