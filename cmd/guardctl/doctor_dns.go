package main

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// nameservers are those of resolv.conf that are addresses.
func (d *doctor) nameservers() (all []netip.Addr, ok bool) {
	text, ok := d.read("etc/resolv.conf")
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				all = append(all, a)
			}
		}
	}
	return all, ok
}

// stub is where systemd-resolved answers.
var stubs = []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("127.0.0.54")}

const makeResolver = "put nameserver 127.0.0.1 there, and nothing else (deployment/README.md, step 5), and keep the DHCP client from changing it"

// resolvConf looks whom this machine's programs ask.
func (d *doctor) resolvConf() {
	if d.unguarded() {
		return
	}
	all, ok := d.nameservers()
	switch {
	case !ok:
		d.say(warning, makeResolver, "there is no /etc/resolv.conf: programs ask 127.0.0.1")
	case len(all) == 0:
		d.say(warning, makeResolver, "it names no server: programs ask 127.0.0.1")
	}
	good := len(all) > 0
	for _, a := range all {
		switch {
		case slices.Contains(stubs, a):
			good = false
			d.say(warning, makeResolver+"; or have systemd-resolved ask CoreDNS alone (DNS=127.0.0.1 and Domains=~. in resolved.conf), and with scope application write shared_resolver systemd-resolved.service",
				"programs ask systemd-resolved (%v), which asks for all of them", a)
		case !d.isOwn(a):
			good = false
			l := warning
			if d.guards("output") {
				l = failure
			}
			d.say(l, makeResolver, "programs ask %v, which is not this machine: what it answers opens nothing", a)
		}
	}
	if good {
		d.say(fine, "", "this machine's programs ask CoreDNS")
	}
}

// nsswitch looks whether programs ask DNS at all.
func (d *doctor) nsswitch() {
	if d.unguarded() {
		return
	}
	text, ok := d.read("etc/nsswitch.conf")
	if !ok {
		d.say(fine, "", "there is none: programs ask DNS")
		return
	}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		sources, found := strings.CutPrefix(strings.TrimSpace(line), "hosts:")
		if !found {
			continue
		}
		words := strings.Fields(sources)
		has := func(word string) bool { return slices.Contains(words, word) }
		switch {
		case has("resolve"):
			d.say(warning, "write: hosts: files dns", "hosts: goes to systemd-resolved (resolve) before DNS: it asks for all programs, and may ask others than CoreDNS")
		case !has("dns"):
			d.say(failure, "write: hosts: files dns", "hosts: has no dns: programs look names up elsewhere (%s), and nothing is opened for them", strings.Join(words, " "))
		default:
			d.say(fine, "", "hosts: %s", strings.Join(words, " "))
		}
		if slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "mdns") }) {
			d.say(warning, "take mdns out of hosts:, or allow the printers and the like that are found by it (allowedLocalIPs)", "names that end in .local are looked up by multicast, which opens nothing")
		}
		return
	}
	d.say(warning, "write: hosts: files dns", "there is no line hosts:")
}

// between looks for resolvers that stand between programs and CoreDNS.
func (d *doctor) between() {
	if d.unguarded() {
		return
	}
	found := false
	for _, r := range []struct{ name, socket, unit string }{
		{"systemd-resolved", "run/systemd/resolve/io.systemd.Resolve", "systemd-resolved.service"},
		{"nscd", "run/nscd/socket", "nscd.service"},
	} {
		conn, err := net.DialTimeout("unix", filepath.Join(d.root, r.socket), time.Second)
		if err != nil {
			continue
		}
		conn.Close()
		found = true
		advice := "systemctl disable --now " + r.unit
		if d.byApplication() {
			d.say(failure, advice+"; or else write shared_resolver "+r.unit+", and all programs share what it asks for", "%s runs, and asks for programs: with scope application its answers open to it alone", r.name)
		} else {
			d.say(warning, advice, "%s runs: what it remembers is answered without CoreDNS, and opens nothing when the grant has run out", r.name)
		}
	}
	if !found {
		d.say(fine, "", "none between programs and CoreDNS")
	}
}

// answers has the first server that is this machine's look for the name servers of the
// root, which have to come from upstream.
func (d *doctor) answers() {
	server := netip.MustParseAddr("127.0.0.1")
	all, _ := d.nameservers()
	if i := slices.IndexFunc(all, d.isOwn); i >= 0 {
		server = all[i]
	}
	at := netip.AddrPortFrom(server, 53).String()
	question := new(dns.Msg).SetQuestion(".", dns.TypeNS)
	question.SetEdns0(1232, false)
	answer, took, err := (&dns.Client{Timeout: 6 * time.Second}).ExchangeContext(d.ctx, question, at)
	var refused net.Error
	switch {
	case errors.As(err, &refused) && refused.Timeout():
		d.say(failure, d.makeReachable(), "%s does not answer in 6 s: upstream is not reached", at)
	case err != nil:
		d.say(failure, "start CoreDNS; bind in the Corefile says where it listens; ss -lnup 'sport = 53' shows who does", "nobody answers at %s: %v", at, err)
	case answer.Rcode == dns.RcodeServerFailure:
		d.say(failure, d.makeReachable(), "%s answers SERVFAIL%s: upstream is not reached, or answers so", at, extended(answer))
	case answer.Rcode != dns.RcodeSuccess:
		d.say(warning, "look at the server blocks: . should be forwarded", "%s answers %s to a question for the root%s", at, dns.RcodeToString[answer.Rcode], extended(answer))
	default:
		d.say(fine, "", "%s answers from upstream, in %v", at, took.Round(time.Millisecond))
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

// extended is what an answer says for people (RFC 8914).
func extended(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok && e.ExtraText != "" {
			return " (" + plain(e.ExtraText) + ")"
		}
	}
	return ""
}
