package ipdestinationguard

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// reverseTTL is short, as the address may be another name's some day.
const reverseTTL = 5

// reverse returns the answer to a question for the name of a mapped address, or nil: no
// other server knows of them. Who may not connect to an address is not told whose it is,
// nor whether it is anybody's.
func (h *Handler) reverse(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, t *routing) *dns.Msg {
	q := r.Question[0]
	of, ok := reversed(q.Name)
	if !ok || q.Qclass != dns.ClassINET || r.Opcode != dns.OpcodeQuery {
		return nil
	}
	p := t.find(of.Addr())
	if p == nil || of.Bits() < p.Bits() {
		return nil
	}
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	if !of.IsSingleIP() {
		return m // there is something below
	}
	name, known := p.NameOf(of.Addr())
	switch {
	case !known || !h.guard.mayKnow(ctx, w, r, h.policy, t, of.Addr()):
		m.Rcode = dns.RcodeNameError
		explain(m, r, dns.ExtendedErrorCodeProhibited, "an address of a route's pool, and not one that is open to you")
	case q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY:
		m.Answer = []dns.RR{&dns.PTR{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: reverseTTL},
			Ptr: dns.Fqdn(name),
		}}
	}
	return m
}

// mayKnow reports whether the asker may connect to a mapped address, or is this machine.
func (g *guard) mayKnow(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, p *policy, t *routing, addr netip.Addr) bool {
	s := g.settings.Load()
	if _, local := g.asker(s, w, r); local || g.closed.Load() {
		return local
	}
	if !s.gateway() {
		return false
	}
	scope, err := g.scope(ctx, w, r, p)
	if err != nil {
		return false
	}
	for _, scope.Class = range t.classes {
		for _, holder := range []backend.Scope{scope, {Class: scope.Class}} { // its own, or everybody's
			if g.inForce.Covers(holder.Key(addr), g.now()) {
				return true
			}
		}
	}
	return false
}

// reversed reads the name that an address has in the DNS, or that addresses have in common.
func reversed(name string) (netip.Prefix, bool) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		var b [4]byte
		labels := strings.Split(rest, ".")
		if len(labels) > len(b) {
			return netip.Prefix{}, false
		}
		for i, label := range labels {
			n, err := strconv.ParseUint(label, 10, 8)
			if err != nil || strconv.FormatUint(n, 10) != label {
				return netip.Prefix{}, false
			}
			b[len(labels)-1-i] = byte(n)
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*len(labels)), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok {
		return netip.Prefix{}, false
	}
	var b [16]byte
	labels := strings.Split(rest, ".")
	if len(labels) > 2*len(b) {
		return netip.Prefix{}, false
	}
	for i, label := range labels {
		n, err := strconv.ParseUint(label, 16, 4)
		if err != nil || len(label) != 1 {
			return netip.Prefix{}, false
		}
		at := len(labels) - 1 - i
		b[at/2] |= byte(n) << (4 * (1 - at%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 4*len(labels)), true
}
