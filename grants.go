package ipdestinationguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// selection says which grants are meant.
type selection struct {
	guard *guard
	admin.GrantsQuery
	name   map[backend.Key]bool // with the name's answers; nil is all
	client netip.Addr           // the zero value if it is not one
	link   backend.Scope        // that client's, if it is known
	called map[backend.Scope]string
}

// selected reads a query. Names are known as far as their answers are remembered.
func (g *guard) selected(q admin.GrantsQuery) *selection {
	s := &selection{guard: g, GrantsQuery: q, called: make(map[backend.Scope]string)}
	if q.Name != "" {
		s.name = make(map[backend.Key]bool)
		name := canonical(q.Name)
		for a := range g.history.All() {
			if a.Name == name && a.Stripped == "" {
				s.name[a.Scope.Key(a.Addr)] = true
			}
		}
	}
	if addr, err := netip.ParseAddr(q.Client); err == nil {
		s.client = addr.Unmap().WithZone("")
		s.link = g.link(s.client)
	}
	return s
}

// has reports whether a grant is meant.
func (s *selection) has(k backend.Key) bool {
	return (s.name == nil || s.name[k]) && (!s.Address.IsValid() || s.Address.Contains(k.Addr())) && s.hasHolder(k.Scope)
}

func (s *selection) hasHolder(scope backend.Scope) bool {
	scope.Class = 0
	switch {
	case s.Client == "":
		return true
	case s.client.IsValid():
		return scope == backend.ClientScope(s.client) || s.link.Holder == backend.Link && scope == s.link
	}
	return s.call(scope) == s.Client || scope.String() == s.Client
}

// call remembers what holders are called: there are many grants of each.
func (s *selection) call(scope backend.Scope) string {
	scope.Class = 0
	called, ok := s.called[scope]
	if !ok {
		if called = s.guard.call(scope); len(s.called) < admin.MaxList {
			s.called[scope] = called
		}
	}
	return called
}

// Grants implements [admin.Guard].
func (a *administration) Grants(ctx context.Context, q admin.GrantsQuery) (admin.Grants, error) {
	if err := a.guard.ready(); err != nil {
		return admin.Grants{}, err
	}
	list := admin.Grants{Grants: []admin.Grant{}}
	s, now := a.guard.selected(q), a.guard.now()
	var found []backend.Grant
	for k, until := range a.guard.inForce.All() {
		if ctx.Err() != nil {
			return admin.Grants{}, ctx.Err()
		}
		if !until.After(now) || !s.has(k) {
			continue
		}
		if list.More = len(found) == admin.MaxList; list.More {
			break
		}
		found = append(found, k.Grant(until))
	}
	slices.SortFunc(found, func(g, h backend.Grant) int {
		return cmp.Or(g.Addr.Compare(h.Addr), cmp.Compare(g.Holder, h.Holder), slices.Compare(g.ID[:], h.ID[:]), cmp.Compare(g.Class, h.Class))
	})
	for _, g := range found {
		list.Grants = append(list.Grants, a.grant(s, g))
	}
	return list, nil
}

func (a *administration) grant(s *selection, g backend.Grant) admin.Grant {
	return admin.Grant{
		Address: g.Addr, For: s.call(g.Scope), Only: a.guard.className(g.Class), Until: g.Until,
		Names: a.namesFor(g.Key(), a.guard.history.Of(g.Addr)),
	}
}

// grantsFor are all grants for some addresses, but a hundred for each at most.
func (a *administration) grantsFor(addrs []netip.Addr) map[netip.Addr][]admin.Grant {
	const most = 100
	s, now := a.guard.selected(admin.GrantsQuery{}), a.guard.now()
	found := make(map[netip.Addr][]admin.Grant, len(addrs))
	for _, addr := range addrs {
		found[addr] = []admin.Grant{}
	}
	for k, until := range a.guard.inForce.All() {
		if of, ok := found[k.Addr()]; ok && until.After(now) && len(of) < most {
			found[k.Addr()] = append(of, a.grant(s, k.Grant(until)))
		}
	}
	for _, of := range found {
		slices.SortFunc(of, func(g, h admin.Grant) int { return cmp.Or(cmp.Compare(g.For, h.For), cmp.Compare(g.Only, h.Only)) })
	}
	return found
}

// className is what grants of a class are for, in words.
func (g *guard) className(class backend.Class) string {
	g.arming.Lock()
	defer g.arming.Unlock()
	if int(class) < len(g.classes) {
		return g.classes[class]
	}
	return ""
}

// Revoke implements [admin.Guard].
func (a *administration) Revoke(ctx context.Context, r admin.RevokeRequest) (n admin.Revoked, err error) {
	if err := a.guard.ready(); err != nil {
		return n, err
	}
	if limited := r.GrantsQuery != (admin.GrantsQuery{}); limited == r.All {
		return n, fmt.Errorf("%w: say which grants are to end, or that all are", admin.ErrInvalid)
	}
	revoker, ok := a.guard.backend.(backend.Revoker)
	if !ok {
		return n, fmt.Errorf("%w: what enforces here revokes nothing", admin.ErrUnsupported)
	}
	s := a.guard.selected(r.GrantsQuery)
	if r.Cut { // before anything ends
		if err := a.cuts(s); err != nil {
			return n, err
		}
	}
	n.Grants, err = revoker.Revoke(ctx, func(g backend.Grant) bool { return s.has(g.Key()) })
	grantsRevoked.Add(float64(n.Grants))
	if err == nil && r.Cut {
		n.Connections, err = a.cut(ctx, s)
	}
	log.Warningf("Revoked from the admin socket: %s, %s cut", why.Number(n.Grants, "grant"), why.Number(n.Connections, "connection"))
	return n, err
}

// cuts returns why cut would end nothing.
func (a *administration) cuts(s *selection) error {
	cutter, ok := a.guard.backend.(backend.Cutter)
	if !ok {
		return fmt.Errorf("%w: what enforces here cuts no connections", admin.ErrUnsupported)
	}
	if s.Client != "" && !s.client.IsValid() {
		return fmt.Errorf("%w: connections are known by addresses: name the client by one", admin.ErrInvalid)
	}
	err := cutter.Cuts()
	if errors.Is(err, backend.ErrYoung) {
		return fmt.Errorf("%w: %v (nothing has ended)", admin.ErrConflict, err)
	}
	return err
}

// cut ends live connections to addresses that are meant, of clients that are. It is by
// addresses: what the machine's own programs are is not known of connections.
func (a *administration) cut(ctx context.Context, s *selection) (int, error) {
	var of map[netip.Addr]bool
	if s.name != nil {
		of = make(map[netip.Addr]bool)
		for k := range s.name {
			of[k.Addr()] = true
		}
	}
	k := a.guard.knowledge()
	return a.guard.backend.(backend.Cutter).Cut(ctx, func(c backend.Connection) bool {
		to, from := c.To.Addr(), c.From.Addr()
		local := a.guard.own != nil && a.guard.own(from)
		open := contains(k.Rules.Allowed, to) || contains(k.Rules.AllowedLocal, to) && local || contains(k.Rules.AllowedGateway, to) && !local
		switch {
		case to.IsLoopback(), a.guard.own != nil && a.guard.own(to), open, slices.Contains(k.Rules.Upstream, c.To) && local:
			return false // no grant has opened these
		case of != nil && !of[to], s.Address.IsValid() && !s.Address.Contains(to):
			return false
		}
		return s.Client == "" || from == s.client
	})
}
