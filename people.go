package ipdestinationguard

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// What people call things that the kernel knows by numbers. None of it is on a query's
// path.

// call is what people call the holder of a grant.
func (g *guard) call(s backend.Scope) string {
	switch s.Class = 0; s.Holder {
	case backend.User:
		return "user " + userName(binary.NativeEndian.Uint32(s.ID[:]))
	case backend.Unit:
		if unit := g.unitOf(binary.NativeEndian.Uint64(s.ID[:])); unit != "" {
			return unit
		}
	case backend.Link:
		return net.HardwareAddr(s.ID[4:10]).String() + " at " + interfaceName(binary.NativeEndian.Uint32(s.ID[:]))
	}
	return s.String()
}

// unitOf is the path of a cgroup's unit, or nothing if it is not known or gone.
func (g *guard) unitOf(cgroup uint64) string {
	askers := g.programs()
	if askers == nil {
		return ""
	}
	unit, err := askers.Unit(context.Background(), cgroup)
	if err != nil {
		return ""
	}
	return unit.Path
}

// programs knows those of this machine, or is nil.
func (g *guard) programs() askers {
	g.arming.Lock()
	defer g.arming.Unlock()
	if g.closed.Load() {
		return nil
	}
	return g.askers
}

// A nameCache remembers what people call numbers for some seconds: lists have the same ones
// thousands of times, and each costs a file or a list of the kernel's to be read.
type nameCache struct {
	look func(uint32) string

	mu    sync.Mutex // guards what follows
	since time.Time
	names map[uint32]string
}

const (
	namesFor  = 10 * time.Second
	mostNames = 1 << 12
)

func (c *nameCache) name(number uint32) string {
	c.mu.Lock()
	if now := time.Now(); now.Sub(c.since) > namesFor || len(c.names) >= mostNames {
		c.since, c.names = now, make(map[uint32]string)
	}
	name, ok := c.names[number]
	c.mu.Unlock()
	if ok {
		return name
	}
	name = c.look(number)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[number] = name
	return name
}

var (
	userNames = nameCache{look: func(uid uint32) string {
		number := strconv.FormatUint(uint64(uid), 10)
		if u, err := user.LookupId(number); err == nil {
			return u.Username
		}
		return number
	}}
	interfaceNames = nameCache{look: func(index uint32) string {
		if i, err := net.InterfaceByIndex(int(index)); err == nil {
			return i.Name
		}
		return "interface " + strconv.FormatUint(uint64(index), 10)
	}}
)

// userName is a user's name, or number.
func userName(uid uint32) string { return userNames.name(uid) }

func interfaceName(index uint32) string { return interfaceNames.name(index) }

// protocolName is a protocol's name in the Corefile, or ICMP, or its number.
func protocolName(number uint8) string {
	for name, n := range protocolNumbers {
		if n == number {
			return name
		}
	}
	return strconv.Itoa(int(number))
}

// protocolNumbers are those with names.
var protocolNumbers = func() map[string]uint8 {
	all := map[string]uint8{"icmp": 1, "icmpv6": 58, "igmp": 2, "gre": 47, "esp": 50}
	for name, n := range backend.Protocols {
		all[name] = n
	}
	return all
}()

// hasPorts reports whether a protocol's packets have ports.
func hasPorts(number uint8) bool {
	for _, n := range backend.Protocols {
		if n == number {
			return true
		}
	}
	return false
}

// destination is where packets go, as people write it: tcp/443.
func destinationText(protocol uint8, port uint16) string {
	if !hasPorts(protocol) {
		return protocolName(protocol)
	}
	return protocolName(protocol) + "/" + strconv.Itoa(int(port))
}

// programOf finds a user and a unit by what people call them.
func programOf(userText, unitText string) (*why.Program, error) {
	p := &why.Program{Unit: unitText}
	if userText != "" {
		number := userText
		if u, err := user.Lookup(userText); err == nil {
			number = u.Uid
		}
		uid, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, err
		}
		p.User = uint32(uid)
	}
	if unitText == "" {
		return p, nil
	}
	at := unitText
	if !strings.Contains(at, "/") {
		at = unitPath(at)
	}
	unit, err := identity.UnitAt(at)
	if err != nil {
		return nil, err
	}
	p.Cgroups = cgroupsAbove(unit.Path)
	return p, nil
}

// cgroupsAbove are the numbers of a cgroup and of those above it.
func cgroupsAbove(path string) (all []uint64) {
	for ; len(path) > 1; path = path[:strings.LastIndexByte(path, '/')] {
		if c, err := identity.UnitAt(path); err == nil && c.ID != 0 {
			all = append(all, c.ID)
		}
	}
	return all
}

// link is the scope of a client by its Ethernet address, as far as it is known.
func (g *guard) link(client netip.Addr) backend.Scope {
	networks := g.onLink.Load()
	if networks == nil || !contains(*networks, client) {
		return backend.Scope{}
	}
	if index, hw, ok := g.around.Find(client); ok {
		return backend.LinkScope(index, hw)
	}
	return backend.Scope{}
}
