package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// What whoever owns a name can have it answer. In a record {name} is what was asked
// for, {to} the address that is to be reached, {A} the type for it, and {hint} that
// of SVCB. The section stands first.
var answers = []attack{
	{name: "a name's address", attempt: answer("answer {name} 60 IN {A} {to}"), end: isGiven},
	{name: "somebody else's record", attempt: answer("answer bank.test. 60 IN {A} {to}"), end: isOther},
	{name: "a record of the zone above", attempt: answer("answer evil.test. 60 IN {A} {to}"), end: isOther},
	{name: "a record of a name below", attempt: answer("answer x.{name} 60 IN {A} {to}"), end: isOther},
	{name: "an alias, and the record of another", attempt: answer("answer {name} 60 IN CNAME a.test.", "answer b.test. 60 IN {A} {to}"), end: isOther},
	{name: "an alias of somebody else", attempt: answer("answer b.test. 60 IN CNAME a.test.", "answer a.test. 60 IN {A} {to}"), end: isOther},
	{name: "another type than was asked for", attempt: answer("answer {name} 60 IN HTTPS 1 . {hint}={to}"), end: isOther},
	{name: "another class", attempt: answer("answer {name} 60 CH {A} {to}"), end: isOther},
	{name: "the authority section", attempt: answer("authority {name} 60 IN {A} {to}"), end: isOther},
	{name: "the additional section", attempt: answer("additional {name} 60 IN {A} {to}"), end: isOther},
	{name: "glue", attempt: answer("authority evil.test. 60 IN NS ns.evil.test.", "additional ns.evil.test. 60 IN {A} {to}"), end: isOther},
	{name: "a name that does not exist, with an address", attempt: answer("rcode NXDOMAIN", "answer {name} 60 IN {A} {to}"), end: isOther},
	{name: "a refusal with an address", attempt: answer("rcode REFUSED", "answer {name} 60 IN {A} {to}"), end: isOther},
	{name: "the owner in other letters", attempt: answerAs(strings.ToUpper, "answer {name} 60 IN {A} {to}"), end: isGiven},

	{name: "an answer to another question", attempt: answer("question bank.test.", "answer bank.test. 60 IN {A} {to}"), end: "FORMERR"},
	{name: "another answer before", attempt: spoofed, end: isNothing},

	{name: "aliases in a circle", attempt: answer("answer {name} 60 IN CNAME b.test.", "answer b.test. 60 IN CNAME {name}", "answer b.test. 60 IN {A} {to}"), end: isGiven},
	{name: "an alias of itself", attempt: answer("answer {name} 60 IN CNAME {name}", "answer {name} 60 IN {A} {to}"), end: isGiven},
	{name: "many aliases of one name", attempt: answer(slices.Concat(repeat(40, "answer {name} 60 IN CNAME a%d.test."), []string{"answer a39.test. 60 IN {A} {to}"})...), end: "SERVFAIL"},
	{name: "a chain of 30 aliases", attempt: answer(chain(30)...), end: isGiven},
	{name: "a chain of 40 aliases", attempt: answer(chain(40)...), end: "SERVFAIL"},
	{name: "a chain of 1,000 aliases", attempt: answer(chain(1000)...), end: "SERVFAIL"},
	{name: "DNAME of the root", attempt: answer("answer . 60 IN DNAME .", "answer {name} 60 IN {A} {to}"), end: isGiven},
	{name: "DNAME that does not match", attempt: answer("answer il.test. 60 IN DNAME other.", "answer x.ev.other. 60 IN {A} {to}"), end: isOther},

	{name: "TTL 0", attempt: lasts("answer {name} 0 IN {A} {to}"), end: isGiven},
	{name: "TTL of 68 years", attempt: lasts("answer {name} 2147483647 IN {A} {to}"), end: isGiven},
	{name: "TTL below 0 (RFC 2181, section 8)", attempt: lasts("answer {name} 2147483648 IN {A} {to}"), end: isGiven},
	{name: "TTL of all ones", attempt: lasts("answer {name} 4294967295 IN {A} {to}"), end: isGiven},
	{name: "4,000 records", attempt: many(4000), end: isGiven},
	{name: "5,000 hints", attempt: answer("type HTTPS", "answer {name} 60 IN HTTPS 1 . ipv4hint=198.19.255.255"+strings.Repeat(",198.19.255.255", 4999)), end: isStripped},

	{name: "rebinding", attempt: rebinds(
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.1.2.3", "127.255.255.254",
		"169.254.1.1", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.8", "192.0.0.170", "192.0.0.171", "192.88.99.1",
		"192.168.0.1", "192.168.50.1", "192.168.50.2", "192.168.255.254", "198.51.100.7", "203.0.113.7",
		"224.0.0.251", "239.255.255.250", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::2", "::10.0.0.1", "::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1", "100::1", "2001:2::1", "2001:10::1",
		"3fff::1", "5f00::1", "fc00::1", "fd12:3456:789a::1", "fd50::1", "fd50::2", "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "4000::1",
	), end: isStripped},
	{name: "rebinding to the cloud's metadata", attempt: rebinds(
		"169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.42.42", "169.254.0.23", "100.100.100.200", "168.63.129.16", "192.0.0.192",
		"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::100:200", "fe80::a9fe:a9fe",
	), end: isStripped},
	{name: "rebinding by IPv4 within IPv6", attempt: rebinds(
		"::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:192.168.50.1", "::ffff:0.0.0.0",
		"64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::192.168.50.1",
		"2002:a00:1::1", "2002:7f00:1::1", "2002:a9fe:a9fe::", "2002:c0a8:3201::1",
		"2001:0:a00:1:0:ffff:f6f6:f6f6", "2001:0:808:808:0:ffff:f5ff:fffe", "2001:0:808:808:0:ffff:5601:5601",
		"2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:192.168.1.1", "2002:808:808::5efe:10.0.0.1",
	), end: isStripped},
	{name: "rebinding to the machine itself", attempt: rebinds(guard4, guard6, gateway4, gateway6), end: isStripped},
	{name: "rebinding behind an alias", attempt: rebindsBy("answer {name} 60 IN CNAME intranet.test.", "answer intranet.test. 60 IN {A} {to}"), end: isStripped},
	{name: "rebinding by the name of somebody who may", zone: "private **.corp.test 0.0.0.0/0 ::/0",
		attempt: rebindsBy("answer {name} 60 IN CNAME nas.corp.test.", "answer nas.corp.test. 60 IN {A} {to}"), end: isStripped},
	{name: "rebinding besides", attempt: rebindsBy("answer {name} 60 IN {A} 198.18.1.200", "additional {name} 60 IN {A} {to}"), end: isStripped},
	{name: "rebinding in somebody else's record", attempt: rebindsBy("answer bank.test. 60 IN {A} {to}"), end: isStripped},
	{name: "rebinding by hints", attempt: rebindsBy("type HTTPS", "answer {name} 60 IN HTTPS 1 . alpn=h2 {hint}={to}"), end: isStripped},
	{name: "rebinding by hints of another name", attempt: rebindsBy("type HTTPS", "answer {name} 60 IN HTTPS 1 svc.test. alpn=h2", "additional svc.test. 60 IN {A} {to}"), end: isStripped},
	{name: "rebinding by mail servers", attempt: rebindsBy("type MX", "answer {name} 60 IN MX 10 mail.test.", "additional mail.test. 60 IN {A} {to}"), end: isStripped},

	{name: "odd bytes in the name", zone: "canary on", attempt: oddBytes, end: isStripped},
}

// What clients can ask. The name has the address.
var questions = []attack{
	{name: "over TCP", attempt: asks("tcp", nil), end: isGiven},
	{name: "20 questions at once over TCP", attempt: pipelined, end: isGiven},
	{name: "letters of random case", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Name = strings.ToUpper(m.Question[0].Name) }), end: isGiven},
	{name: "CD, AD and DO", attempt: asks("udp", func(m *dns.Msg) {
		m.CheckingDisabled, m.AuthenticatedData = true, true
		m.SetEdns0(1232, true)
	}), end: isGiven},
	{name: "all other flags", attempt: asks("udp", func(m *dns.Msg) { m.Authoritative, m.Truncated, m.RecursionAvailable, m.Zero = true, true, true, true }), end: isGiven},
	{name: "no recursion wanted", attempt: asks("udp", func(m *dns.Msg) { m.RecursionDesired = false }), end: isGiven},
	{name: "a response", attempt: asksFor(time.Second, "udp", func(m *dns.Msg) { m.Response = true }), end: isUnheard},
	{name: "two questions", attempt: asks("udp", func(m *dns.Msg) {
		m.Question = append(m.Question, dns.Question{Name: "test.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
	}), end: "FORMERR"},
	{name: "no question", attempt: asks("udp", func(m *dns.Msg) { m.Question = nil }), end: "FORMERR"},
	{name: "an answer within the question", attempt: asks("udp", func(m *dns.Msg) {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(198, 19, 255, 1)}}
	}), end: isGiven},
	{name: "class CHAOS", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), end: isGiven},
	{name: "class ANY", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), end: isGiven},
	{name: "type ANY", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }), end: isGiven},
	{name: "type 0", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Qtype = 0 }), end: isOther},
	{name: "type OPT", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeOPT }), end: isOther},
	{name: "a zone transfer", attempt: asks("tcp", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), end: isOther},
	{name: "a part of a zone", attempt: asks("udp", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }), end: isOther},
	{name: "NOTIFY", attempt: asks("udp", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), end: isGiven},
	{name: "UPDATE", attempt: asks("udp", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), end: "NOTIMP"},
	{name: "an opcode that is none", attempt: asks("udp", func(m *dns.Msg) { m.Opcode = 15 }), end: "NOTIMP"},

	{name: "no EDNS", attempt: asks("udp", func(m *dns.Msg) { m.Extra = nil }), end: isGiven},
	{name: "EDNS version 1", attempt: asks("udp", func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), end: "BADVERS"},
	{name: "two OPT records", attempt: asks("udp", func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), end: isGiven},
	{name: "EDNS with room for nothing", attempt: asks("udp", func(m *dns.Msg) { m.IsEdns0().SetUDPSize(0) }), end: isGiven},
	{name: "EDNS with room for everything", attempt: asks("udp", func(m *dns.Msg) { m.IsEdns0().SetUDPSize(65535) }), end: isGiven},
	{name: "EDNS with unknown options", attempt: asksWith(&dns.EDNS0_LOCAL{Code: 65001, Data: make([]byte, 400)}, &dns.EDNS0_LOCAL{Code: 0}), end: isGiven},
	{name: "EDNS with everything that is known", attempt: asksWith(&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"},
		&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE, Timeout: 1}, &dns.EDNS0_PADDING{Padding: make([]byte, 100)},
		&dns.EDNS0_EDE{InfoCode: 17, ExtraText: "mine"}, &dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE}), end: isGiven},
	{name: "EDNS with many options", attempt: asksWith(slices.Repeat([]dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001}}, 100)...), end: isGiven},
	{name: "Client Subnet of another client", attempt: asksWith(subnet(1, 32, neighbour4)), end: isGiven},
	{name: "Client Subnet of another client (IPv6)", attempt: asksWith(subnet(2, 128, neighbour6)), end: isGiven},
	{name: "Client Subnet of a network", attempt: asksWith(subnet(1, 8, "10.0.0.0")), end: isGiven},
	{name: "Client Subnet twice", attempt: asksWith(subnet(1, 32, neighbour4), subnet(1, 32, client4)), end: isGiven},
	{name: "Client Subnet that is malformed", attempt: asksWith(&dns.EDNS0_LOCAL{Code: dns.EDNS0SUBNET, Data: []byte{0, 1, 200, 0, 10, 0, 0, 1}}), end: "FORMERR"},
	{name: "Client Subnet of no family", attempt: asksWith(&dns.EDNS0_LOCAL{Code: dns.EDNS0SUBNET, Data: []byte{0, 9, 32, 0, 10, 0, 0, 1}}), end: "FORMERR"},
	{name: "Client Subnet that is cut off", attempt: asksWith(&dns.EDNS0_LOCAL{Code: dns.EDNS0SUBNET, Data: []byte{0, 1}}), end: "FORMERR"},

	{name: "a name that may not be asked for", zone: "except *.evil.test\n\tothers refuse", attempt: asks("udp", nil), end: "REFUSED"},
	{name: "a name that opens nothing", zone: "names **.good.test", attempt: asks("udp", nil), end: isOther},
	{name: "a name that ends in another's letters", zone: "names **.vil.test vil.test *.test evil.test\n\tothers refuse", attempt: asks("udp", nil), end: "REFUSED"},
}

const hostilePort = 5300

// hostileBlock has options of its own.
func hostileBlock(options string) string {
	return guardedBlock("evil.test", "ipdestinationguard {\n\t"+options+"\n}", fmt.Sprintf("forward . %s:%d {\n\tmax_fails 0\n\t}", resolver4, hostilePort))
}

// hostileZone answers each name as it was told.
type hostileZone struct {
	made atomic.Int64

	mu    sync.Mutex // guards names
	names map[string]func(name string, query *dns.Msg) []*dns.Msg
}

// name makes a new name which is answered so.
func (z *hostileZone) name(answer func(name string, query *dns.Msg) []*dns.Msg) string {
	name := fmt.Sprintf("x%d.evil.test.", z.made.Add(1))
	z.set(name, answer)
	return name
}

func (z *hostileZone) set(name string, answer func(name string, query *dns.Msg) []*dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.names == nil {
		z.names = map[string]func(string, *dns.Msg) []*dns.Msg{}
	}
	z.names[name] = answer
}

// ServeDNS implements dns.Handler.
func (z *hostileZone) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	z.mu.Lock()
	name := strings.ToLower(query.Question[0].Name)
	answer := z.names[name]
	z.mu.Unlock()
	if answer == nil {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(query, dns.RcodeRefused))
		return
	}
	for _, m := range answer(name, query) {
		if _, ok := w.RemoteAddr().(*net.UDPAddr); ok && m.Len() > 4096 {
			m = new(dns.Msg).SetReply(query)
			m.Truncated = true
		}
		_ = w.WriteMsg(m)
	}
}

// compose makes an answer of lines.
func (a *attacker) compose(query *dns.Msg, name string, lines []string) *dns.Msg {
	m := new(dns.Msg).SetReply(query)
	kind, hint := "A", "ipv4hint"
	if !is4(a.to) || strings.Contains(a.to, ":") {
		kind, hint = "AAAA", "ipv6hint"
	}
	place := strings.NewReplacer("{name}", name, "{to}", a.to, "{A}", kind, "{hint}", hint)
	for _, line := range lines {
		what, text, _ := strings.Cut(line, " ")
		if what == "rcode" {
			m.Rcode = dns.StringToRcode[text]
			continue
		} else if what == "type" {
			continue
		} else if what == "question" {
			m.Question[0].Name = text
			continue
		}
		if kind == "AAAA" {
			text = strings.Replace(text, "{A} 198.18.1.200", "{A} 2001:db8:18:1::c8", 1)
		}
		rr, err := dns.NewRR(place.Replace(text))
		if err != nil {
			panic(err)
		}
		section := map[string]*[]dns.RR{"answer": &m.Answer, "authority": &m.Ns, "additional": &m.Extra}[what]
		*section = append(*section, rr)
	}
	return m
}

// answer asks for a name that is answered by the lines.
func answer(lines ...string) func(*attacker) string {
	return answerAs(func(name string) string { return name }, lines...)
}

func answerAs(owner func(name string) string, lines ...string) func(*attacker) string {
	return func(a *attacker) string {
		name := a.zone.name(func(name string, query *dns.Msg) []*dns.Msg { return []*dns.Msg{a.compose(query, owner(name), lines)} })
		m := a.question(name)
		for _, line := range lines {
			if kind, ok := strings.CutPrefix(line, "type "); ok {
				m.Question[0].Qtype = dns.StringToType[kind]
			}
		}
		return a.told(a.exchange("udp", m))
	}
}

// spoofed is answered by somebody who does not know the question's number, and then
// by the upstream, which has no address.
func spoofed(a *attacker) string {
	name := a.zone.name(func(name string, query *dns.Msg) []*dns.Msg {
		spoof := a.compose(query, name, []string{"answer {name} 60 IN {A} {to}"})
		spoof.Id++
		return []*dns.Msg{spoof, new(dns.Msg).SetReply(query)}
	})
	return a.told(a.exchange("udp", a.question(name)))
}

// question asks for the type of the address.
func (a *attacker) question(name string) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	if strings.Contains(a.to, ":") {
		m.Question[0].Qtype = dns.TypeAAAA
	}
	return m.SetEdns0(4096, false)
}

// server is where the attacker asks: over the IP version of the address.
func (a *attacker) server() string {
	if is4(a.to) {
		return a.resolver4
	}
	return a.resolver6
}

// exchange asks, and once more over TCP where the answer says so.
func (a *attacker) exchange(network string, m *dns.Msg) (*dns.Msg, error) {
	answer, err := exchange(a.Host, network, a.server(), m)
	if err == nil && answer.Truncated && network == "udp" {
		return exchange(a.Host, "tcp", a.server(), m)
	}
	return answer, err
}

// told says what came of a question, and whether what it was about is open now.
func (a *attacker) told(m *dns.Msg, err error) string {
	var timeout net.Error
	given := err == nil && slices.Contains(everyAddress(m), netip.MustParseAddr(a.to).Unmap())
	before := a.came(a.own())
	open := a.try(context.Background(), a.Host, a.to) == nil || a.came(a.own()) > before
	switch {
	case open && !given:
		return fmt.Sprintf("open, but not given: %v %v", m, err)
	case open:
		return isGiven
	case given:
		return isOther
	case errors.As(err, &timeout) && timeout.Timeout():
		return isUnheard
	case err != nil:
		return err.Error()
	case m.Rcode != dns.RcodeSuccess:
		if m.Rcode == dns.RcodeBadVers {
			return "BADVERS" // the map has TSIG's name for it
		}
		return dns.RcodeToString[m.Rcode]
	case filtered(m):
		return isStripped
	}
	return isNothing
}

// everyAddress is every one in a message, wherever it stands.
func everyAddress(m *dns.Msg) (all []netip.Addr) {
	add := func(ips ...net.IP) {
		for _, ip := range ips {
			addr, _ := netip.AddrFromSlice(ip)
			all = append(all, addr.Unmap())
		}
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		var hints []dns.SVCBKeyValue
		switch rr := rr.(type) {
		case *dns.A:
			add(rr.A)
		case *dns.AAAA:
			add(rr.AAAA)
		case *dns.HTTPS:
			hints = rr.Value
		case *dns.SVCB:
			hints = rr.Value
		}
		for _, v := range hints {
			switch v := v.(type) {
			case *dns.SVCBIPv4Hint:
				add(v.Hint...)
			case *dns.SVCBIPv6Hint:
				add(v.Hint...)
			}
		}
	}
	return all
}

func repeat(n int, format string) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf(format, i))
	}
	return lines
}

// chain leads over n aliases to the address.
func chain(n int) []string {
	lines := []string{"answer {name} 60 IN CNAME a0.test."}
	for i := range n - 1 {
		lines = append(lines, fmt.Sprintf("answer a%d.test. 60 IN CNAME a%d.test.", i, i+1))
	}
	return append(lines, fmt.Sprintf("answer a%d.test. 60 IN {A} {to}", n-1))
}

// lasts checks besides that the grant does not last for longer than the ceiling.
func lasts(line string) func(*attacker) string {
	return func(a *attacker) string {
		end := answer(line)(a)
		if most := time.Now().Add(24*time.Hour + 31*time.Second); a.grants()[netip.MustParseAddr(a.to)].to.After(most) {
			end += " for too long"
		}
		return end
	}
}

// many gives so many addresses, all of which have to be granted.
func many(n int) func(*attacker) string {
	return func(a *attacker) string {
		if !is4(a.to) {
			return "" // there is no room for as many
		}
		third := 128
		if a.Host == a.guard {
			third += 64
		}
		lines := []string{"answer {name} 60 IN A {to}"}
		for i := range n - 1 {
			lines = append(lines, fmt.Sprintf("answer {name} 60 IN A 198.19.%d.%d", third+i>>8, i&0xff))
		}
		name := a.zone.name(func(name string, query *dns.Msg) []*dns.Msg {
			m := a.compose(query, name, lines)
			m.Compress = true
			return []*dns.Msg{m}
		})
		m, err := a.exchange("tcp", a.question(name))
		end := a.told(m, err)
		if end != isGiven {
			return end
		}
		granted := a.grants()
		for _, addr := range everyAddress(m) {
			if _, ok := granted[addr]; !ok {
				return fmt.Sprintf("%v was given and not granted", addr)
			}
		}
		return fmt.Sprint(end)
	}
}

// rebinds has a name mean each of several addresses.
func rebinds(addrs ...string) func(*attacker) string {
	return rebindsTo(addrs, "answer {name} 60 IN {A} {to}")
}

// rebindsBy has it mean some in a certain way.
func rebindsBy(lines ...string) func(*attacker) string {
	return rebindsTo([]string{"10.0.0.1", "127.0.0.1", "169.254.169.254", gateway4, "::1", "fd00::1", "fd00:ec2::254", gateway6}, lines...)
}

func rebindsTo(addrs []string, lines ...string) func(*attacker) string {
	return func(a *attacker) string {
		var mu sync.Mutex
		ends := map[string][]string{}
		together(addrs, func(addr string) {
			if strings.Contains(addr, ":") == is4(a.to) {
				return
			}
			end := answer(lines...)(a.upon(addr))
			if _, granted := a.grants()[netip.MustParseAddr(addr).Unmap()]; granted {
				end += " and granted"
			}
			mu.Lock()
			defer mu.Unlock()
			ends[end] = append(ends[end], addr)
		})
		for end := range ends {
			if len(ends) == 1 {
				return end
			}
		}
		if len(ends) == 0 {
			return ""
		}
		return fmt.Sprint(ends)
	}
}

// oddBytes has a name with all that a terminal or a reader of logs may take amiss.
func oddBytes(a *attacker) string {
	const odd = `\000\007\010\027[31m\010\013\127\255\"` + "\x5c\x3b" + `%s{}$.`
	name := odd + a.zone.name(nil)
	a.zone.set(strings.ToLower(name), func(name string, query *dns.Msg) []*dns.Msg {
		return []*dns.Msg{a.upon("10.0.0.1").compose(query, query.Question[0].Name, []string{"answer {name} 60 IN A {to}"})}
	})
	m, err := exchange(a.Host, "udp", a.server(), new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, false))
	if end := a.upon("10.0.0.1").told(m, err); end != isStripped {
		return end
	}
	if !strings.Contains(a.coredns.Output(), `\027[31m`) {
		return "not in the log"
	}
	return isStripped
}

// wantPrintable checks a log: nobody writes into it what a terminal obeys.
func wantPrintable(t *testing.T, log string) {
	t.Helper()
	if i := strings.IndexFunc(log, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r > '~' }); i >= 0 {
		t.Errorf("the log is not printable: %q", log[max(i-200, 0):min(i+100, len(log))])
	}
}

// given is a name that has the address.
func (a *attacker) given() string {
	return a.zone.name(func(name string, query *dns.Msg) []*dns.Msg {
		return []*dns.Msg{a.compose(query, name, []string{"answer {name} 60 IN {A} {to}"})}
	})
}

// asks asks for it in some way.
func asks(network string, how func(*dns.Msg)) func(*attacker) string {
	return asksFor(20*time.Second, network, how)
}

// asksFor waits no longer than that for an answer.
func asksFor(within time.Duration, network string, how func(*dns.Msg)) func(*attacker) string {
	return func(a *attacker) string {
		m := a.question(a.given())
		if how != nil {
			how(m)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn, err := a.Dial(ctx, network, net.JoinHostPort(a.server(), "53"))
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		// Without the client's own checks.
		packed, err := m.Pack()
		if err != nil {
			return err.Error()
		}
		d := &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize}
		_ = d.SetDeadline(time.Now().Add(within))
		if _, err = d.Write(packed); err != nil {
			return err.Error()
		}
		answer, err := d.ReadMsg()
		return a.told(answer, err)
	}
}

// asksWith has EDNS options in the question.
func asksWith(options ...dns.EDNS0) func(*attacker) string {
	return asks("udp", func(m *dns.Msg) { m.IsEdns0().Option = options })
}

func subnet(family uint16, bits uint8, addr string) dns.EDNS0 {
	return &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: bits, Address: net.ParseIP(addr)}
}

// pipelined asks the same 20 times without waiting.
func pipelined(a *attacker) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := a.Dial(ctx, "tcp", net.JoinHostPort(a.server(), "53"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	d := &dns.Conn{Conn: conn}
	_ = d.SetDeadline(time.Now().Add(20 * time.Second))
	for i := range 20 {
		m := a.question(a.given())
		m.Id = uint16(i)
		if err := d.WriteMsg(m); err != nil {
			return err.Error()
		}
	}
	for range 19 {
		switch m, err := d.ReadMsg(); {
		case err != nil:
			return err.Error()
		case len(m.Answer) != 1:
			return m.String()
		}
		if err := a.connect(a.Host, "tcp", a.to); err != nil {
			return err.Error()
		}
	}
	return a.told(d.ReadMsg())
}

// looksUp asks another resolver.
func looksUp(ipv4, ipv6 string) func(*attacker) string {
	return func(a *attacker) string {
		server := ipv6
		if is4(a.to) {
			server = ipv4
		}
		return a.told(exchange(a.Host, "udp", server, a.question(nameOf(60, a.to))))
	}
}

// asksImpostor asks a program on the gateway, one of the user that CoreDNS runs as,
// which has put itself in its place at one address.
func asksImpostor(a *attacker) string {
	var conn net.PacketConn
	err := a.guard.Do(func() (err error) {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
			return err
		}}
		conn, err = config.ListenPacket(context.Background(), "udp", net.JoinHostPort(a.server(), "53"))
		return err
	})
	if err != nil {
		return err.Error()
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, Handler: netlab.Zone(), NotifyStartedFunc: func() { close(started) }}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	<-started
	defer func() { _ = server.Shutdown(); <-done }()
	return a.told(exchange(a.Host, "udp", a.server(), a.question(nameOf(60, a.to))))
}
