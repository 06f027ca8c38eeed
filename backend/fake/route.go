package fake

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Router = (*Backend)(nil)

// A connection is one whose destination has been translated.
type connection struct{ mapped, real netip.Addr }

// Connect makes a connection to a mapped address, as packets would, and returns where it
// goes: the zero value where the address is not mapped.
func (b *Backend) Connect(mapped netip.Addr) (real netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, ok := b.mapped[mapped]
	if !ok {
		return netip.Addr{}
	}
	b.connections = append(b.connections, connection{mapped, m.Real})
	return m.Real
}

// Connected returns where the connections to a mapped address go, in the order in which
// they were made.
func (b *Backend) Connected(mapped netip.Addr) (reals []netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.connections {
		if c.mapped == mapped {
			reals = append(reals, c.real)
		}
	}
	return reals
}

// Mappings returns those in force, by their addresses.
func (b *Backend) Mappings() []backend.Mapping {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mappingsLocked()
}

// Lose ends all mappings, as somebody does who flushes the ruleset.
func (b *Backend) Lose() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.mapped)
	b.epoch.Add(1)
}

// Map implements [backend.Router].
func (b *Backend) Map(ctx context.Context, mappings []backend.Mapping, within time.Duration) error {
	return b.whenOpen(ctx, within, func() error { return b.mapLocked(mappings) })
}

func (b *Backend) mapLocked(mappings []backend.Mapping) error {
	if err := b.unableLocked(); err != nil {
		return err
	}
	after := maps.Clone(b.mapped)
	for _, m := range mappings {
		if err := b.rules.Mappable(m); err != nil {
			return err
		}
		after[m.Mapped] = m
	}
	if most := b.rules.MaxMappings; most > 0 {
		var have [2]int // IPv6, IPv4
		for a := range after {
			if a.Is4() {
				have[1]++
			} else {
				have[0]++
			}
		}
		for _, m := range mappings {
			if _, old := b.mapped[m.Mapped]; !old && (m.Mapped.Is4() && have[1] > most || !m.Mapped.Is4() && have[0] > most) {
				return backend.ErrMappings
			}
		}
	}
	if !maps.Equal(after, b.mapped) {
		b.transactions++
	}
	b.mapped = after
	return nil
}

// Unmap implements [backend.Router].
func (b *Backend) Unmap(ctx context.Context, mapped []netip.Addr) error {
	const patience = 24 * time.Hour // the context has the say
	return b.whenOpen(ctx, patience, func() error {
		if err := b.unableLocked(); err != nil {
			return err
		}
		for _, a := range mapped {
			delete(b.mapped, a)
		}
		return nil
	})
}

// Connections implements [backend.Router].
func (b *Backend) Connections(ctx context.Context, each func(mapped, real netip.Addr) (end bool)) error {
	b.mu.Lock()
	err, all := b.unableLocked(), slices.Clone(b.connections)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	var ended []connection
	for _, c := range all { // without the lock: each may call
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if each(c.mapped, c.real) {
			ended = append(ended, c)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range ended {
		if i := slices.Index(b.connections, c); i >= 0 {
			b.connections = slices.Delete(b.connections, i, i+1)
		}
	}
	return nil
}

// Mapped implements [backend.Router].
func (b *Backend) Mapped(_ context.Context, each func(mapped, real netip.Addr)) error {
	b.mu.Lock()
	err, all := b.unableLocked(), b.mappingsLocked()
	b.mu.Unlock()
	if err != nil {
		return err
	}
	for _, m := range all { // without the lock: each may call
		each(m.Mapped, m.Real)
	}
	return nil
}

// Granted implements [backend.Router]. Nothing lingers here.
func (b *Backend) Granted(ctx context.Context, each func(mapped netip.Addr)) error {
	b.mu.Lock()
	err := b.unableLocked()
	var all []netip.Addr
	if err == nil {
		b.expireLocked()
		for k := range b.kernel {
			if b.rules.Pooled(k.Addr()) {
				all = append(all, k.Addr())
			}
		}
	}
	b.mu.Unlock()
	for _, a := range all { // without the lock: each may call
		each(a)
	}
	return err
}

// Origins implements [backend.Router].
func (b *Backend) Origins(string) ([]backend.Origin, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.unableLocked(); err != nil || b.rules == nil {
		return b.left, err
	}
	return b.rules.Origins, nil
}

// Epoch implements [backend.Router].
func (b *Backend) Epoch() uint64 { return b.epoch.Load() }

// forgetLocked ends mappings that the rules do not have any more.
func (b *Backend) forgetLocked(r *backend.Rules) {
	before := len(b.mapped)
	if b.rules != nil && b.rules.Book != r.Book {
		clear(b.mapped)
	}
	maps.DeleteFunc(b.mapped, func(_ netip.Addr, m backend.Mapping) bool { return r.Mappable(m) != nil })
	if len(b.mapped) < before {
		b.epoch.Add(1)
	}
}

func (b *Backend) mappingsLocked() []backend.Mapping {
	return slices.SortedFunc(maps.Values(b.mapped), func(m, n backend.Mapping) int { return m.Mapped.Compare(n.Mapped) })
}
