package route

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// router is a kernel that translates.
type router struct {
	epoch atomic.Uint64
	maps  atomic.Int64 // calls of Map

	mu      sync.Mutex
	fails   error
	onUnmap func() // in it
	onLook  func() // before Connections
	looks   int    // calls of Connections
	blocked *blocked
	mapped  map[netip.Addr]backend.Mapping
	live    map[[2]netip.Addr]bool // connections: mapped, real
	granted map[netip.Addr]bool    // to somebody
}

func newRouter() *router {
	return &router{mapped: make(map[netip.Addr]backend.Mapping), live: make(map[[2]netip.Addr]bool)}
}

// blocked is a call of Map that takes long.
type blocked struct{ reached, free chan struct{} }

// block has the next call of Map take as long as it is not freed.
func (r *router) block() *blocked {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = &blocked{make(chan struct{}), make(chan struct{})}
	return r.blocked
}

func (r *router) Map(_ context.Context, mappings []backend.Mapping, _ time.Duration) error {
	r.maps.Add(1)
	r.mu.Lock()
	b := r.blocked
	r.blocked = nil
	r.mu.Unlock()
	if b != nil {
		close(b.reached)
		<-b.free
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fails != nil {
		return r.fails
	}
	for _, m := range mappings {
		r.mapped[m.Mapped] = m
	}
	return nil
}

func (r *router) Unmap(_ context.Context, mapped []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fails != nil {
		return r.fails
	}
	if r.onUnmap != nil {
		r.onUnmap()
	}
	for _, a := range mapped {
		delete(r.mapped, a)
	}
	return nil
}

func (r *router) Connections(_ context.Context, each func(mapped, real netip.Addr) bool) error {
	if r.onLook != nil {
		r.onLook()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks++
	for c := range r.live {
		if each(c[0], c[1]) {
			delete(r.live, c)
		}
	}
	return nil
}

func (r *router) Mapped(_ context.Context, each func(mapped, real netip.Addr)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, m := range r.mapped {
		each(a, m.Real)
	}
	return nil
}

func (r *router) Granted(_ context.Context, each func(mapped netip.Addr)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range r.granted {
		each(a)
	}
	return nil
}

func (r *router) Origins(string) ([]backend.Origin, error) { return nil, nil }

func (r *router) Epoch() uint64 { return r.epoch.Load() }

var _ backend.Router = (*router)(nil)
