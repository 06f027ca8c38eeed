package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Connections are read over ctnetlink, piece by piece, on sockets of their own: there may
// be a million. (include/uapi/linux/netfilter/nfnetlink_conntrack.h)
const (
	ctGet    = 1 // IPCTNL_MSG_CT_GET
	ctDelete = 2 // IPCTNL_MSG_CT_DELETE

	ctaOriginal   = 1  // CTA_TUPLE_ORIG
	ctaReply      = 2  // CTA_TUPLE_REPLY
	ctaStatus     = 3  // CTA_STATUS
	ctaID         = 12 // CTA_ID
	ctaZone       = 18 // CTA_ZONE
	ctaStatusMask = 26 // CTA_STATUS_MASK, of a filter; Linux 5.17 and later

	ctaTupleIP, ctaTupleProto                      = 1, 2
	ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst = 1, 2, 3, 4
	ctaProtoNum, ctaProtoFrom, ctaProtoTo          = 1, 2, 3
)

// tracked is a connection as connection tracking has it.
type tracked struct {
	original backend.Connection // as its first packet had it
	real     netip.Addr         // where replies come from
	status   uint32
	name     []byte // what it is called by: its first packet's ends, number and zone
}

// eachTracked visits the connections that filter lets through, and ends those for which
// each says so.
func eachTracked(ctx context.Context, filter []byte, each func(*tracked) (end bool)) error {
	read, err := openSocket()
	if err != nil {
		return err
	}
	defer read.close()
	end, err := openSocket()
	if err != nil {
		return err
	}
	defer end.close()
	var stopped error
	err = read.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctGet, unix.NLM_F_DUMP, unix.AF_UNSPEC, filter, func(data []byte) bool {
		if ctx.Err() != nil {
			stopped = context.Cause(ctx)
			return false
		}
		if t, ok := parseTracked(data); ok && each(&t) {
			stopped = end.endTracked(&t)
		}
		return stopped == nil
	})
	if stopped != nil {
		return stopped
	}
	return explainTracking(err)
}

// endTracked makes the kernel forget a connection, if it is still that one.
func (s *socket) endTracked(t *tracked) error {
	family := byte(unix.AF_INET6)
	if t.original.To.Addr().Is4() {
		family = unix.AF_INET
	}
	err := s.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctDelete, unix.NLM_F_ACK, family, t.name, func([]byte) bool { return true })
	if err == nil || errors.Is(err, unix.ENOENT) { // it has ended by itself
		return nil
	}
	return fmt.Errorf("ending the connection from %v: %w", t.original, explainTracking(err))
}

// parseTracked reads a connection as the kernel tells of it.
func parseTracked(data []byte) (t tracked, ok bool) {
	for typ, value := range attributes(data) {
		switch typ {
		case ctaOriginal:
			t.name = appendAttribute(t.name, typ|unix.NLA_F_NESTED, value)
			t.original = parseTuple(value)
		case ctaReply:
			t.real = parseTuple(value).From.Addr()
		case ctaStatus:
			if len(value) == 4 {
				t.status = binary.BigEndian.Uint32(value)
			}
		case ctaID, ctaZone: // or another one with the same ends would go
			t.name = appendAttribute(t.name, typ, value)
		}
	}
	return t, t.original.From.IsValid() && t.original.To.IsValid()
}

func parseTuple(tuple []byte) (c backend.Connection) {
	var from, to netip.Addr
	var ports [2]uint16
	for typ, part := range attributes(tuple) {
		for sub, v := range attributes(part) {
			switch {
			case typ == ctaTupleIP && (sub == ctaIPv4Src || sub == ctaIPv6Src):
				from, _ = netip.AddrFromSlice(v)
			case typ == ctaTupleIP && (sub == ctaIPv4Dst || sub == ctaIPv6Dst):
				to, _ = netip.AddrFromSlice(v)
			case typ == ctaTupleProto && sub == ctaProtoNum && len(v) == 1:
				c.Protocol = v[0]
			case typ == ctaTupleProto && (sub == ctaProtoFrom || sub == ctaProtoTo) && len(v) == 2:
				ports[sub-ctaProtoFrom] = binary.BigEndian.Uint16(v)
			}
		}
	}
	c.From, c.To = netip.AddrPortFrom(from, ports[0]), netip.AddrPortFrom(to, ports[1])
	return c
}

// checkTracking finds out whether the kernel lets connections be read: it is asked for one
// that cannot be.
func (s *socket) checkTracking() error {
	attrs, tuple := nest(nil, ctaOriginal)
	attrs, addrs := nest(attrs, ctaTupleIP)
	attrs = appendAttribute(attrs, ctaIPv4Src, make([]byte, 4))
	attrs = appendAttribute(attrs, ctaIPv4Dst, make([]byte, 4))
	closeAttribute(attrs, addrs)
	attrs, proto := nest(attrs, ctaTupleProto)
	attrs = appendAttribute(attrs, ctaProtoNum, []byte{unix.IPPROTO_RAW})
	closeAttribute(attrs, proto)
	closeAttribute(attrs, tuple)
	err := s.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctGet, 0, unix.AF_INET, attrs, func([]byte) bool { return true })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explainTracking(err)
}

func explainTracking(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return &unsupportedError{err, "nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)"}
	}
	return explain(err)
}
