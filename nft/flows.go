package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Connections are read over ctnetlink, piece by piece, on a socket of their own: there may
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

	ctaTupleIP = 1 // CTA_TUPLE_IP
)

// A flow is a connection that has been translated.
type flow struct {
	mapped, real netip.Addr // where its first packet went to, and where replies come from
	original     []byte     // its tuple, as the kernel spells it
	zone         []byte
	id           []byte
	status       uint32
}

// Connections implements [backend.Router]. It does not keep grants waiting. Addresses that
// are mapped no more, and have no connections left, are bound no more.
func (b *Backend) Connections(ctx context.Context, each func(mapped, real netip.Addr) (end bool)) error {
	var rules backend.Rules
	var fading map[ip]bool
	if err := b.do(func(w *writer) error {
		rules, fading = w.rules, maps.Clone(w.mapped.fading)
		return nil
	}); err != nil {
		return err
	}
	if len(rules.Routes) == 0 {
		return nil
	}
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

	own, err := ownAddrs()
	if err != nil {
		return err
	}
	filter := appendUint32(nil, ctaStatus, statusDNAT)
	filter = appendUint32(filter, ctaStatusMask, statusDNAT)
	var stopped error
	err = read.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctGet, unix.NLM_F_DUMP, unix.AF_UNSPEC, filter, func(data []byte) bool {
		if ctx.Err() != nil {
			stopped = context.Cause(ctx)
			return false
		}
		f := parseFlow(data)
		if f.status&statusDNAT == 0 || !rules.Pooled(f.mapped) || own[f.real] {
			return true // what leads here is captured DNS
		}
		if !each(f.mapped, f.real) {
			delete(fading, f.mapped.As16())
			return true
		}
		stopped = end.end(&f)
		return stopped == nil
	})
	switch {
	case stopped != nil:
		return stopped
	case err != nil:
		return explainFlows(err)
	case len(fading) > 0:
		return b.ask(ctx, &request{unbind: slices.Collect(maps.Keys(fading)), done: make(chan error, 1)})
	}
	return nil
}

// ownAddrs are those of this machine.
func ownAddrs() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	own := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			addr, _ := netip.AddrFromSlice(n.IP)
			own[addr.Unmap()] = true
		}
	}
	return own, err
}

// end makes the kernel forget a connection, if it is still that one.
func (s *socket) end(f *flow) error {
	attrs := appendAttribute(nil, ctaOriginal|unix.NLA_F_NESTED, f.original)
	attrs = appendAttribute(attrs, ctaID, f.id)
	if f.zone != nil {
		attrs = appendAttribute(attrs, ctaZone, f.zone)
	}
	family := byte(unix.AF_INET6)
	if f.mapped.Is4() {
		family = unix.AF_INET
	}
	err := s.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctDelete, unix.NLM_F_ACK, family, attrs, func([]byte) bool { return true })
	switch {
	case err == nil, errors.Is(err, unix.ENOENT): // it has ended
		return nil
	}
	return fmt.Errorf("ending a connection to %v: %w", f.mapped, explainFlows(err))
}

func parseFlow(data []byte) (f flow) {
	for typ, value := range attributes(data) {
		switch typ {
		case ctaOriginal:
			f.original = value
			_, f.mapped = tupleAddrs(value)
		case ctaReply:
			f.real, _ = tupleAddrs(value)
		case ctaStatus:
			if len(value) == 4 {
				f.status = binary.BigEndian.Uint32(value)
			}
		case ctaID:
			f.id = value
		case ctaZone:
			f.zone = value
		}
	}
	return f
}

// tupleAddrs returns the addresses of a tuple.
func tupleAddrs(tuple []byte) (source, destination netip.Addr) {
	for typ, value := range attributes(tuple) {
		if typ != ctaTupleIP {
			continue
		}
		for typ, addr := range attributes(value) {
			switch typ {
			case 1, 3: // CTA_IP_V4_SRC, CTA_IP_V6_SRC
				source, _ = netip.AddrFromSlice(addr)
			case 2, 4: // CTA_IP_V4_DST, CTA_IP_V6_DST
				destination, _ = netip.AddrFromSlice(addr)
			}
		}
	}
	return source, destination
}

// checkFlows finds out whether the kernel lets connections be read: it is asked for one
// that cannot be.
func (s *socket) checkFlows() error {
	attrs, tuple := nest(nil, ctaOriginal)
	attrs, addrs := nest(attrs, ctaTupleIP)
	attrs = appendAttribute(attrs, 1, make([]byte, 4))
	attrs = appendAttribute(attrs, 2, make([]byte, 4))
	closeAttribute(attrs, addrs)
	attrs, proto := nest(attrs, 2) // CTA_TUPLE_PROTO
	attrs = appendAttribute(attrs, 1, []byte{unix.IPPROTO_RAW})
	closeAttribute(attrs, proto)
	closeAttribute(attrs, tuple)
	err := s.requestOf(unix.NFNL_SUBSYS_CTNETLINK, ctGet, 0, unix.AF_INET, attrs, func([]byte) bool { return true })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explainFlows(err)
}

func explainFlows(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return &unsupportedError{err, "nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)"}
	}
	return explain(err)
}
