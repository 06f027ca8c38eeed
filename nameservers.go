package ipdestinationguard

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// sentinelName is the plugin that forwards to the machine's own nameservers, and the word for them after upstream.
const sentinelName = "sentinel"

// A follower of nameservers tells what it forwards to, whenever that has changed, before it does.
type follower interface {
	FollowUpstream(func([]netip.AddrPort))
}

// nameservers are open to CoreDNS, and change.
type nameservers struct {
	mu sync.Mutex // guards by
	by map[*dnsserver.Config][]netip.AddrPort
}

// with returns the nameservers and what else is open, sorted. Without any they are an example, as long as nothing is
// known of them: what is needed to open them is tried before they are known.
func (n *nameservers) with(open []netip.AddrPort) []netip.AddrPort {
	if n == nil {
		return open
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	all := slices.Clone(open)
	for _, list := range n.by {
		all = append(all, list...)
	}
	if len(n.by) == 0 {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 53}), 53))
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// set takes what one server block forwards to, and reports whether that is new.
func (n *nameservers) set(block *dnsserver.Config, list []netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := maps.Clone(n.by)
	n.by[block] = list
	return !maps.EqualFunc(before, n.by, slices.Equal)
}

// followNameservers has nameservers of the machine opened, or tells that they are not.
func (gen *generation) followNameservers() {
	s := gen.settings
	if s.upstreamSentinel {
		s.found.nameservers = &nameservers{by: map[*dnsserver.Config][]netip.AddrPort{}}
	}
	found := false
	for _, block := range gen.blocks {
		f, ok := block.Handler(sentinelName).(follower)
		if !ok {
			continue
		}
		found = true
		f.FollowUpstream(func(list []netip.AddrPort) {
			if !s.upstreamSentinel {
				s.warnNameservers(list)
			} else if s.found.nameservers.set(block.Config, list) {
				if g := running(); g != nil {
					g.enforceAgain(s)
				}
			}
		})
	}
	if s.upstreamSentinel && !found {
		log.Warningf("%s: upstream sentinel: no server block with %s has sentinel, so it opens nothing", s.place, name)
	}
}

// enforceAgain has the rules follow what s says now, if it is s that is in force.
func (g *guard) enforceAgain(s *settings) {
	g.arming.Lock()
	defer g.arming.Unlock()
	if g.settings.Load() != s || g.closed.Load() {
		return
	}
	if err := g.enforce(s, g.units); err != nil && err != backend.ErrClosed {
		g.failures.Do(func() {
			log.Errorf("The rules cannot follow a change of the machine's nameservers: %v", err)
		})
	}
}

// warnNameservers tells of nameservers that CoreDNS will not reach.
func (s *settings) warnNameservers(list []netip.AddrPort) {
	for _, ap := range list {
		if !ap.Addr().IsLoopback() && !contains(s.allowed, ap.Addr()) && !contains(s.allowedLocal, ap.Addr()) &&
			!slices.Contains(s.found.upstream, ap) {
			log.Warningf("sentinel forwards to the nameserver %v, which the guard refuses. The directive at %s needs the line: upstream sentinel", ap, s.place)
		}
	}
}
