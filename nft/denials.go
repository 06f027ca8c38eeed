package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Denials = (*Backend)(nil)

// Denied implements [backend.Denials] by dumping the kernel's sets, over a socket of its
// own: packets and transactions go on meanwhile.
func (b *Backend) Denied(ctx context.Context, each func(backend.Denial)) error {
	var r backend.Rules
	if err := b.do(func(w *writer) error { r = w.rules; return nil }); err != nil {
		return err
	}
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	for _, hook := range guardedHooks(r) {
		d := newDenial(r, hook)
		for _, k := range d.kinds(true) {
			for _, ipv4 := range []bool{true, false} {
				err := s.dumpSet(r.Table, forVersion(k.String(), ipv4), func(data []byte) bool {
					now := time.Now()
					for elem := range elementsIn(data) {
						if denial, ok := parseDenial(elem, k, ipv4, now); ok {
							each(denial)
						}
					}
					return ctx.Err() == nil
				})
				if err == nil {
					err = context.Cause(ctx) // the socket is of no use any more
				}
				if errors.Is(err, unix.ENOENT) {
					continue // nothing is bound, or a reload has meanwhile taken the set away
				}
				if err != nil {
					return explain(err)
				}
			}
		}
	}
	return nil
}

// parseDenial reads an element of a set of flows.
func parseDenial(elem []byte, k backend.Kind, ipv4 bool, now time.Time) (d backend.Denial, ok bool) {
	d.Kind = k
	for typ, value := range attributes(elem) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			for typ, key := range attributes(value) {
				if typ == unix.NFTA_DATA_VALUE {
					ok = parseFlowKey(key, &d.Flow, ipv4)
				}
			}
		case unix.NFTA_SET_ELEM_EXPIRATION:
			if len(value) == 8 {
				left := time.Duration(binary.BigEndian.Uint64(value)) * time.Millisecond
				d.Last = now.Add(left - backend.ListedFor)
			}
		case unix.NFTA_SET_ELEM_EXPR:
			for typ, data := range attributes(value) {
				if typ == unix.NFTA_EXPR_DATA {
					d.Count = parseCount(data)
				}
			}
		}
	}
	return d, ok
}

// parseFlowKey reads the key of a flow: see flowKeys.
func parseFlowKey(key []byte, f *backend.Flow, ipv4 bool) bool {
	addr := 16
	if ipv4 {
		addr = 4
	}
	addresses := 1
	if f.Hook == backend.Forward {
		addresses = 2
	}
	if len(key) != 4+addresses*addr+4+4 {
		return false
	}
	first := binary.NativeEndian.Uint32(key)
	key = key[4:]
	if f.Hook == backend.Forward {
		f.Interface = first
		f.Client, _ = netip.AddrFromSlice(key[:addr])
		key = key[addr:]
	} else {
		f.User = first
	}
	f.Addr, _ = netip.AddrFromSlice(key[:addr])
	f.Protocol = key[addr]
	f.Port = binary.BigEndian.Uint16(key[addr+4:])
	return true
}

// Tallies implements [backend.Denials].
func (b *Backend) Tallies(ctx context.Context) (tallies [backend.Hooks]backend.Tally, err error) {
	table, err := b.table(ctx)
	if err != nil || table == "" {
		return tallies, err
	}
	s, err := openSocket()
	if err != nil {
		return tallies, err
	}
	defer s.close()
	counts, err := s.counters(table)
	if err != nil {
		return tallies, explain(err)
	}
	for h := range backend.Hooks {
		tallies[h] = backend.Tally{
			Refused:  counts[backend.Kind{Hook: h}.String()],
			Audited:  counts[backend.Kind{Hook: h, Audited: true}.String()],
			Unlisted: counts[counterUnlisted+"-"+h.String()],
		}
	}
	return tallies, nil
}
