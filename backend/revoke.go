package backend

import (
	"context"
	"fmt"
	"net/netip"
)

// A Revoker is a backend that can end grants before their time.
type Revoker interface {
	// Revoke ends the grants that which says so of, and what lingers of such grants, and
	// returns how many grants that were. None of them opens anything to new connections
	// when it has returned; those that live go on. It is no ban: the next answer grants
	// anew. With an error some may have been ended, and the others not.
	Revoke(ctx context.Context, which func(Grant) bool) (n int, err error)
}

// A Cutter is a backend that can end live connections.
type Cutter interface {
	// Cuts returns nil if Cut would end connections now, or [ErrYoung].
	Cuts() error

	// Cut visits the connections that this machine sends and forwards, and ends those that
	// which says so of, and returns how many that were: what comes of them after that is
	// judged as the beginning of a new one.
	Cut(ctx context.Context, which func(Connection) bool) (n int, err error)
}

// A Connection is one as its first packet had it, before any translation of addresses.
type Connection struct {
	Protocol uint8 // as in the IP header
	From, To netip.AddrPort
}

// String is a word for people.
func (c Connection) String() string {
	return fmt.Sprintf("%v to %v, protocol %d", c.From, c.To, c.Protocol)
}
