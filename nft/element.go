package nft

import (
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Grants are written by an encoder of our own: google/nftables takes four times
// as long for one, cuts off more than 2,340 in a call without an error, and
// cannot ask for a single one.

// An element is a grant on its way to or from a set.
type element struct {
	key  backend.Key
	left time.Duration // of its life; 0 where it does not matter
}

// perMessage bounds the list of elements, an attribute of at most 64 KiB.
const perMessage = 1000

// addElements appends messages that do typ to elements of one IP version.
func (b *batch) addElements(typ, flags uint16, table string, ipv4 bool, elements []element) {
	for len(elements) > 0 {
		n := min(len(elements), perMessage)
		b.open(typ, flags)
		start := b.last
		b.buf = appendElements(b.buf, table, ipv4, elements[:n])
		b.closeMessage(start)
		elements = elements[n:]
	}
}

func appendElements(b []byte, table string, ipv4 bool, elements []element) []byte {
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_SET, forVersion(setGranted, ipv4))
	b, list := nest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for i := range elements {
		e := &elements[i]
		addr := e.key[:]
		if ipv4 {
			addr = addr[12:]
		}
		var elem, key int
		b, elem = nest(b, unix.NFTA_LIST_ELEM)
		b, key = nest(b, unix.NFTA_SET_ELEM_KEY)
		b = appendAttribute(b, unix.NFTA_DATA_VALUE, addr)
		unnest(b, key)
		if e.left > 0 {
			// Without a timeout it would stay for good.
			b = appendUint64(b, unix.NFTA_SET_ELEM_TIMEOUT, uint64(max(e.left.Milliseconds(), 1)))
		}
		unnest(b, elem)
	}
	unnest(b, list)
	return b
}

// parseElements calls each for every element in an answer of the kernel.
func parseElements(data []byte, each func(element)) {
	for typ, list := range attributes(data) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, elem := range attributes(list) {
			if e, ok := parseElement(elem); ok {
				each(e)
			}
		}
	}
}

func parseElement(data []byte) (e element, ok bool) {
	for typ, value := range attributes(data) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			for typ, addr := range attributes(value) {
				switch {
				case typ != unix.NFTA_DATA_VALUE:
				case len(addr) == 4:
					e.key, ok = backend.Key{10: 0xff, 11: 0xff, 12: addr[0], 13: addr[1], 14: addr[2], 15: addr[3]}, true
				case len(addr) == 16:
					e.key, ok = backend.Key(addr), true
				}
			}
		case unix.NFTA_SET_ELEM_EXPIRATION:
			if len(value) == 8 {
				e.left = time.Duration(binary.BigEndian.Uint64(value)) * time.Millisecond
			}
		}
	}
	return e, ok
}

// get asks for one element. An element without a timeout, which is none of ours,
// has nothing left of its life.
func (s *socket) get(table string, k backend.Key) (left time.Duration, found bool, err error) {
	attrs := appendElements(nil, table, k.Is4(), []element{{key: k}})
	err = s.request(unix.NFT_MSG_GETSETELEM, 0, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		parseElements(data, func(e element) { left, found = e.left, true })
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	return left, found, err
}

// dump reads a whole set and hands it over piece by piece, until each wants no
// more; the socket is of no use then. It does not mind changes meanwhile: an
// element may be missed or come twice. Every piece makes the kernel walk over
// all the elements before it.
func (s *socket) dump(table string, ipv4 bool, each func([]element) (more bool)) error {
	attrs := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	attrs = appendString(attrs, unix.NFTA_SET_ELEM_LIST_SET, forVersion(setGranted, ipv4))
	return s.request(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		var part []element
		parseElements(data, func(e element) { part = append(part, e) })
		return each(part)
	})
}
