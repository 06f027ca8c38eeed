package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Route is how traffic to mapped addresses leaves. Grants for these are as any
// others, and no grant for a real address opens the way through a mapped one.
type Route struct {
	// Name is part of its sets' names: letters, digits and -. It is the same as long as
	// all of the others are.
	Name string

	// Pools are where its mapped addresses come from; routes may share them. What
	// goes to an address of a pool that is not mapped is refused at once.
	Pools []netip.Prefix

	// Egress are the source addresses that traffic leaves with, at most one of each IP
	// version. Without, it is the leaving interface's, or with Transparent, none is
	// changed.
	Egress      []netip.Addr
	Transparent bool

	Out  string // the interface that traffic leaves by, or none; empty is any
	Mark uint32 // of its packets, for policy routing; 0 is none
}

// Sentinels are networks whose addresses stand before the nameservers of machines, and belong to no
// name, though pools may have them in the middle. On the machine itself they are as any other
// address of it.
var Sentinels = []netip.Prefix{
	netip.MustParsePrefix("100.100.111.0/24"),
	netip.MustParsePrefix("fd00:2021:1111:8000:100:100:111:0/120"),
}

// String spells the route for people.
func (r *Route) String() string {
	parts := []string{r.Name}
	for _, p := range r.Pools {
		parts = append(parts, p.String())
	}
	switch {
	case len(r.Egress) > 0:
		for _, a := range r.Egress {
			parts = append(parts, "egress "+a.String())
		}
	case !r.Transparent:
		parts = append(parts, "masquerade")
	}
	if r.Out != "" {
		parts = append(parts, "out "+r.Out)
	}
	if r.Mark != 0 {
		parts = append(parts, fmt.Sprint("fwmark ", r.Mark))
	}
	return strings.Join(parts, ", ")
}

// An Origin says which book has given out the addresses of a pool, or was the last one to.
type Origin struct {
	Book string // letters and digits
	Pool netip.Prefix
	Gone bool // no route has them any more, and they may be open as any other address
}

// A Mapping says what real address stands behind a mapped one. Both are of the same IP
// version.
type Mapping struct {
	Route  string // name
	Mapped netip.Addr
	Real   netip.Addr
}

// Mappable returns ErrRoute, in words, if the rules cannot have the mapping: its route is
// not there, the mapped address is of none of the route's pools, the real one is of any
// pool, or they are of two versions of IP.
func (r *Rules) Mappable(m Mapping) error {
	route := r.Route(m.Route)
	switch {
	case route == nil:
		return fmt.Errorf("%w: %q", ErrRoute, m.Route)
	case !route.Has(m.Mapped):
		return fmt.Errorf("%w: %v is of none of the pools of %q", ErrRoute, m.Mapped, m.Route)
	case m.Mapped.Is4() != m.Real.Is4() || m.Real.Zone() != "" || r.Pooled(m.Real):
		return fmt.Errorf("%w: nothing can be translated from %v to %v", ErrRoute, m.Mapped, m.Real)
	}
	return nil
}

// Route returns the route of that name, or nil.
func (r *Rules) Route(name string) *Route {
	for i := range r.Routes {
		if r.Routes[i].Name == name {
			return &r.Routes[i]
		}
	}
	return nil
}

// Pooled reports whether an address is of a pool.
func (r *Rules) Pooled(a netip.Addr) bool {
	return slices.ContainsFunc(r.Routes, func(route Route) bool { return route.Has(a) })
}

// Bound reports whether traffic must not leave but as the route says, whatever becomes of
// the route.
func (r *Route) Bound() bool { return r.Out != "" || r.Mark != 0 }

// Has reports whether an address is of the route's pools.
func (r *Route) Has(a netip.Addr) bool {
	return slices.ContainsFunc(r.Pools, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Router is a backend that translates addresses: see [Rules].Routes.
type Router interface {
	// Map returns when the kernel translates new connections to each mapped address as
	// said, or why not to all of them, or with ctx, or with ErrLate when it has waited
	// for others for so long. Connections that live go on to where they went. Concurrent
	// calls share transactions, with grants as well.
	Map(ctx context.Context, mappings []Mapping, within time.Duration) error

	// Unmap ends mappings: when it has returned, new connections to these addresses are
	// refused. Those that live go on until [Router.Connections] ends them; where the route
	// has a way out or a mark, their packets wait until then, or for another mapping.
	Unmap(ctx context.Context, mapped []netip.Addr) error

	// Connections visits the connections whose destination has been translated, and ends
	// those for which each says so.
	Connections(ctx context.Context, each func(mapped, real netip.Addr) (end bool)) error

	// Mapped visits the mapped addresses, and what stands behind them: also what an earlier
	// process has left.
	Mapped(ctx context.Context, each func(mapped, real netip.Addr)) error

	// Granted visits the mapped addresses to which somebody may connect: by a grant that
	// lives, or because they linger. Until nobody may they belong to their names: whoever
	// remembers one would be let through to the next name's server.
	Granted(ctx context.Context, each func(mapped netip.Addr)) error

	// Origins returns those of the rules that are enforced, whoever has put them in force:
	// before Open, they are an earlier process's.
	Origins(table string) ([]Origin, error)

	// Epoch rises whenever mappings may have been lost: one that was put in force at an
	// earlier epoch has to be asked for again. It is to be read before Map is called,
	// and costs next to nothing.
	Epoch() uint64
}

// Errors of a [Router].
var (
	// ErrRoute means that the rules have no such route.
	ErrRoute = errors.New("the firewall has no such route now")

	// ErrMappings means that there are as many mapped addresses as there may be.
	ErrMappings = errors.New("as many addresses are mapped as may be (max_mappings)")
)
