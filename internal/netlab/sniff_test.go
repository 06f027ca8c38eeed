package netlab

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// seen fails the test unless the frame comes by.
func seen(t *testing.T, s *Sniffer, frame []byte) {
	t.Helper()
	for {
		got, err := s.Next(t.Context())
		must(t, err)
		if bytes.Equal(got, frame) {
			return
		}
	}
}

func TestInjectAndSniff(t *testing.T) {
	a, b := newPair(t, newLab(t))
	from, err := a.Sniff("toB")
	must(t, err)
	to, err := b.Sniff("toA")
	must(t, err)
	other, err := a.Sniff("lo")
	must(t, err)

	// To nobody, of the type which is free for experiments: no host says a word about it.
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}, "a frame of our own making"...)
	must(t, a.Inject("toB", frame))
	seen(t, to, frame)
	seen(t, from, frame)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := other.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v on lo, want the context's end", err)
	}
	must(t, a.Inject("lo", frame))
	seen(t, other, frame)
	must(t, from.Close(), from.Close())

	if err := a.Inject("none", frame); err == nil {
		t.Error("sent out of an interface which is not there")
	}
	if _, err := a.Sniff("none"); err == nil {
		t.Error("captures on an interface which is not there")
	}
}
