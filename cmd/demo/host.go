package main

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

const hostMap = `host ------------ world
192.0.2.1         192.0.2.2                   the host's resolver
2001:db8::1       198.18.1.1                  www.shop.example
                  2001:db8:18::1:1            www.shop.example over IPv6
                  198.18.53.53, 198.18.66.66  an intruder's servers
`

const hostCorefile = `. {
    ipdestinationguard nft-local {
        allowedLocalIPs 192.0.2.2  # the resolver that forward asks
        ttl 1s 1h                  # short, so that you need not wait long
        margin 1s
        # The addresses of this demo are not the internet's. Such are
        # stripped from answers, unless a name may have them.
        private *.shop.example
        admin off                  # no guardctl here
    }
    forward . 192.0.2.2
}
`

// hostRules are the rules that this Corefile makes.
var hostRules = backend.Rules{
	Table: "ipdestinationguard", Local: true, LocalHolders: []backend.Holder{backend.Machine, backend.Everyone}, MaxGrants: 1 << 18,
	AllowedLocal: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32")},
}

// guardedHost is the story of a machine that guards itself.
func guardedHost(s *story, coredns string) error {
	sc, err := newScene(s)
	if err != nil {
		return err
	}
	s.part("1. A GUARDED HOST")
	s.show(hostMap, "    ")
	s.say("CoreDNS runs on the host. This is its whole Corefile:")
	s.show(hostCorefile, "    ")
	sc.startGuard(coredns, hostCorefile)

	host := sc.guard
	sc.refused("The host connects to 198.18.1.1. Nobody has looked that up.", host, shop4, syscall.EHOSTUNREACH)
	sc.refused("The same over IPv6. (There, Linux tells the program a second late.)", host, shop6, syscall.EACCES)
	sc.lookUp("The host asks CoreDNS for www.shop.example.", host, "127.0.0.1", dns.TypeA, dns.TypeAAAA)
	sc.open("It connects to 198.18.1.1 again, with the answer just in.", host, shop4)
	sc.open("And over IPv6.", host, shop6)
	sc.strangerRefused("An intruder on the host asks a resolver of its own, 198.18.53.53.", host, "udp", syscall.EPERM)
	sc.refused("So it connects to its server, 198.18.66.66, without asking anybody.", host, evil4, syscall.EHOSTUNREACH)
	sc.outlive()
	sc.stillTalks("The connection from before still talks.")
	sc.refused("A new one to the same address.", host, shop4, syscall.EHOSTUNREACH)
	sc.lookUp("The host asks for www.shop.example once more ...", host, "127.0.0.1", dns.TypeA)
	sc.open("... and may connect again.", host, shop4)
	rules := sc.rules(hostRules, "set allowed-local4", "set granted-local4", "chain output")
	sc.counted("How many connections has the world seen?")

	s.say("What is allowed, what an answer has opened, and the chain that refuses the rest, " +
		"from nft list table inet ipdestinationguard:")
	s.show(rules, "")
	return errors.Join(s.err, sc.close())
}
