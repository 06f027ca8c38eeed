package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// askers know the programs of this machine.
type askers interface {
	// Find returns the program whose socket, of network "udp" or "tcp", sends from
	// client to server.
	Find(network string, client, server netip.AddrPort) (identity.Asker, error)

	// Unit returns the cgroup of the systemd unit or container that a cgroup is
	// part of; at level 0 if it is of none.
	Unit(ctx context.Context, cgroup uint64) (backend.Cgroup, error)

	// Program returns what the program is called that a user runs in a unit's own
	// cgroup; nothing if that is not known.
	Program(unit backend.Cgroup, user uint32) string

	Close()
}

// application is the scope of the program of this machine that a query came from. It
// is looked for when the answer is there: whom it finds is who will get that.
func (g *guard) application(ctx context.Context, s *settings, w dns.ResponseWriter) (backend.Scope, error) {
	remote := w.RemoteAddr()
	if remote == nil {
		return backend.Scope{}, errors.New("who asks cannot be found: it has no address")
	}
	asker, err := g.askers.Find(strings.TrimRight(remote.Network(), "46"), addrPortOf(remote), addrPortOf(w.LocalAddr()))
	if err != nil {
		return backend.Scope{}, fmt.Errorf("who asks cannot be found: %w", err)
	}
	var unit backend.Cgroup
	if !s.byUser {
		unit, err = g.askers.Unit(ctx, asker.Cgroup)
		if err != nil && !errors.Is(err, identity.ErrUnsupported) {
			return backend.Scope{}, fmt.Errorf("who asks cannot be found: %w", err)
		}
	}
	switch {
	case s.shared.have(asker.UID, unit.Path):
		return backend.Scope{Holder: backend.Machine}, nil
	case unit.Level == 0: // the root has all programs below it
		return backend.UserScope(asker.UID), nil
	}
	return backend.UnitScope(unit.ID), nil
}

// addrPortOf is the address and port of an end of a connection; the zero value is
// one that cannot be told.
func addrPortOf(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	if a == nil {
		return netip.AddrPort{}
	}
	ap, _ := netip.ParseAddrPort(a.String()) // proxyproto wraps addresses
	return ap
}

// programs are some of this machine, by their users and their units.
type programs struct {
	users []uint32
	units []string // paths below the mount of cgroup2
}

func (p *programs) empty() bool { return len(p.users)+len(p.units) == 0 }

// have reports whether one of a user, of a unit or below it, is among them.
func (p *programs) have(uid uint32, unit string) bool {
	return slices.Contains(p.users, uid) ||
		slices.ContainsFunc(p.units, func(u string) bool { return unit == u || strings.HasPrefix(unit, u+"/") })
}

func (p *programs) equal(q *programs) bool {
	return slices.Equal(p.users, q.users) && slices.Equal(p.units, q.units)
}

// String spells them as the Corefile does.
func (p programs) String() string {
	if p.empty() {
		return "nobody"
	}
	var words []string
	for _, uid := range p.users {
		words = append(words, fmt.Sprint(uid))
	}
	return strings.Join(append(words, p.units...), " ")
}
