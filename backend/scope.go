package backend

import (
	"fmt"
	"net"
	"net/netip"
)

// Scope is who may use a grant. The zero value is everyone.
type Scope struct {
	Holder Holder
	ID     [16]byte // of the one client; zero for holders that are many
}

// Holder is a kind of those who may use a grant.
type Holder uint8

// The kinds of holders.
const (
	Everyone Holder = iota // whatever this machine sends and forwards
	Machine                // what this machine sends
	Client                 // what is forwarded from one address
	Link                   // what is forwarded from one Ethernet address

	Holders // how many kinds there are
)

// ClientScope is the scope of the client with this address. It has grants for
// addresses of its own IP version only.
func ClientScope(addr netip.Addr) Scope { return Scope{Client, addr.As16()} }

// LinkScope is the scope of the client with this Ethernet address, whatever IP
// addresses it has.
func LinkScope(hw [6]byte) Scope {
	s := Scope{Holder: Link}
	copy(s.ID[:], hw[:])
	return s
}

// Key returns the name of a grant for addr.
func (s Scope) Key(addr netip.Addr) Key { return Key{s, addr.As16()} }

// CanReach reports whether there can be a grant for addr: packets have one IP
// version, and what comes from a link-local IPv6 address is never forwarded.
func (s Scope) CanReach(addr netip.Addr) bool {
	if s.Holder != Client {
		return true
	}
	from := netip.AddrFrom16(s.ID).Unmap()
	return from.Is4() == addr.Is4() && (from.Is4() || !from.IsLinkLocalUnicast() && !from.IsUnspecified())
}

// String names the holder for people.
func (s Scope) String() string {
	switch s.Holder {
	case Everyone:
		return "everyone"
	case Machine:
		return "this machine"
	case Client:
		return netip.AddrFrom16(s.ID).Unmap().String()
	case Link:
		return net.HardwareAddr(s.ID[:6]).String()
	}
	return fmt.Sprintf("holder %d", s.Holder)
}
