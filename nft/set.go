package nft

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// A set is one with a name.
type set struct {
	name, comment string
	key           selector
	data          nftables.SetDatatype // of what stands behind a key, in a map
	interval      bool                 // it holds ranges

	kept    bool          // elements come and go one by one, and survive a reload
	timeout bool          // they end by themselves; and survive a reload, too
	dynamic bool          // packets add elements
	size    int           // most elements; 0 for no bound
	gc      time.Duration // how often the kernel looks for what has run out; 0 for its default

	holds []span // what a set without timeouts holds
}

// A span is all keys from one to the other.
type span struct{ from, to []byte }

func only(key []byte) span { return span{key, key} }

// hold makes the set hold these keys, in the order in which nft prints them.
func (s *set) hold(keys ...[]byte) {
	slices.SortFunc(keys, s.key.compare)
	s.holds = nil
	for _, k := range slices.CompactFunc(keys, bytes.Equal) {
		s.holds = append(s.holds, only(k))
	}
}

// newAddrSets returns a set of ranges for each IP version.
func newAddrSets(name, comment string, prefixes []netip.Prefix) (sets []set) {
	v4, v6 := ranges(prefixes)
	for i, spans := range [][]span{v4, v6} {
		ipv4 := i == 0
		sets = append(sets, set{
			name: forVersion(name, ipv4), comment: comment, key: selector{destination(ipv4)}, interval: true, holds: spans,
		})
	}
	return sets
}

// forVersion is the name of a set for one IP version.
func forVersion(name string, ipv4 bool) string {
	if ipv4 {
		return name + "4"
	}
	return name + "6"
}

// ranges joins what overlaps or touches, so that the kernel's interval sets take
// it, and parts the IP versions.
func ranges(prefixes []netip.Prefix) (v4, v6 []span) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	all, _ := b.IPSet() // errors only on invalid prefixes, which Rules cannot hold
	for _, r := range all.Ranges() {
		s := span{r.From().AsSlice(), r.To().AsSlice()}
		if r.From().Is4() {
			v4 = append(v4, s)
		} else {
			v6 = append(v6, s)
		}
	}
	return v4, v6
}

// elements spells what the set holds as the kernel wants it: ranges of one field by
// where they begin and, if there is anything after it, that as the end.
func (s *set) elements() (all []nftables.SetElement) {
	for _, h := range s.holds {
		switch {
		case !s.interval:
			all = append(all, nftables.SetElement{Key: h.from})
		case len(s.key) > 1:
			all = append(all, nftables.SetElement{Key: h.from, KeyEnd: h.to})
		default:
			all = append(all, nftables.SetElement{Key: h.from})
			last, _ := netip.AddrFromSlice(h.to)
			if end := last.Next(); end.IsValid() {
				all = append(all, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
			}
		}
	}
	return all
}

// outline spells elements so that they can be compared.
func outline(elements []nftables.SetElement) []string {
	var all []string
	for _, e := range elements {
		all = append(all, fmt.Sprint(e.Key, e.KeyEnd, e.IntervalEnd))
	}
	slices.Sort(all)
	return all
}

// isMap reports whether something stands behind each key.
func (s *set) isMap() bool { return s.data.Bytes > 0 }

// lasts reports whether elements survive a reload.
func (s *set) lasts() bool { return s.timeout || s.kept }

// standsAs reports whether a set in the kernel can be made this one by exchanging its
// elements. A size can be raised, and kernels that do not know how leave it; one that is
// too large may have too many elements.
func (s *set) standsAs(have *nftables.Set) bool {
	return have != nil && have.IsMap == s.isMap() && (!have.IsMap || have.DataType.Name == s.data.Name) && have.KeyType.Name == s.key.key().Name && have.Interval == s.interval &&
		have.HasTimeout == s.timeout && have.Dynamic == s.dynamic && (have.Size == 0) == (s.size == 0) && have.Size <= uint32(s.size)
}

// compile returns the messages that make the set, if it is not there, and fill it.
func (s *set) compile(table *nftables.Table, fill bool) ([]netlink.Message, error) {
	ns := &nftables.Set{
		Table: table, Name: s.name, Comment: fit(s.comment), KeyType: s.key.key(),
		KeyByteOrder: binaryutil.BigEndian,
		IsMap:        s.isMap(), DataType: s.data, HasTimeout: s.timeout, Interval: s.interval, Dynamic: s.dynamic, Size: uint32(s.size),
		Concatenation: s.interval && len(s.key) > 1,
	}
	if s.key[0].native {
		ns.KeyByteOrder = binaryutil.NativeEndian // only nft wants to know
	}
	msgs, err := compose(func(c *nftables.Conn) error { return c.AddSet(ns, nil) })
	if err != nil {
		return nil, err
	}
	if s.gc > 0 { // google/nftables v0.3.0 does not know the attribute
		attr, err := netlink.MarshalAttributes([]netlink.Attribute{{
			Type: unix.NFTA_SET_GC_INTERVAL, Data: binaryutil.BigEndian.PutUint32(uint32(s.gc.Milliseconds())),
		}})
		if err != nil {
			return nil, err
		}
		msgs[0].Data = append(msgs[0].Data, attr...)
	}
	if !fill {
		return msgs, nil
	}
	// An attribute holds 64 KiB, so many ranges need several messages.
	const perMessage = 1000
	for chunk := range slices.Chunk(s.elements(), perMessage) {
		more, err := compose(func(c *nftables.Conn) error { return c.SetAddElements(ns, chunk) })
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, more...)
	}
	return msgs, nil
}

// texts are what a set without timeouts holds, as nft prints it.
func (s *set) texts() (texts []string) {
	for _, h := range s.holds {
		texts = append(texts, s.key.spanText(h))
	}
	return texts
}

// maxComment is how long nft lets a comment be.
const maxComment = 128

// fit makes words fit for a comment, which nft puts between quotes as they are.
func fit(words string) string {
	words = strings.Map(func(r rune) rune {
		if r == '"' || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, words)
	const cut = "..."
	if len(words) <= maxComment {
		return words
	}
	return strings.ToValidUTF8(words[:maxComment-len(cut)], "") + cut
}
