package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var _ backend.Cutter = (*Backend)(nil)

// What connection tracking is asked and answers (nfnetlink_conntrack.h).
const (
	ctGet, ctDelete = 1, 2

	ctaTupleOrig, ctaID, ctaZone = 1, 12, 18

	ctaTupleIP, ctaTupleProto                        = 1, 2
	ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst   = 1, 2, 3, 4
	ctaProtoNum, ctaProtoSrcPort, ctaProtoDestinPort = 1, 2, 3
)

// errArming means that what is cut is taken for a connection older than the guard.
var errArming = errors.New("the guard is too young: until 30 s after it has made its table, TCP connections that it has not seen begin go on, and so do those that are cut: try again then")

// Cut implements [backend.Cutter]. Connection tracking forgets what is cut; for the rules,
// its next packet begins a connection, or is in the middle of none.
func (b *Backend) Cut(ctx context.Context, which func(backend.Connection) bool) (n int, err error) {
	var table string
	if err := b.do(func(w *writer) error { table = w.rules.Table; return nil }); err != nil {
		return 0, err
	}
	read, err := openSocket()
	if err != nil {
		return 0, err
	}
	defer read.close()
	arming := false
	attrs := appendString(appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table), unix.NFTA_SET_ELEM_LIST_SET, setArming)
	if err := read.request(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		for typ, elements := range attributes(data) {
			arming = arming || typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS && len(elements) > 0
		}
		return true
	}); err == nil && arming {
		return 0, errArming
	}
	end, err := openSocket()
	if err != nil {
		return 0, err
	}
	defer end.close()
	var failed error
	err = read.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctGet, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil, func(data []byte) bool {
		c, name, ok := parseConnection(data)
		if !ok || !which(c) {
			return ctx.Err() == nil
		}
		switch err := end.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctDelete, unix.NLM_F_ACK, familyOf(c.To.Addr()), name, nil); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT): // it has ended by itself
			failed = err
		}
		return ctx.Err() == nil && failed == nil
	})
	switch {
	case failed != nil:
		err = failed
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return n, explain(err)
}

func familyOf(addr netip.Addr) byte {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// parseConnection reads one as the kernel tells of it, and what it is called by.
func parseConnection(data []byte) (c backend.Connection, name []byte, ok bool) {
	var from, to netip.Addr
	var ports [2]uint16
	for typ, value := range attributes(data) {
		switch typ {
		case ctaTupleOrig:
			name = appendAttribute(name, typ|unix.NLA_F_NESTED, value)
			for typ, part := range attributes(value) {
				switch typ {
				case ctaTupleIP:
					for typ, ip := range attributes(part) {
						switch typ {
						case ctaIPv4Src, ctaIPv6Src:
							from, _ = netip.AddrFromSlice(ip)
						case ctaIPv4Dst, ctaIPv6Dst:
							to, _ = netip.AddrFromSlice(ip)
						}
					}
				case ctaTupleProto:
					for typ, v := range attributes(part) {
						switch {
						case typ == ctaProtoNum && len(v) == 1:
							c.Protocol = v[0]
						case (typ == ctaProtoSrcPort || typ == ctaProtoDestinPort) && len(v) == 2:
							ports[typ-ctaProtoSrcPort] = binary.BigEndian.Uint16(v)
						}
					}
				}
			}
		case ctaID, ctaZone: // or another one with the same ends would go
			name = appendAttribute(name, typ, value)
		}
	}
	c.From, c.To = netip.AddrPortFrom(from, ports[0]), netip.AddrPortFrom(to, ports[1])
	return c, name, from.IsValid() && to.IsValid()
}
