package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// settings are what one directive says of what all server blocks share, or all of a
// Corefile together.
type settings struct {
	mode           string
	allowed        []netip.Prefix
	allowedLocal   []netip.Prefix
	allowedGateway []netip.Prefix
	interfaces     []string
	scope          string
	dnsPorts       bool // grants open them
	forwarders     []netip.Prefix
	lease          expiry.Lease
	hold           time.Duration
	onExit         backend.Leave
	table          string

	place string // file:line of the directive
}

// The modes, and which hooks they guard.
const (
	modeLocal   = "nft-local"
	modeGateway = "nft-gateway"
	modeBoth    = "nft-both"
)

var modes = []string{modeLocal, modeGateway, modeBoth}

// Whose grants an answer makes: everyone's, or only those of the client that asks.
const (
	scopeAny    = "any"
	scopeClient = "client"
)

var defaultSettings = settings{
	lease: expiry.Lease{Floor: time.Minute, Ceiling: 24 * time.Hour, Margin: 30 * time.Second},
	hold:  time.Second,
	table: name, onExit: backend.Keep,
}

// maxGrants bounds the grants of each IP version: 100 MB in the kernel.
const maxGrants = 1 << 20

func (s *settings) local() bool   { return s.mode != modeGateway }
func (s *settings) gateway() bool { return s.mode != modeLocal }

func (s *settings) rules(onLink []netip.Prefix) backend.Rules {
	local := []backend.Holder{backend.Machine}
	gateway := []backend.Holder{backend.Client, backend.Link}
	if s.scope == scopeAny {
		// Grants from before a reload that widened the scope go on.
		local, gateway = append(local, backend.Everyone), append(gateway, backend.Everyone)
	}
	if !s.gateway() {
		gateway = nil // whoever asks a server, asks for it
	}
	return backend.Rules{
		LocalHolders: local, GatewayHolders: gateway,
		Table: s.table, Local: s.local(), Gateway: s.gateway(),
		Allowed: s.allowed, AllowedLocal: s.allowedLocal, AllowedGateway: s.allowedGateway,
		DNSPorts: s.dnsPorts, OnLink: onLink, Interfaces: s.interfaces, MaxGrants: maxGrants,
	}
}

// contradiction says in what s and other differ, or nothing. Order and
// repetition in lists do not matter, nor whether a default is spelled out.
func (s *settings) contradiction(other *settings) string {
	for _, c := range []struct {
		option string
		same   bool
		ours   any
		theirs any
	}{
		{"mode", s.mode == other.mode, s.mode, other.mode},
		{"allowedIPs", sameRanges(s.allowed, other.allowed), s.allowed, other.allowed},
		{"allowedLocalIPs", sameRanges(s.allowedLocal, other.allowedLocal), s.allowedLocal, other.allowedLocal},
		{"allowedGatewayIPs", sameRanges(s.allowedGateway, other.allowedGateway), s.allowedGateway, other.allowedGateway},
		{"interfaces", sameNames(s.interfaces, other.interfaces), s.interfaces, other.interfaces},
		{"scope", s.scope == other.scope, s.scope, other.scope},
		{"dns_ports", s.dnsPorts == other.dnsPorts, dnsPortsText(s.dnsPorts), dnsPortsText(other.dnsPorts)},
		{"trusted_forwarder", sameRanges(s.forwarders, other.forwarders), s.forwarders, other.forwarders},
		{"margin", s.lease.Margin == other.lease.Margin, s.lease.Margin, other.lease.Margin},
		{"ttl", s.lease.Floor == other.lease.Floor && s.lease.Ceiling == other.lease.Ceiling,
			fmt.Sprint(s.lease.Floor, " ", s.lease.Ceiling), fmt.Sprint(other.lease.Floor, " ", other.lease.Ceiling)},
		{"hold", s.hold == other.hold, s.hold, other.hold},
		{"on_exit", s.onExit == other.onExit, leaveText(s.onExit), leaveText(other.onExit)},
		{"table", s.table == other.table, s.table, other.table},
	} {
		if !c.same {
			return fmt.Sprintf("%s %v at %s contradicts %v at %s: all server blocks share one guard, so write its settings in one block and the bare word %s in the others",
				c.option, c.ours, s.place, c.theirs, other.place, name)
		}
	}
	return ""
}

func dnsPortsText(open bool) string {
	if open {
		return "open"
	}
	return "closed"
}

func leaveText(l backend.Leave) string {
	if l == backend.Keep {
		return "keep"
	}
	return "remove"
}

func sameRanges(a, b []netip.Prefix) bool {
	set := func(list []netip.Prefix) *netipx.IPSet {
		var b netipx.IPSetBuilder
		for _, p := range list {
			b.AddPrefix(p)
		}
		s, _ := b.IPSet() // errors only on invalid prefixes
		return s
	}
	return set(a).Equal(set(b))
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
