package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// look has the guard tell of its server blocks.
func (d *doctor) look() bool {
	switch {
	case d.status == nil:
		d.say(unknown, "see what is said of the guard", "only the guard knows")
	case d.blocksErr != nil:
		d.say(unknown, "see what is said of the guard", "the guard does not tell: %v", d.blocksErr)
	}
	return d.status != nil && d.blocksErr == nil
}

const whoListens = "; bind in the Corefile says where CoreDNS listens, ss -lnup 'sport = 53' shows who does"

// answers looks whether CoreDNS answers where it listens for plain DNS, and listens where this
// machine's programs ask.
func (d *doctor) answers() {
	if !d.look() {
		return
	}
	var listens []netip.AddrPort
	for _, b := range d.blocks.Blocks {
		for _, text := range b.Listens {
			text, plainDNS := strings.CutPrefix(text, "dns://")
			if rest, everywhere := strings.CutPrefix(text, ":"); everywhere {
				text = "0.0.0.0:" + rest
			}
			if ap, err := netip.ParseAddrPort(text); err == nil && plainDNS && !slices.Contains(listens, ap) {
				listens = append(listens, ap)
			}
		}
	}
	good := true
	for _, at := range listens {
		if at.Addr().IsUnspecified() {
			at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
		}
		if err := d.answered(at); err != nil {
			good = false
			d.say(failure, "let it through in the firewall on lo; have bind name addresses that this machine has, and restart CoreDNS", "CoreDNS listens at %v, and does not answer there: %v", at, err)
		}
	}
	for _, at := range d.askedByPrograms() {
		if slices.ContainsFunc(listens, func(l netip.AddrPort) bool {
			return l == at || l.Addr().IsUnspecified() && l.Port() == at.Port()
		}) {
			continue
		}
		good = false
		if err := d.answered(at); err != nil {
			d.say(failure, makeResolver+whoListens, "programs ask %v, and nobody answers there: %v", at, err)
		} else {
			d.say(warning, "have programs ask where a server block with ipdestinationguard listens"+whoListens, "programs ask %v, where no server block with ipdestinationguard listens, but somebody answers", at)
		}
	}
	if good {
		d.say(fine, "", "CoreDNS answers where it listens")
	}
}

// askedByPrograms is where this machine's programs ask this machine, if they are guarded.
func (d *doctor) askedByPrograms() (all []netip.AddrPort) {
	if d.guards("forward") && !d.guards("output") {
		return nil
	}
	servers, _ := d.nameservers()
	if len(servers) == 0 {
		servers = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	for _, s := range servers {
		if d.isOwn(s) && !slices.Contains(stubs, s) {
			all = append(all, netip.AddrPortFrom(s, 53))
		}
	}
	return all
}

// answered asks something that CoreDNS answers by itself, whatever its Corefile says: EDNS of a
// version that there is not (RFC 6891 section 6.1.3).
func (d *doctor) answered(at netip.AddrPort) error {
	question := new(dns.Msg).SetQuestion(".", dns.TypeNS)
	question.SetEdns0(1232, false)
	question.IsEdns0().SetVersion(1)
	_, _, err := (&dns.Client{Timeout: 3 * time.Second}).ExchangeContext(d.ctx, question, at.String())
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return errors.New("no answer in 3 s")
	}
	return err
}

// upstream looks whether those answer who are asked by CoreDNS.
func (d *doctor) upstream() {
	if !d.look() {
		return
	}
	asked := 0
	for _, b := range d.blocks.Blocks {
		for _, f := range b.Forwards {
			asked++
			line := fmt.Sprintf("%s (%s)", f.Line, f.Place)
			more := ""
			if f.Text != "" {
				more = ": " + f.Text
			}
			switch f.Answer {
			case "":
				d.say(failure, d.makeReachable(), "%s: no answer%s", line, more)
			case dns.RcodeToString[dns.RcodeServerFailure]:
				d.say(failure, "ask it by hand (dig): it, or who it asks, is not reached or has no answer", "%s: it answers %s%s", line, f.Answer, more)
			case dns.RcodeToString[dns.RcodeSuccess], dns.RcodeToString[dns.RcodeNameError]:
				d.say(fine, "", "%s: it answers, in %v", line, time.Duration(f.Seconds*float64(time.Second)).Round(time.Millisecond))
			default:
				d.say(warning, "have it answer this machine, or forward to another", "%s: it answers %s%s", line, f.Answer, more)
			}
		}
	}
	if asked == 0 {
		d.say(fine, "", "no server block with ipdestinationguard forwards questions")
	}
}

// makeReachable is what to do where upstream is not reached.
func (d *doctor) makeReachable() string {
	const reachable = "reachable from here (ip route get ADDRESS)"
	if d.guards("forward") && !d.guards("output") {
		return "what is forwarded to must be " + reachable + "; the guard does not stand in its way in mode " + d.status.Mode
	}
	return "what is forwarded to must be in upstream, or allowed, and " + reachable + "; the log warns of what is not open"
}
