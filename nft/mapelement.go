package nft

import (
	"errors"

	"golang.org/x/sys/unix"
)

// addMappings appends messages that do typ to elements of a map, or of a set.
func (b *batch) addMappings(typ, flags uint16, table, set string, ipv4, withReal bool, elements []mapping) {
	for len(elements) > 0 {
		n := min(len(elements), perMessage)
		b.open(typ, flags)
		start := b.last
		b.buf = appendMappings(b.buf, table, set, ipv4, withReal, elements[:n])
		b.closeMessage(start)
		elements = elements[n:]
	}
}

func appendMappings(b []byte, table, set string, ipv4, withReal bool, elements []mapping) []byte {
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_SET, set)
	b, list := nest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for i := range elements {
		e := &elements[i]
		var elem int
		b, elem = nest(b, unix.NFTA_LIST_ELEM)
		b = appendIP(b, unix.NFTA_SET_ELEM_KEY, &e.addr, ipv4)
		if withReal {
			b = appendIP(b, unix.NFTA_SET_ELEM_DATA, &e.real, ipv4)
		}
		closeAttribute(b, elem)
	}
	closeAttribute(b, list)
	return b
}

func appendIP(b []byte, typ uint16, a *ip, ipv4 bool) []byte {
	from := 0
	if ipv4 {
		from = 12
	}
	b, outer := nest(b, typ)
	b = appendAttribute(b, unix.NFTA_DATA_VALUE, a[from:])
	closeAttribute(b, outer)
	return b
}

// standsBehind asks the kernel what it has behind a mapped address.
func (w *writer) standsBehind(a *ip) (real ip, found bool, err error) {
	return w.socket.getMapping(w.rules.Table, mappedName(is4(a), w.rules.Book), a)
}

// isOf asks the kernel whether an address is of a route that the rules have.
func (w *writer) isOf(a *ip, route string) (bool, error) {
	_, found, err := w.socket.getMapping(w.rules.Table, routeName(route, is4(a), w.rules.Book), a)
	return found, err
}

// isBound asks the kernel whether connections to an address take no other way.
func (w *writer) isBound(a *ip) (bool, error) {
	_, found, err := w.socket.getMapping(w.rules.Table, forVersion(setBound, is4(a)), a)
	return found, err
}

func (s *socket) getMapping(table, set string, a *ip) (real ip, found bool, err error) {
	attrs := appendMappings(nil, table, set, is4(a), false, []mapping{{addr: *a}})
	err = s.request(unix.NFT_MSG_GETSETELEM, 0, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		for typ, list := range attributes(data) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, elem := range attributes(list) {
				real, found = ipIn(elem, unix.NFTA_SET_ELEM_DATA), true
			}
		}
		return false // nothing comes after it
	})
	if errors.Is(err, unix.ENOENT) {
		return ip{}, false, nil
	}
	return real, found, err
}

// ipIn returns the address in an element: its key, or what stands behind that.
func ipIn(elem []byte, part uint16) (a ip) {
	for typ, value := range attributes(elem) {
		if typ != part {
			continue
		}
		for typ, data := range attributes(value) {
			switch {
			case typ != unix.NFTA_DATA_VALUE:
			case len(data) == 4:
				a = ip{10: 0xff, 11: 0xff}
				copy(a[12:], data)
			case len(data) == 16:
				copy(a[:], data)
			}
		}
	}
	return a
}
