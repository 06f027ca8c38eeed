package nft

import (
	"context"
	"errors"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Cutter = (*Backend)(nil)

// errArming means that what is cut is taken for a connection older than the guard.
var errArming = errors.New("the guard is too young: until 30 s after it has made its table, TCP connections that it has not seen begin go on, and so do those that are cut: try again then")

// Cut implements [backend.Cutter]. Connection tracking forgets what is cut; for the rules,
// its next packet begins a connection, or is in the middle of none.
func (b *Backend) Cut(ctx context.Context, which func(backend.Connection) bool) (n int, err error) {
	var table string
	if err := b.do(func(w *writer) error { table = w.rules.Table; return nil }); err != nil {
		return 0, err
	}
	if arming(table) {
		return 0, errArming
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
