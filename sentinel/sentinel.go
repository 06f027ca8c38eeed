// Package sentinel is a CoreDNS plugin that stands before each of a machine's nameservers with an address of its own,
// so that the machine's resolver goes on choosing among them.
package sentinel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

const name = "sentinel"

// Handler stands in the plugin chain of a server block.
type Handler struct {
	Next      plugin.Handler
	place     string // file:line of the directive
	addresses [hostdns.Slots]netip.Addr
	servers   *nameservers
	askers    *askers
}

var _ plugin.Handler = (*Handler)(nil)

// Name implements plugin.Handler.
func (*Handler) Name() string { return name }

// ServeDNS implements plugin.Handler. A question that gets no answer gets none at all: whoever asks goes on to the next
// nameserver, as with a nameserver that is dead.
func (h *Handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	slot := h.slot(w.LocalAddr())
	if slot < 0 {
		return plugin.NextOrFailure(name, h.Next, ctx, w, r)
	}
	if !h.askers.may(addrOf(w.RemoteAddr()), h.addresses[slot]) {
		questionsStrange.Inc()
		return silence(w, nil)
	}
	servers := h.servers.now()
	if asksUs(r) {
		return h.tell(w, r, servers)
	}
	if slot >= len(servers) {
		questionsUnused.Inc()
		return silence(w, nil)
	}
	s := servers[slot]
	if h.addresses[slot].Is6() && !overTCP(w) && !s.dead() {
		questionsTruncated.Inc()
		return sendToTCP(w, r)
	}
	rcode, err := s.serve(ctx, w, r)
	if err != nil && rcode == dns.RcodeServerFailure {
		questionsDead.Inc()
		if err == errDead {
			return silence(w, nil) // it has been told of
		}
		return silence(w, fmt.Errorf("nameserver %s of sentinel %v: %w", s.text, h.addresses[slot], err))
	}
	questionsForwarded.Inc()
	return rcode, err
}

// slot is which nameserver an address stands before, or -1.
func (h *Handler) slot(local net.Addr) int {
	addr := addrOf(local)
	for i, a := range h.addresses {
		if a == addr {
			return i
		}
	}
	return -1
}

// silence leaves a question without an answer. Over TCP the connection ends: it is the nameserver's.
func silence(w dns.ResponseWriter, err error) (int, error) {
	if overTCP(w) {
		_ = w.Close() // it may be closed
	}
	return dns.RcodeSuccess, err // with another code the server would answer
}

func overTCP(w dns.ResponseWriter) bool {
	remote := w.RemoteAddr()
	return remote != nil && strings.HasPrefix(remote.Network(), "tcp")
}

// sendToTCP has whoever asks do so by TCP. Linux takes IPv6 packets from a wire although their source is an address of
// the machine itself: so a stranger could ask for it by UDP, blindly, and have names opened. By TCP nobody can.
func sendToTCP(w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable, m.Truncated = true, true
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// asksUs reports whether a question is for the sentinels themselves.
func asksUs(r *dns.Msg) bool {
	return len(r.Question) == 1 && r.Question[0].Qclass == dns.ClassCHAOS && r.Question[0].Qtype == dns.TypeTXT &&
		strings.EqualFold(r.Question[0].Name, hostdns.Question)
}

// tell answers which sentinels are in use, and how their nameservers are.
func (h *Handler) tell(w dns.ResponseWriter, r *dns.Msg, servers []*nameserver) (int, error) {
	m := new(dns.Msg).SetReply(r)
	m.Authoritative = true
	for i, s := range servers {
		state := hostdns.Alive
		if s.dead() {
			state = hostdns.Dead
		}
		m.Answer = append(m.Answer, &dns.TXT{
			Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassCHAOS},
			Txt: []string{h.addresses[i].String(), state, s.text},
		})
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}
