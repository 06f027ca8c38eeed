package fake

import (
	"context"

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
