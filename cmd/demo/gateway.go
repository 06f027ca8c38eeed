package main

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

const gatewayMap = `client ---------- gateway ---------- world
192.168.50.2      192.168.50.1       as before
`

const gatewayCorefile = `. {
    ipdestinationguard nft-gateway {
        interfaces lan0            # where the clients are
        ttl 1s 1h
        margin 1s
        private *.shop.example     # as above
        admin off
    }
    forward . 192.0.2.2
}
`

// gatewayRules are the rules that this Corefile makes.
var gatewayRules = backend.Rules{
	Table: "ipdestinationguard", Gateway: true, MaxGrants: 1 << 18, Interfaces: []string{"lan0"},
	LocalHolders: []backend.Holder{backend.Machine}, GatewayHolders: []backend.Holder{backend.Client, backend.Link},
	OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("fe80::/64")},
}

// guardedNetwork is the story of a gateway that guards the network behind it.
func guardedNetwork(s *story, coredns string) error {
	sc, err := newScene(s)
	if err != nil {
		return err
	}
	s.part("2. A GUARDED NETWORK")
	s.show(gatewayMap, "    ")
	s.say("CoreDNS runs on the gateway. The client is a machine like any other; " +
		"the gateway is its resolver.")
	s.show(gatewayCorefile, "    ")
	sc.startGuard(coredns, gatewayCorefile)

	client := sc.client
	sc.refused("The client connects to 198.18.1.1.", client, shop4, syscall.EHOSTUNREACH)
	sc.lookUp("It asks the gateway for www.shop.example.", client, gateway, dns.TypeA)
	sc.open("It connects again.", client, shop4)
	sc.strangerRefused("An intruder on the client asks a resolver of its own.", client, "tcp", syscall.EHOSTUNREACH)
	sc.outlive()
	sc.stillTalks("The connection from before still talks.")
	sc.refused("A new one to the same address.", client, shop4, syscall.EHOSTUNREACH)
	rules := sc.rules(gatewayRules, "chain forward")
	sc.counted("How many connections has the world seen?")

	s.say("The chain that does it, from nft list table inet ipdestinationguard:")
	s.show(rules, "")
	return errors.Join(s.err, sc.close())
}
