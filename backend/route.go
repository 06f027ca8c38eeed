package backend

import (
	"context"
	"net/netip"
	"time"
)

// A Route is how traffic to mapped addresses leaves. Grants for these are as any
// others, and no grant for a real address opens the way through a mapped one.
type Route struct {
	Name string // of its sets: letters, digits and -

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

// A Mapping says what real address stands behind a mapped one. Both are of the same IP
// version.
type Mapping struct {
	Route  string // name
	Mapped netip.Addr
	Real   netip.Addr
}

// Router is a backend that translates addresses: see [Rules].Routes.
type Router interface {
	// Map returns when the kernel translates new connections to each mapped address as
	// said, or why not to all of them, or with ctx, or with ErrLate when it has waited
	// for others for so long. Connections that live go on to where they went. Concurrent
	// calls share transactions, with grants as well.
	Map(ctx context.Context, mappings []Mapping, within time.Duration) error

	// Replace is for a start, when it is known what mappings there are: it brings the
	// kernel to exactly these, in parts, leaving alone what is right.
	Replace(ctx context.Context, mappings []Mapping) error

	// Unmap ends mappings. When it has returned, nothing in the kernel remembers the
	// mapped addresses: new connections to them are refused, and those that there were
	// are cut.
	Unmap(ctx context.Context, mapped []netip.Addr) error

	// Live returns those of the mapped addresses that live connections go to.
	Live(ctx context.Context, mapped []netip.Addr) ([]netip.Addr, error)

	// Cut ends the live connections to mapped addresses, or those of them that go to
	// these real addresses.
	Cut(ctx context.Context, stale []Mapping) error
}
