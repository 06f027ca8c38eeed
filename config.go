package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
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
	byUser         bool     // applications are told apart by their users
	shared         programs // who ask for everybody
	dnsPorts       bool     // grants open them
	forwarders     []netip.Prefix
	upstreams      []netip.AddrPort // open to CoreDNS alone; port 0 is those that it uses
	capture        bool             // clients' plain DNS comes here, wherever it was sent
	linger         time.Duration
	limits         limits
	lease          expiry.Lease
	hold           time.Duration
	onExit         backend.Leave
	table          string
	operation      operation

	place string // file:line of the directive

	upstreamSentinel bool // open to CoreDNS alone is also what the sentinel plugin forwards to

	found found
}

// found is what a directive does not say: the whole Corefile does, or the machine.
type found struct {
	classes  map[backend.Class]backend.Predicates
	upstream []netip.AddrPort
	self     backend.Program
	capture  uint16        // port
	routes   []*namedRoute // of all server blocks
	policies []*policy     // the same, in order
	book     string        // the name of all their books

	directives []admin.Directive // as they stand in the Corefile
	blocks     []*serverBlock

	nameservers *nameservers // nil unless upstreamSentinel
}

// kernelRoutes are the routes, those once that are the same to the kernel.
func (f *found) kernelRoutes() (all []backend.Route) {
	for _, r := range f.routes {
		if !slices.ContainsFunc(all, func(k backend.Route) bool { return k.Name == r.kernel.Name }) {
			all = append(all, r.kernel)
		}
	}
	return all
}

// limits bound what the network can make the guard keep. Those of grants and of mapped
// addresses count for each IP version.
type limits struct{ grants, client, name, answer, mappings int }

// The modes, and which hooks they guard.
const (
	modeLocal   = "nft-local"
	modeGateway = "nft-gateway"
	modeBoth    = "nft-both"
)

var modes = []string{modeLocal, modeGateway, modeBoth}

// Whose grants an answer makes: everyone's, or only those of the client that asks, or
// also, on this machine, only those of the application that asks.
const (
	scopeAny         = "any"
	scopeClient      = "client"
	scopeApplication = "application"
)

var defaultSettings = settings{
	lease: expiry.Lease{Floor: time.Minute, Ceiling: 24 * time.Hour, Margin: 30 * time.Second},
	hold:  time.Second,
	table: name, onExit: backend.Keep, operation: defaultOperation,
}

// defaultLimits are for a network of some hundred clients: 25 MB in the kernel for
// each IP version.
var defaultLimits = limits{grants: 1 << 18, client: 1 << 14, name: 1 << 10, answer: 1 << 8, mappings: 1 << 18}

// unitPaths are the cgroups that classes of grants are for, sorted.
func (s *settings) unitPaths() (paths []string) {
	for _, p := range s.found.classes {
		for _, u := range p.Units {
			paths = addSorted(paths, u.Path)
		}
	}
	return paths
}

func (s *settings) local() bool   { return s.mode != modeGateway }
func (s *settings) gateway() bool { return s.mode != modeLocal }

// rules are what is to be enforced on a machine as it is.
func (s *settings) rules(m *machine) backend.Rules {
	local := []backend.Holder{backend.Machine}
	for holder, wanted := range map[backend.Holder]bool{
		backend.User: s.scope == scopeApplication,
		backend.Unit: s.scope == scopeApplication && !s.byUser,
	} {
		// Grants from before a reload go on: the scope is no narrower now.
		if wanted || slices.Contains(m.before, holder) && !s.byUser {
			local = append(local, holder)
		}
	}
	slices.Sort(local)
	gateway := []backend.Holder{backend.Client, backend.Link}
	if s.scope == scopeAny {
		// Grants from before a reload that widened the scope go on.
		local, gateway = append(local, backend.Everyone), append(gateway, backend.Everyone)
	}
	if !s.gateway() {
		gateway = nil // whoever asks a server, asks for it
	}
	r := backend.Rules{
		LocalHolders: local, GatewayHolders: gateway, Classes: m.classes(s.found.classes),
		Table: s.table, Local: s.local(), Gateway: s.gateway(),
		Allowed: s.allowed, AllowedLocal: s.allowedLocal, AllowedGateway: s.allowedGateway,
		DNSPorts: s.dnsPorts, OnLink: m.onLink, Interfaces: s.interfaces, Linger: s.linger,
		AuditLocal: m.audit.on(backend.Output, s), AuditGateway: m.audit.on(backend.Forward, s), LogGroup: s.operation.group,
		MaxGrants: s.limits.grants, MaxGrantsClient: s.limits.client, MaxGrantsName: s.limits.name,
	}
	if s.local() {
		r.Upstream, r.Self = s.found.nameservers.with(s.found.upstream), s.found.self
	}
	if s.gateway() {
		r.Capture = s.found.capture
	}
	if r.Routes = bridge(s.found.kernelRoutes(), m.routes); len(r.Routes) > 0 {
		r.MaxMappings, r.Book = s.limits.mappings, s.found.book
	}
	routed := m.routed
	if routed == nil {
		routed = routedBy(s.found.routes)
	}
	r.Origins = origins(s.found.routes, m.origins, routed)
	return r
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
		{"interfaces", sameSet(s.interfaces, other.interfaces, strings.Compare), s.interfaces, other.interfaces},
		{"scope", s.scope == other.scope && s.byUser == other.byUser, s.scopeText(), other.scopeText()},
		{"shared_resolver", s.shared.equal(&other.shared), s.shared, other.shared},
		{"upstream", sameSet(s.upstreams, other.upstreams, netip.AddrPort.Compare), s.upstreams, other.upstreams},
		{"upstream sentinel", s.upstreamSentinel == other.upstreamSentinel, s.upstreamSentinel, other.upstreamSentinel},
		{"capture", s.capture == other.capture, s.capture, other.capture},
		{"linger", s.linger == other.linger, s.linger, other.linger},
		{"max_grants", s.limits.grants == other.limits.grants, s.limits.grants, other.limits.grants},
		{"max_grants_client", s.limits.client == other.limits.client, s.limits.client, other.limits.client},
		{"max_grants_name", s.limits.name == other.limits.name, s.limits.name, other.limits.name},
		{"max_mappings", s.limits.mappings == other.limits.mappings, s.limits.mappings, other.limits.mappings},
		{"max_addresses_answer", s.limits.answer == other.limits.answer, s.limits.answer, other.limits.answer},
		{"dns_ports", s.dnsPorts == other.dnsPorts, dnsPortsText(s.dnsPorts), dnsPortsText(other.dnsPorts)},
		{"trusted_forwarder", sameRanges(s.forwarders, other.forwarders), s.forwarders, other.forwarders},
		{"margin", s.lease.Margin == other.lease.Margin, s.lease.Margin, other.lease.Margin},
		{"ttl", s.lease.Floor == other.lease.Floor && s.lease.Ceiling == other.lease.Ceiling,
			fmt.Sprint(s.lease.Floor, " ", s.lease.Ceiling), fmt.Sprint(other.lease.Floor, " ", other.lease.Ceiling)},
		{"hold", s.hold == other.hold, s.hold, other.hold},
		{"on_exit", s.onExit == other.onExit, leaveText(s.onExit), leaveText(other.onExit)},
		{"table", s.table == other.table, s.table, other.table},
		{"audit", s.operation.audit == other.operation.audit, s.operation.auditText(), other.operation.auditText()},
		{"admin", s.operation.admin == other.operation.admin, s.operation.admin, other.operation.admin},
		{"denied_log", s.operation.quiet == other.operation.quiet, onOff(!s.operation.quiet), onOff(!other.operation.quiet)},
		{"nflog_group", s.operation.group == other.operation.group, s.operation.group, other.operation.group},
	} {
		if !c.same {
			return fmt.Sprintf("%s %v at %s contradicts %v at %s: all server blocks share one guard, so write its settings in one block and the bare word %s in the others",
				c.option, c.ours, s.place, c.theirs, other.place, name)
		}
	}
	return ""
}

func (s *settings) scopeText() string {
	if s.byUser {
		return s.scope + " uid"
	}
	return s.scope
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
	return setOf(a).Equal(setOf(b))
}

func sameSet[T comparable](a, b []T, compare func(a, b T) int) bool {
	sorted := func(list []T) []T { return slices.Compact(slices.SortedFunc(slices.Values(list), compare)) }
	return slices.Equal(sorted(a), sorted(b))
}
