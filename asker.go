package ipdestinationguard

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// surroundings are what the kernel knows of this machine's addresses and of its
// neighbours.
type surroundings interface {
	// Own reports whether addr is one of this machine's.
	Own(addr netip.Addr) bool

	// OnLink returns the networks of this machine's own wires; Changed is sent to
	// when own addresses may have changed.
	OnLink() []netip.Prefix
	Changed() <-chan struct{}

	// Find returns the Ethernet address of the neighbour with that IP address, and
	// the index of the interface that it is at.
	Find(addr netip.Addr) (index uint32, hw [6]byte, ok bool)

	Close()
}

// scope is whose grants the answer to a question makes. The guard is armed. What
// a gateway asks for itself is kept, for a reload that guards it as well.
func (g *guard) scope(remote net.Addr, request *dns.Msg) backend.Scope {
	s := g.settings.Load()
	switch {
	case s.scope == scopeAny && s.gateway(), g.closed.Load():
		return backend.Scope{}
	case !s.gateway():
		return backend.Scope{Holder: backend.Machine}
	}
	addr := addrOf(remote)
	if len(s.forwarders) > 0 && contains(s.forwarders, addr) {
		if client, ok := clientSubnet(request); ok {
			addr = client
		}
	}
	switch {
	case !addr.IsValid(), g.around.Own(addr):
		return backend.Scope{Holder: backend.Machine}
	case addr.IsLinkLocalUnicast(), contains(*g.onLink.Load(), addr):
		if index, hw, ok := g.around.Find(addr); ok {
			return backend.LinkScope(index, hw)
		}
	}
	return backend.ClientScope(addr.WithZone(""))
}

// addrOf is the IP address of a client, without a zone unless it needs one.
func addrOf(remote net.Addr) netip.Addr {
	var ap netip.AddrPort
	if a, ok := remote.(interface{ AddrPort() netip.AddrPort }); ok {
		ap = a.AddrPort()
	} else if remote == nil || !strings.HasPrefix(remote.Network(), "tcp") && !strings.HasPrefix(remote.Network(), "udp") {
		return netip.Addr{} // a pipe, say: somebody on this machine
	} else {
		ap, _ = netip.ParseAddrPort(remote.String()) // proxyproto wraps addresses
	}
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
