package backend

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Scope is who may use a grant, and for what. The zero value is everyone, for
// anything.
type Scope struct {
	Holder Holder
	Class  Class    // which of the holder's packets
	ID     [16]byte // of the one client or application; zero for holders that are many
}

// Holder is a kind of those who may use a grant.
type Holder uint8

// The kinds of holders.
const (
	Everyone Holder = iota // whatever this machine sends and forwards
	Machine                // what this machine sends
	User                   // what one user's programs on this machine send
	Unit                   // what one cgroup's programs on this machine send
	Client                 // what is forwarded from one address
	Link                   // what is forwarded from one Ethernet address on one wire

	Holders // how many kinds there are
)

// Many reports whether such a holder is more than one client or application.
func (h Holder) Many() bool { return h == Everyone || h == Machine }

// UserScope is the scope of the user with this number.
func UserScope(uid uint32) Scope {
	s := Scope{Holder: User}
	binary.NativeEndian.PutUint32(s.ID[:], uid)
	return s
}

// UnitScope is the scope of the cgroup (version 2) with this number and of all below
// it, down to the level of the rules: see [MaxLevel].
func UnitScope(cgroup uint64) Scope {
	s := Scope{Holder: Unit}
	binary.NativeEndian.PutUint64(s.ID[:], cgroup)
	return s
}

// MaxLevel is how deep below the root of the hierarchy a cgroup may lie that holds
// grants or is named in rules.
const MaxLevel = 8

// ClientScope is the scope of the client with this address. It has grants for
// addresses of its own IP version only.
func ClientScope(addr netip.Addr) Scope { return Scope{Holder: Client, ID: addr.As16()} }

// LinkScope is the scope of the client with this Ethernet address on the wire of the
// interface with this index, whatever IP addresses it has.
func LinkScope(index uint32, hw [6]byte) Scope {
	s := Scope{Holder: Link}
	binary.NativeEndian.PutUint32(s.ID[:], index)
	copy(s.ID[4:], hw[:])
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
	if s.Class != 0 {
		return fmt.Sprintf("%v (class %d)", Scope{Holder: s.Holder, ID: s.ID}, s.Class)
	}
	switch s.Holder {
	case Everyone:
		return "everyone"
	case Machine:
		return "this machine"
	case User:
		return fmt.Sprint("user ", binary.NativeEndian.Uint32(s.ID[:]))
	case Unit:
		return fmt.Sprint("cgroup ", binary.NativeEndian.Uint64(s.ID[:]))
	case Client:
		return netip.AddrFrom16(s.ID).Unmap().String()
	case Link:
		return fmt.Sprintf("%v at interface %d", net.HardwareAddr(s.ID[4:10]), binary.NativeEndian.Uint32(s.ID[:]))
	}
	return fmt.Sprintf("holder %d", s.Holder)
}
