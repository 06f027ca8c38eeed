package fake

import (
	"context"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Revoker = (*Backend)(nil)

// Revoke implements [backend.Revoker].
func (b *Backend) Revoke(_ context.Context, which func(backend.Grant) bool) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.unableLocked(); err != nil {
		return 0, err
	}
	b.expireLocked()
	for _, k := range b.keysLocked() {
		if which(k.Grant(b.kernel[k].until)) {
			b.inForce.Delete(k)
			delete(b.kernel, k)
			n++
		}
	}
	b.liveLocked()
	return n, nil
}

var _ backend.Cutter = (*Backend)(nil)

// Carry has these connections live, and says whether the guard is too young to cut any.
func (b *Backend) Carry(young bool, live ...backend.Connection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.young, b.live = young, slices.Clone(live)
}

// Carried returns what is live of them.
func (b *Backend) Carried() []backend.Connection {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.live)
}

// Cuts implements [backend.Cutter].
func (b *Backend) Cuts() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.young {
		return backend.ErrYoung
	}
	return b.unableLocked()
}

// Cut implements [backend.Cutter].
func (b *Backend) Cut(_ context.Context, which func(backend.Connection) bool) (n int, err error) {
	if err := b.Cuts(); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live = slices.DeleteFunc(b.live, func(c backend.Connection) bool {
		end := which(c)
		if end {
			n++
		}
		return end
	})
	return n, nil
}
