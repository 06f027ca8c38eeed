package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// sentinel is one that is in use.
type sentinel struct {
	addr       netip.Addr
	alive      bool
	nameserver string
}

// askWithin is how long CoreDNS has to answer. It is on this machine and asks nobody for that.
const askWithin = time.Second

// askSentinels returns which are in use. An error says that CoreDNS does not answer.
func askSentinels() ([]sentinel, error) {
	all, err := askAt(hostdns.Addresses(hostdns.IPv4)[0])
	if err != nil {
		var err6 error
		if all, err6 = askAt(hostdns.Addresses(hostdns.IPv6)[0]); err6 == nil {
			return all, nil
		}
	}
	return all, err
}

func askAt(addr netip.Addr) ([]sentinel, error) {
	q := new(dns.Msg).SetQuestion(hostdns.Question, dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	q.SetEdns0(4096, false)
	// From the address itself: if it is not on this machine, nobody outside is asked, who might answer.
	from := &net.Dialer{Timeout: askWithin, LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))}
	m, _, err := (&dns.Client{Timeout: askWithin, Dialer: from}).Exchange(q, net.JoinHostPort(addr.String(), "53"))
	if err != nil {
		return nil, fmt.Errorf("nothing answers at %v: %w", addr, err)
	}
	if m.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%v answers %s, so it is not the sentinel plugin that does, or others refuse keeps the question from it (names %s lets it)",
			addr, dns.RcodeToString[m.Rcode], strings.TrimSuffix(hostdns.Question, "."))
	}
	return readAnswer(m), nil
}

// anyAnswers reports whether one of these answers to whoever asks on this machine. What the answer is does not matter.
func anyAnswers(servers []netip.Addr) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*askWithin)
	defer cancel()
	for _, addr := range servers {
		q := new(dns.Msg).SetQuestion(".", dns.TypeNS)
		if _, _, err := (&dns.Client{Timeout: askWithin}).ExchangeContext(ctx, q, net.JoinHostPort(addr.String(), "53")); err == nil {
			return true
		}
	}
	return false
}

// readAnswer takes what is as it should be.
func readAnswer(m *dns.Msg) (all []sentinel) {
	for _, rr := range m.Answer {
		txt, ok := rr.(*dns.TXT)
		if !ok || len(txt.Txt) != 3 || len(all) == hostdns.Slots {
			continue
		}
		if addr, err := netip.ParseAddr(txt.Txt[0]); err == nil && hostdns.IsSentinel(addr) {
			all = append(all, sentinel{addr, txt.Txt[1] == hostdns.Alive, txt.Txt[2]})
		}
	}
	return all
}

func addrsOf(all []sentinel) (addrs []netip.Addr) {
	for _, s := range all {
		addrs = append(addrs, s.addr)
	}
	return addrs
}
