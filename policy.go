package ipdestinationguard

import (
	"iter"
	"math"
	"net/netip"
	"slices"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/names"
	"github.com/destination-guard/coredns-ip-destination-guard/reach"
)

// policy is what one server block says of its names and of the answers to them;
// settings are what all blocks have in common.
type policy struct {
	names, except followed // which names' answers open addresses; all names, if both are empty
	refuseOthers  bool     // or else the answers for others pass, and open nothing
	private       []rule
	canary        bool // browsers are told to stay with this resolver
	routes        []*namedRoute
	routed        *names.Ranking // by which of them
	clients       clients
	encrypted     string // file:line that demands encrypted upstreams
	dnssec        dnssec
	validation    *validation // nil is none

	predicates backend.Predicates // of the packets that the answers are for
	class      backend.Class      // the number that they have

	place    string   // file:line of the directive
	warnings []string // each with its place
}

var defaultPolicy = policy{canary: true}

// followed are names from the Corefile and from files, which are read again when
// they change.
type followed struct {
	list  *names.List
	files []*names.File
}

func (f *followed) empty() bool { return f.list.Len() == 0 && len(f.files) == 0 }

func (f *followed) match(name string) bool {
	if f.list.Match(name) {
		return true
	}
	for _, file := range f.files {
		if file.List().Match(name) {
			return true
		}
	}
	return false
}

// opens reports whether answers for a name open their addresses.
func (p *policy) opens(name string) bool {
	return (p.names.empty() || p.names.match(name)) && !p.except.match(name)
}

func (p *policy) files() []*names.File { return slices.Concat(p.names.files, p.except.files) }

// open begins to follow files.
func (p *policy) open() error {
	for _, file := range p.files() {
		file.Follow(func(list *names.List, err error) {
			if err != nil {
				log.Errorf("%v: the names of before stay in force", err)
				return
			}
			log.Infof("%s has been read again: %d names", file.Path(), list.Len())
		})
	}
	return nil
}

// close ends the following of files, and validation.
func (p *policy) close() error {
	p.validation.close()
	for _, file := range p.files() {
		file.Close()
	}
	return nil
}

// check holds what the block demands against the rest of it, which has been read.
func (p *policy) check(block *dnsserver.Config, corefile caddy.Input) error {
	err := p.clients.check(block)
	if err == nil {
		err = p.checkUpstreams(corefile, log.Warningf)
	}
	if err == nil {
		err = p.validation.check(block)
	}
	if err != nil {
		err = plugin.Error(name, err)
	}
	return err
}

// rule lets names have addresses that are not globally reachable.
type rule struct {
	names    *names.List
	networks []netip.Prefix // none is any
}

// wellKnown are rules that RFCs make.
var wellKnown = []rule{
	// RFC 6761 section 6.3
	{mustNames("**.localhost"), []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}},
	// How clients find out about NAT64: RFC 7050.
	{mustNames("ipv4only.arpa"), []netip.Prefix{netip.MustParsePrefix("192.0.0.170/31")}},
}

func mustNames(patterns ...string) *names.List {
	list, err := names.Parse(patterns...)
	if err != nil {
		panic(err)
	}
	return list
}

// ownAddress is the block of an address of this machine.
var ownAddress = &reach.Block{Kind: reach.Loopback, Why: "an address of this machine"}

// unreachable are addresses that no grant of the client's could open.
var unreachable = &reach.Block{Kind: reach.Special, Why: "the client is known only by an address that cannot reach it, of the other IP version or link-local"}

// surplus are addresses behind the first so many of an answer.
var surplus = &reach.Block{Kind: reach.Special, Why: "one more than max_addresses_answer"}

// ofPool are addresses that stand for others, and that only this guard gives out.
var ofPool = &reach.Block{Kind: reach.Special, Why: "an address of a route's pool"}

// A filter finds the addresses that may not stand in an answer.
type filter struct {
	*policy
	*settings
	own   func(netip.Addr) bool // nil is none
	pools []pool                // of routes
	scope backend.Scope         // whose grants are made
	name  string                // what was asked for: no other name in the answer counts
	room  int                   // for addresses in the section that is looked at
}

// sections yields those of m, each with the room that it has: clients are told only
// as many addresses as may be opened.
func (f *filter) sections(m *dns.Msg) iter.Seq[*[]dns.RR] {
	return func(yield func(*[]dns.RR) bool) {
		f.room = f.limits.answer
		if !yield(&m.Answer) {
			return
		}
		f.room = math.MaxInt
		_ = yield(&m.Ns) && yield(&m.Extra)
	}
}

// take returns why the client may not have one more address, or nil.
func (f *filter) take(addr netip.Addr) *reach.Block {
	why := f.withheld(addr)
	if why == nil {
		if f.room == 0 {
			return surplus
		}
		f.room--
	}
	return why
}

// withheld returns why addr may not be had, or nil.
func (f *filter) withheld(addr netip.Addr) *reach.Block {
	if !f.scope.CanReach(addr) {
		return unreachable
	}
	var buf [4]netip.Addr
	for _, part := range reach.Parts(addr, buf[:0]) {
		if slices.ContainsFunc(f.pools, func(p pool) bool { return p.Contains(part) }) {
			return ofPool
		}
		b := reach.Of(part)
		if b.Kind <= reach.Special && f.own != nil && f.own(part) {
			b = ownAddress
		}
		if b.Kind != reach.Anywhere && !f.admits(addr, part, b) {
			return b
		}
	}
	return nil
}

// admits reports whether the name may have part, of block b, as addr or in it:
// because a rule says so, or because it is open to everybody without any DNS.
func (f *filter) admits(addr, part netip.Addr, b *reach.Block) bool {
	named := func(networks []netip.Prefix) bool {
		return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return covers(n, addr, part, b) })
	}
	for _, rules := range [...][]rule{f.private, wellKnown} {
		for i := range rules {
			r := &rules[i]
			if (named(r.networks) || len(r.networks) == 0 && b.Kind == reach.Special) && r.names.Match(f.name) {
				return true
			}
		}
	}
	return named(f.allowed) || (!f.local() || named(f.allowedLocal)) && (!f.gateway() || named(f.allowedGateway))
}

// covers reports whether a network in the Corefile gives away part of addr: as any
// of its addresses, but metadata and the machine itself only if that is what the
// network means.
func covers(network netip.Prefix, addr, part netip.Addr, b *reach.Block) bool {
	switch {
	case !network.Contains(part) && !network.Contains(addr):
		return false
	case b.Kind == reach.Special:
		return true
	}
	return network.IsSingleIP() || b.Prefix.Contains(network.Addr()) && network.Bits() >= b.Prefix.Bits()
}
