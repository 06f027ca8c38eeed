package signedtree

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Case is a question to the tree of Cases, and what is true of the answer.
type Case struct {
	Name     string // what it is about
	Question string // name and type
	Verdict  string // secure, insecure or bogus
	Code     uint16 // Extended DNS Error, of bogus ones; 0 is any
	Address  string // that the answer gives, if it is to be believed; or none
}

// Address makes the n-th address of the cases.
func Address(n int) string { return fmt.Sprintf("198.18.7.%d", n) }

// Q is the question.
func (c Case) Q() dns.Question {
	name, qtype, _ := strings.Cut(c.Question, " ")
	return dns.Question{Name: name, Qtype: dns.StringToType[qtype], Qclass: dns.ClassINET}
}

// Cases is a tree and all that it is asked. Debian's libunbound is made with nettle, does not
// know Ed448, and holds what is signed by it for unsigned (RFC 4035, section 5.2).
func Cases() (*Tree, []Case, error) {
	zones := []Zone{
		{Name: ".", Algorithm: dns.ECDSAP256SHA256},
		{Name: "test.", Algorithm: dns.RSASHA256, Records: "www A " + Address(1) + "\n"},
		{Name: "plain.test.", Records: "www A " + Address(2) + "\nforged A " + Address(3) + "\n"},
		{Name: "stripped.test.", Algorithm: dns.ECDSAP256SHA256, Records: "www A " + Address(4) + "\n"},
		{Name: "expired.test.", Algorithm: dns.ECDSAP256SHA256, Shift: -48 * time.Hour, Records: "www A " + Address(5) + "\n"},
		{Name: "future.test.", Algorithm: dns.ECDSAP256SHA256, Shift: 48 * time.Hour, Records: "www A " + Address(6) + "\n"},
		{Name: "foreign.test.", Algorithm: dns.ECDSAP256SHA256, Foreign: true, Records: "www A " + Address(7) + "\n"},
		{Name: "unheard.test.", Algorithm: dns.ECDSAP256SHA256, Unheard: true, Records: "www A " + Address(8) + "\n"},
		{Name: "nokey.test.", Algorithm: dns.ECDSAP256SHA256, Records: "www A " + Address(9) + "\n"},
		{Name: "revoked.test.", Algorithm: dns.ECDSAP256SHA256, Revoke: 1, Records: "www A " + Address(10) + "\n"},
		{Name: "rolled.test.", Algorithm: dns.ECDSAP256SHA256, Revoke: 2, Records: "www A " + Address(11) + "\n"},
		{Name: "island.test.", Algorithm: dns.ECDSAP256SHA256, Undisclosed: true, Records: "www A " + Address(12) + "\n"},
		{Name: "hashed.test.", Algorithm: dns.ECDSAP256SHA256, NSEC3: &NSEC3{}, Records: "www A " + Address(13) + "\na.b.ent A " + Address(14) + "\n*.wild A " + Address(15) + "\n"},
		{Name: "salted.test.", Algorithm: dns.RSASHA256, NSEC3: &NSEC3{Iterations: 10, Salt: "aabbccdd"}, Records: "www A " + Address(16) + "\n"},
		{Name: "many.test.", Algorithm: dns.ECDSAP256SHA256, NSEC3: &NSEC3{Iterations: 2000}, Records: "www A " + Address(17) + "\n*.wild A " + Address(18) + "\n"},
		{Name: "optout.test.", Algorithm: dns.ECDSAP256SHA256, NSEC3: &NSEC3{OptOut: true}, Records: "www A " + Address(19) + "\n"},
		{Name: "insecure.optout.test.", Records: "www A " + Address(20) + "\n"},
		{Name: "signed.optout.test.", Algorithm: dns.ECDSAP256SHA256, Records: "www A " + Address(21) + "\n"},
		{Name: "bare.test.", Algorithm: dns.ECDSAP256SHA256, Records: "* A " + Address(22) + "\n"},
		{Name: "main.test.", Algorithm: dns.ECDSAP256SHA256, Records: mainRecords},
		{Name: "alias.test.", Algorithm: dns.ED25519, Records: aliasRecords},
	}
	cases := []Case{
		{"below the root", "www.test. A", "secure", 0, Address(1)},
		{"an insecure delegation", "www.plain.test. A", "insecure", 0, Address(2)},
		{"nothing in an insecure delegation", "nothing.plain.test. A", "insecure", 0, ""},
		{"a delegation whose denial of DS is taken out", "www.stripped.test. A", "bogus", 0, ""},
		{"expired signatures", "www.expired.test. A", "bogus", dns.ExtendedErrorCodeSignatureExpired, ""},
		{"signatures that are not valid yet", "www.future.test. A", "bogus", dns.ExtendedErrorCodeSignatureNotYetValid, ""},
		{"a DS of another key", "www.foreign.test. A", "bogus", dns.ExtendedErrorCodeDNSKEYMissing, ""},
		{"a DS of an algorithm that nobody knows", "www.unheard.test. A", "insecure", 0, Address(8)},
		{"no DNSKEY", "www.nokey.test. A", "bogus", dns.ExtendedErrorCodeDNSKEYMissing, ""},
		{"a revoked key", "www.revoked.test. A", "bogus", dns.ExtendedErrorCodeDNSKEYMissing, ""},
		{"a revoked key beside a good one", "www.rolled.test. A", "secure", 0, Address(11)},
		{"signed, but nobody says so above", "www.island.test. A", "insecure", 0, Address(12)},
		{"NSEC3", "www.hashed.test. A", "secure", 0, Address(13)},
		{"NSEC3, no such name", "nothing.hashed.test. A", "secure", 0, ""},
		{"NSEC3, no such type", "www.hashed.test. AAAA", "secure", 0, ""},
		{"NSEC3, an empty non-terminal", "ent.hashed.test. A", "secure", 0, ""},
		{"NSEC3, below an empty non-terminal", "a.b.ent.hashed.test. A", "secure", 0, Address(14)},
		{"NSEC3, a wildcard", "any.wild.hashed.test. A", "secure", 0, Address(15)},
		{"NSEC3, a wildcard without such a type", "any.wild.hashed.test. AAAA", "secure", 0, ""},
		{"NSEC3, a wildcard without proof", "bare.wild.hashed.test. A", "bogus", 0, ""},
		{"NSEC3 with salt", "www.salted.test. A", "secure", 0, Address(16)},
		{"NSEC3 with salt, no such name", "nothing.salted.test. A", "secure", 0, ""},
		{"too many iterations, which prove nothing", "nothing.many.test. A", "insecure", 0, ""},
		{"too many iterations, with nothing to prove", "www.many.test. A", "secure", 0, Address(17)},
		{"too many iterations, a wildcard", "any.wild.many.test. A", "insecure", 0, Address(18)},
		{"opt-out", "www.optout.test. A", "secure", 0, Address(19)},
		{"opt-out, no such name", "nothing.optout.test. A", "insecure", 0, ""},
		{"opt-out, an insecure delegation", "www.insecure.optout.test. A", "insecure", 0, Address(20)},
		{"opt-out, a signed delegation", "www.signed.optout.test. A", "secure", 0, Address(21)},
		{"NSEC", "www.main.test. A", "secure", 0, Address(30)},
		{"IPv6", "www.main.test. AAAA", "secure", 0, "2001:db8:18:7::30"},
		{"hints", "www.main.test. HTTPS", "secure", 0, Address(31)},
		{"no address", "www.main.test. MX", "secure", 0, ""},
		{"no such type", "www.main.test. TXT", "secure", 0, ""},
		{"no such name", "nothing.main.test. A", "secure", 0, ""},
		{"an empty non-terminal", "ent.main.test. A", "secure", 0, ""},
		{"a wildcard", "any.wild.main.test. A", "secure", 0, Address(32)},
		{"a wildcard without such a type", "any.wild.main.test. AAAA", "secure", 0, ""},
		{"a wildcard without proof", "any.bare.test. A", "bogus", 0, ""}, // in a zone of its own, or NSEC records of other answers prove it
		{"a wildcard replayed at a name that is there", "there.wild.main.test. A", "bogus", 0, ""},
		{"a wildcard's own signature at a name above", "wild.main.test. A", "bogus", 0, ""},
		{"an alias in the zone", "alias.main.test. A", "secure", 0, Address(30)},
		{"an alias of another zone", "www.alias.test. A", "secure", 0, Address(30)},
		{"an alias by a wildcard", "any.more.alias.test. A", "secure", 0, Address(30)},
		{"an alias of an unsigned name", "plain.alias.test. A", "insecure", 0, Address(2)},
		{"an alias of a bogus name", "expired.alias.test. A", "bogus", dns.ExtendedErrorCodeSignatureExpired, ""},
		{"a DNAME to another zone", "www.dname.alias.test. A", "secure", 0, Address(30)},
		{"a DNAME to an unsigned zone", "www.dplain.alias.test. A", "insecure", 0, Address(2)},
		{"a DNAME whose CNAME leads elsewhere: it is not looked at", "forged.dname.alias.test. A", "secure", 0, ""},
		{"an alias that nobody has signed", "unsigned.main.test. A", "bogus", 0, ""},
		{"an alias for a signed name, in an unsigned zone", "detour.main.test. A", "bogus", 0, ""},
		{"no signatures", "bare.main.test. A", "bogus", dns.ExtendedErrorCodeRRSIGsMissing, ""},
		{"another address", "changed.main.test. A", "bogus", dns.ExtendedErrorCodeDNSBogus, ""},
		{"one address more", "added.main.test. A", "bogus", dns.ExtendedErrorCodeDNSBogus, ""},
		{"one address less", "less.main.test. A", "bogus", dns.ExtendedErrorCodeDNSBogus, ""},
		{"another name's signed records", "renamed.main.test. A", "bogus", 0, ""},
		{"another zone's signature", "signer.main.test. A", "bogus", 0, ""},
		{"a name denied by another's NSEC", "denied.main.test. A", "bogus", 0, ""},
		{"a type denied by an NSEC that has it", "untyped.main.test. A", "bogus", 0, ""},
		{"nothing, without proof", "vanished.main.test. A", "bogus", 0, ""},
		{"a longer life than was signed", "longer.main.test. A", "secure", 0, Address(40)},
		{"tampering with what nobody has signed", "forged.plain.test. A", "insecure", 0, Address(99)},
	}
	for i, algorithm := range []uint8{dns.RSASHA256, dns.RSASHA512, dns.ECDSAP256SHA256, dns.ECDSAP384SHA384, dns.ED25519, dns.ED448} {
		text := dns.AlgorithmToString[algorithm]
		zone := strings.ToLower(text) + ".test."
		zones = append(zones, Zone{Name: zone, Algorithm: algorithm, Records: "www A " + Address(50+i) + "\nchanged A " + Address(50+i) + "\n"})
		if algorithm == dns.ED448 {
			cases = append(cases,
				Case{text + ", unknown", "www." + zone + " A", "insecure", 0, Address(50 + i)},
				Case{text + ", unknown, changed", "changed." + zone + " A", "insecure", 0, Address(99)},
				Case{text + ", unknown, no such name", "nothing." + zone + " A", "insecure", 0, ""})
			continue
		}
		cases = append(cases,
			Case{text, "www." + zone + " A", "secure", 0, Address(50 + i)},
			Case{text + ", changed", "changed." + zone + " A", "bogus", 0, ""},
			Case{text + ", no such name", "nothing." + zone + " A", "secure", 0, ""})
	}
	t, err := New(zones...)
	if err != nil {
		return nil, nil, err
	}
	for i := range zones {
		if name := "changed." + zones[i].Name; t.zones[zones[i].Name].nodes[name] != nil {
			t.Tamper(name, func(m *dns.Msg) { m.Answer[0] = address(m.Answer[0], 99) })
		}
	}
	t.tamperMain()
	return t, cases, nil
}

var mainRecords = "www A " + Address(30) + `
www AAAA 2001:db8:18:7::30
www HTTPS 1 . ipv4hint=` + Address(31) + `
www MX 10 www
a.b.ent A ` + Address(33) + `
*.wild A ` + Address(32) + `
there.wild A ` + Address(34) + `
alias CNAME www
bare A ` + Address(35) + `
changed A ` + Address(36) + `
added A ` + Address(37) + `
less A ` + Address(38) + `
less A ` + Address(39) + `
renamed A ` + Address(41) + `
signer A ` + Address(42) + `
denied A ` + Address(43) + `
untyped A ` + Address(44) + `
vanished A ` + Address(45) + `
unsigned A ` + Address(46) + `
detour A ` + Address(47) + `
longer A ` + Address(40) + "\n"

const aliasRecords = `www CNAME www.main.test.
*.more CNAME www.main.test.
plain CNAME www.plain.test.
expired CNAME www.expired.test.
dname DNAME main.test.
dplain DNAME plain.test.
`

// address is a copy of an A record with another address.
func address(rr dns.RR, n int) dns.RR {
	rr = dns.Copy(rr)
	rr.(*dns.A).A = net.ParseIP(Address(n))
	return rr
}

// tamperMain changes answers as somebody on the way could, who has seen others.
func (t *Tree) tamperMain() {
	main, wild := t.zones["main.test."], "*.wild.main.test."
	signed := func(name string) []dns.RR { return main.signed(main.nodes[name][dns.TypeA]) }
	noSigs := func(m *dns.Msg) {
		sig := func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeRRSIG }
		m.Answer, m.Ns = slices.DeleteFunc(m.Answer, sig), slices.DeleteFunc(m.Ns, sig)
	}
	aliasOf := func(m *dns.Msg, target string) {
		m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 300}, Target: target}}
		t.step(m, target, m.Question[0].Qtype)
	}
	for name, change := range map[string]func(*dns.Msg){
		"stripped.test.": func(m *dns.Msg) {
			if m.Question[0].Qtype == dns.TypeDS {
				m.Answer, m.Ns = nil, t.zones["test."].signed(t.zones["test."].nodes["test."][dns.TypeSOA])
			}
		},
		"nokey.test.": func(m *dns.Msg) {
			if m.Question[0].Qtype == dns.TypeDNSKEY {
				m.Answer = nil
			}
		},
		"bare.wild.hashed.test.": func(m *dns.Msg) { m.Ns = nil },
		"any.bare.test.":         func(m *dns.Msg) { m.Ns = nil },
		"there.wild.main.test.": func(m *dns.Msg) {
			m.Answer, m.Ns = renamed(signed(wild), "there.wild.main.test."), main.denyExact("any.wild.main.test.", "wild.main.test.")
		},
		"wild.main.test.": func(m *dns.Msg) { m.Answer, m.Ns = renamed(signed(wild), "wild.main.test."), nil },
		"forged.dname.alias.test.": func(m *dns.Msg) {
			m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeCNAME })
			aliases := m.Answer
			aliasOf(m, "www.plain.test.")
			m.Answer, m.Rcode, m.Ns = append(aliases[:2:2], m.Answer...), 0, nil
		},
		"unsigned.main.test.": func(m *dns.Msg) { aliasOf(m, "www.main.test.") },
		"detour.main.test.":   func(m *dns.Msg) { aliasOf(m, "www.plain.test.") },
		"bare.main.test.":     noSigs,
		"added.main.test.":    func(m *dns.Msg) { m.Answer = append(m.Answer, address(m.Answer[0], 99)) },
		"less.main.test.":     func(m *dns.Msg) { m.Answer = m.Answer[1:] },
		"renamed.main.test.":  func(m *dns.Msg) { m.Answer = renamed(signed("www.main.test."), "renamed.main.test.") },
		"signer.main.test.": func(m *dns.Msg) {
			set := main.nodes["signer.main.test."][dns.TypeA]
			alias := t.zones["alias.test."]
			m.Answer = append(slices.Clone(set), alias.key.sign(set, alias.Name, 0))
		},
		"denied.main.test.": func(m *dns.Msg) {
			m.Answer, m.Rcode, m.Ns = nil, dns.RcodeNameError, main.deny("vanished.main.test.", "*.main.test.")
		},
		"untyped.main.test.":  func(m *dns.Msg) { m.Answer, m.Ns = nil, main.deny("untyped.main.test.") },
		"vanished.main.test.": func(m *dns.Msg) { m.Answer, m.Ns = nil, nil },
		"longer.main.test.": func(m *dns.Msg) {
			for i, rr := range m.Answer {
				m.Answer[i] = dns.Copy(rr)
				m.Answer[i].Header().Ttl = 1 << 20
			}
		},
		"forged.plain.test.": func(m *dns.Msg) { m.Answer[0] = address(m.Answer[0], 99) },
	} {
		t.Tamper(name, change)
	}
}
