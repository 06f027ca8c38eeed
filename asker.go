package ipdestinationguard

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// nobody is the scope of who is not guarded here: the answer passes.
var nobody = backend.Scope{Holder: backend.Holders}

var errPrograms = errors.New("the names of this server block are for programs of the machine itself (users, units)")

// scope is whose grants the answer to a question makes. The guard is armed.
func (g *guard) scope(ctx context.Context, w dns.ResponseWriter, request *dns.Msg, p *policy) (backend.Scope, error) {
	scope, err := g.holder(ctx, w, request, p)
	scope.Class = p.class
	return scope, err
}

// holder is who asks. What a gateway asks for itself is kept, for a reload that
// guards it as well.
func (g *guard) holder(ctx context.Context, w dns.ResponseWriter, request *dns.Msg, p *policy) (backend.Scope, error) {
	s, programs := g.settings.Load(), p.predicates.Local()
	switch {
	case s.scope == scopeAny && s.gateway() && !programs, g.closed.Load():
		return backend.Scope{}, nil
	case s.scope != scopeApplication && !s.gateway():
		return backend.Scope{Holder: backend.Machine}, nil
	}
	addr, local := g.asker(s, w, request)
	switch {
	case local && s.scope == scopeApplication:
		return g.application(ctx, s, w)
	case local && s.scope == scopeAny:
		return backend.Scope{}, nil
	case local:
		return backend.Scope{Holder: backend.Machine}, nil
	case !s.gateway():
		return nobody, nil
	case programs:
		return nobody, errPrograms
	}
	return g.remote(addr), nil
}

// remote is a client, by its Ethernet address where that is known.
func (g *guard) remote(addr netip.Addr) backend.Scope {
	if addr.IsLinkLocalUnicast() || contains(*g.onLink.Load(), addr) {
		if index, hw, ok := g.around.Find(addr); ok {
			return backend.LinkScope(index, hw)
		}
	}
	return backend.ClientScope(addr.WithZone(""))
}

// asker is the address that a question comes from, and whether that is this machine's.
func (g *guard) asker(s *settings, w dns.ResponseWriter, request *dns.Msg) (addr netip.Addr, local bool) {
	addr, _ = g.client(s, w, request)
	return addr, !addr.IsValid() || g.around.Own(addr)
}

// client is the address of who asks, and whether a forwarder has asked for it.
func (g *guard) client(s *settings, w dns.ResponseWriter, request *dns.Msg) (addr netip.Addr, forwarded bool) {
	addr = addrOf(w.RemoteAddr())
	if len(s.forwarders) > 0 && contains(s.forwarders, addr) {
		if client, ok := clientSubnet(request); ok && !g.around.Own(client) && !client.IsUnspecified() {
			return client, true // and never this machine, whose programs ask for themselves
		}
	}
	return addr, false
}

// addrOf is the IP address of a client, without a zone unless it needs one.
func addrOf(remote net.Addr) netip.Addr {
	if remote == nil || !strings.HasPrefix(remote.Network(), "tcp") && !strings.HasPrefix(remote.Network(), "udp") {
		return netip.Addr{} // a pipe, say: somebody on this machine
	}
	ap := addrPortOf(remote)
	if !ap.Addr().IsValid() {
		return netip.IPv6Unspecified() // DoH loses addresses with a zone: it is somebody, who has no grants
	}
	return ap.Addr().Unmap()
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr.WithZone("")) })
}

// clientSubnet is the one client that EDNS Client Subnet names (RFC 7871): the
// prefix has the full length.
func clientSubnet(request *dns.Msg) (netip.Addr, bool) {
	opt := request.IsEdns0()
	if opt == nil {
		return netip.Addr{}, false
	}
	for _, o := range opt.Option {
		if ecs, ok := o.(*dns.EDNS0_SUBNET); ok {
			addr, ok := netip.AddrFromSlice(ecs.Address)
			addr = addr.Unmap()
			return addr, ok && int(ecs.SourceNetmask) == addr.BitLen() && (ecs.Family == 1) == addr.Is4()
		}
	}
	return netip.Addr{}, false
}
