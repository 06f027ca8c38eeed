package main

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
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

// stubs are where systemd-resolved answers.
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
		d.say(fine, "", "this machine's programs ask this machine")
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
