package nft

import (
	"encoding/binary"
	"errors"
	"iter"
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

// addElements appends messages that do typ to elements of one set.
func (b *batch) addElements(typ, flags uint16, table string, set *grantSet, elements []element) {
	for len(elements) > 0 {
		n := min(len(elements), perMessage)
		b.open(typ, flags)
		start := b.last
		b.buf = appendElements(b.buf, table, set, elements[:n])
		b.closeMessage(start)
		elements = elements[n:]
	}
}

func appendElements(b []byte, table string, set *grantSet, elements []element) []byte {
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_SET, set.name)
	b, list := nest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for i := range elements {
		e := &elements[i]
		var elem, key, value int
		b, elem = nest(b, unix.NFTA_LIST_ELEM)
		b, key = nest(b, unix.NFTA_SET_ELEM_KEY)
		b, value = openAttribute(b, unix.NFTA_DATA_VALUE)
		b = set.appendKey(b, &e.key)
		closeAttribute(b, value)
		closeAttribute(b, key)
		if e.left > 0 {
			// Without a timeout it would stay for good.
			b = appendUint64(b, unix.NFTA_SET_ELEM_TIMEOUT, uint64(max(e.left.Milliseconds(), 1)))
		}
		closeAttribute(b, elem)
	}
	closeAttribute(b, list)
	return b
}

// parseElements calls each for every element of a set in an answer of the kernel.
func parseElements(data []byte, set *grantSet, each func(element)) {
	for elem := range elementsIn(data) {
		if e, ok := parseElement(elem, set); ok {
			each(e)
		}
	}
}

func parseElement(data []byte, set *grantSet) (e element, ok bool) {
	for typ, value := range attributes(data) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			for typ, key := range attributes(value) {
				if typ == unix.NFTA_DATA_VALUE {
					e.key, ok = set.parseKey(key)
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
func (s *socket) get(table string, set *grantSet, k backend.Key) (left time.Duration, found bool, err error) {
	attrs := appendElements(nil, table, set, []element{{key: k}})
	err = s.request(unix.NFT_MSG_GETSETELEM, 0, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		parseElements(data, set, func(e element) { left, found = e.left, true })
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	return left, found, err
}

// get asks the kernel for a grant that the rules can have.
func (w *writer) get(k backend.Key) (left time.Duration, found bool, err error) {
	return w.socket.get(w.rules.Table, w.grants[setOf(&k)], k)
}

// dump reads a whole set and hands it over piece by piece, until each wants no
// more; the socket is of no use then. It does not mind changes meanwhile: an
// element may be missed or come twice. Every piece makes the kernel walk over
// all the elements before it.
func (s *socket) dump(table string, set *grantSet, each func([]element) (more bool)) error {
	return s.dumpSet(table, set.name, func(data []byte) bool {
		var part []element
		parseElements(data, set, func(e element) { part = append(part, e) })
		return each(part)
	})
}

// dumpSet reads a whole set of any kind, and hands over the answers of the kernel.
func (s *socket) dumpSet(table, set string, each func(data []byte) (more bool)) error {
	attrs := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	attrs = appendString(attrs, unix.NFTA_SET_ELEM_LIST_SET, set)
	return s.request(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs, each)
}

// elementsIn yields the elements in an answer of the kernel.
func elementsIn(data []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for typ, list := range attributes(data) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, elem := range attributes(list) {
				if !yield(elem) {
					return
				}
			}
		}
	}
}
