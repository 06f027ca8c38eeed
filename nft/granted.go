package nft

import (
	"cmp"
	"context"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Mapped implements [backend.Router]. It does not keep grants waiting.
func (b *Backend) Mapped(ctx context.Context, each func(mapped, real netip.Addr)) error {
	rules, s, err := b.besideWriter()
	if s == nil {
		return err
	}
	defer s.close()
	for _, ipv4 := range versions {
		err := s.dumpSet(rules.Table, mappedName(ipv4, rules.Book), func(data []byte) bool {
			for elem := range elementsIn(data) {
				mapped, real := ipIn(elem, unix.NFTA_SET_ELEM_KEY), ipIn(elem, unix.NFTA_SET_ELEM_DATA)
				each(netip.AddrFrom16(mapped).Unmap(), netip.AddrFrom16(real).Unmap())
			}
			return ctx.Err() == nil
		})
		if err = cmp.Or(err, context.Cause(ctx)); err != nil {
			return explain(err)
		}
	}
	return nil
}

// Granted implements [backend.Router]. It does not keep grants waiting.
func (b *Backend) Granted(ctx context.Context, each func(mapped netip.Addr)) error {
	rules, s, err := b.besideWriter()
	if s == nil {
		return err
	}
	defer s.close()
	var stopped error
	visit := func(part []element) bool {
		if ctx.Err() != nil {
			stopped = context.Cause(ctx)
			return false
		}
		for _, e := range part {
			if addr := e.key.Addr(); rules.Pooled(addr) {
				each(addr)
			}
		}
		return true
	}
	for _, set := range newGrantSets(rules).all() {
		names := []string{set.name}
		if rules.Linger > 0 {
			names = append(names, set.named(setLinger))
		}
		for _, name := range names {
			like := *set
			like.name = name
			if err := s.dump(rules.Table, &like, visit); stopped != nil || err != nil {
				if stopped == nil {
					stopped = err
				}
				return stopped
			}
		}
	}
	return nil
}

// besideWriter returns the rules, and a socket to read what stands for their routes; none if
// they have no routes.
func (b *Backend) besideWriter() (rules backend.Rules, s *socket, err error) {
	if err = b.do(func(w *writer) error { rules = w.rules; return nil }); err != nil || len(rules.Routes) == 0 {
		return rules, nil, err
	}
	s, err = openSocket()
	return rules, s, err
}
