package nft

import (
	"context"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Cutter = (*Backend)(nil)

// Cuts implements [backend.Cutter].
func (b *Backend) Cuts() error {
	var table string
	if err := b.do(func(w *writer) error { table = w.rules.Table; return nil }); err != nil {
		return err
	}
	if arming(table) {
		return backend.ErrYoung
	}
	return nil
}

// Cut implements [backend.Cutter]. Connection tracking forgets what is cut; for the rules,
// its next packet begins a connection, or is in the middle of none.
func (b *Backend) Cut(ctx context.Context, which func(backend.Connection) bool) (n int, err error) {
	if err := b.Cuts(); err != nil {
		return 0, err
	}
	err = eachTracked(ctx, nil, func(t *tracked) bool {
		if !which(t.original) {
			return false
		}
		n++
		return true
	})
	return n, err
}

// arming reports whether connections older than the guard may still go on.
func arming(table string) (found bool) {
	s, err := openSocket()
	if err != nil {
		return false // nor can connections be read then
	}
	defer s.close()
	_ = s.dumpSet(table, setArming, func(data []byte) bool {
		for range elementsIn(data) {
			found = true
		}
		return true
	})
	return found
}
