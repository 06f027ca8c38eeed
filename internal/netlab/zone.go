package netlab

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Zone is an authority for every name. It has no data: a name's labels say what is to be answered,
// so a test sees in one place what it asks and what it gets.
//
//	label              says
//	a-192-0-2-1        an A record; any number of them
//	aaaa-2001-db8--1   an AAAA record, "-" for ":"; any number of them
//	ttl-5              the TTL of all records of the name, 60 without it; the leftmost counts
//	nx                 the name does not exist: NXDOMAIN
//	cname-x            the name is an alias of what follows this label; x tells aliases apart
//	any other          nothing
//
//	a-198-18-1-2.ttl-3.test.                  3 IN A     198.18.1.2
//	a-198-18-1-2.aaaa-2001-db8--1.test.      60 IN A     198.18.1.2       (asked for A)
//	a-198-18-1-2.aaaa-2001-db8--1.test.      60 IN AAAA  2001:db8::1      (asked for AAAA)
//	www.ttl-9.cname-1.a-198-18-1-2.test.      9 IN CNAME a-198-18-1-2.test.
//	a-198-18-1-2.test.                       60 IN A     198.18.1.2       (in the same answer)
//	nx.ttl-2.test.                            2 IN SOA   NXDOMAIN
//	www.test.                                60 IN SOA   no data
func Zone() dns.Handler { return dns.HandlerFunc(serveZone) }

func serveZone(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	if len(query.Question) != 1 {
		_ = w.WriteMsg(reply.SetRcodeFormatError(query))
		return
	}
	reply.SetReply(query)
	reply.Authoritative = true
	size := dns.MinMsgSize
	if opt := query.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
		reply.SetEdns0(opt.UDPSize(), opt.Do())
	}
	answerZone(reply, query.Question[0])
	if w.RemoteAddr().Network() == "udp" {
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply) // the client has gone, or will ask again
}

// answerZone follows the aliases from the name asked for to the one with the records.
func answerZone(reply *dns.Msg, q dns.Question) {
	name := readName(q.Name)
	for name.alias != "" {
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: name.header(dns.TypeCNAME), Target: name.alias})
		if q.Qtype == dns.TypeCNAME {
			return
		}
		name = readName(name.alias)
	}
	found := len(reply.Answer)
	for _, addr := range name.addrs {
		switch {
		case q.Qtype == dns.TypeA && addr.Is4():
			reply.Answer = append(reply.Answer, &dns.A{Hdr: name.header(dns.TypeA), A: addr.AsSlice()})
		case q.Qtype == dns.TypeAAAA && addr.Is6():
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: name.header(dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	if name.missing {
		reply.Answer, reply.Rcode = reply.Answer[:found], dns.RcodeNameError
	}
	if len(reply.Answer) == found {
		reply.Ns = []dns.RR{name.soa()} // RFC 2308 section 3: how long nothing may be cached
	}
}

// zoneName is what the labels of a name say.
type zoneName struct {
	owner   string
	ttl     uint32
	addrs   []netip.Addr
	alias   string // "" when the name is none
	missing bool
}

func readName(owner string) zoneName {
	name := zoneName{owner: owner, ttl: 60}
	hasTTL := false
	for at, end := 0, false; !end; {
		next, last := dns.NextLabel(owner, at)
		label := strings.ToLower(strings.TrimSuffix(owner[at:next], "."))
		kind, value, _ := strings.Cut(label, "-")
		switch kind {
		case "a":
			name.add(strings.ReplaceAll(value, "-", "."), netip.Addr.Is4)
		case "aaaa":
			name.add(strings.ReplaceAll(value, "-", ":"), netip.Addr.Is6)
		case "ttl":
			if ttl, err := strconv.ParseUint(value, 10, 32); err == nil && !hasTTL {
				name.ttl, hasTTL = uint32(ttl), true
			}
		case "nx":
			name.missing = name.missing || value == ""
		case "cname":
			if value != "" && !last {
				name.alias = owner[next:]
			}
		}
		if name.alias != "" && !hasTTL {
			name.ttl = readName(name.alias).ttl
		}
		at, end = next, last || name.alias != ""
	}
	return name
}

// add takes a label which is no address for one that says nothing.
func (n *zoneName) add(text string, family func(netip.Addr) bool) {
	if addr, err := netip.ParseAddr(text); err == nil && family(addr) {
		n.addrs = append(n.addrs, addr)
	}
}

func (n *zoneName) header(rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: n.owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: n.ttl}
}

// soa stands for the zone above, which is the last label.
func (n *zoneName) soa() dns.RR {
	top := n.owner
	if starts := dns.Split(n.owner); len(starts) > 0 {
		top = n.owner[starts[len(starts)-1]:]
	}
	header := n.header(dns.TypeSOA)
	header.Name = top
	return &dns.SOA{Hdr: header, Ns: top, Mbox: top, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: n.ttl}
}
