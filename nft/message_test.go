package nft

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// message is a netlink message taken apart.
type message struct {
	typ, flags uint16
	seq        uint32
	data       []byte // after the header of nfnetlink
}

func split(t *testing.T, b []byte) (all []message) {
	t.Helper()
	for len(b) > 0 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr+4 || size > len(b) {
			t.Fatalf("a message of %d bytes in %d", size, len(b))
		}
		all = append(all, message{
			binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]),
			b[unix.SizeofNlMsghdr+4 : size],
		})
		b = b[align(size):]
	}
	return all
}

// scopedSets are the sets of grants of all kinds of holders.
func scopedSets() grantSets { return newGrantSets(backendtest.ScopedRules()) }

func elementsOf(set *grantSet, n int) (elements []element) {
	for i, a := range backendtest.Addrs(0, 2*n) {
		scope := map[backend.Holder]backend.Scope{
			backend.Machine: {Holder: backend.Machine},
			backend.User:    backend.UserScope(uint32(i)),
			backend.Unit:    backend.UnitScope(1<<40 + uint64(i)),
			backend.Client:  backend.ClientScope(a),
			backend.Link:    backend.LinkScope(uint32(i), [6]byte{2, 3, 4, 5, byte(i >> 8), byte(i)}),
		}[set.scope.Holder]
		scope.Class = set.scope.Class
		if a.Is4() == set.ipv4 {
			elements = append(elements, element{scope.Key(a), time.Duration(len(elements)+1) * time.Millisecond})
		}
	}
	return elements
}

// Elements come back from their messages as they went in, and no message is
// longer than an attribute can be.
func TestElementsRoundTrip(t *testing.T) {
	sets := scopedSets()
	if n := len(sets.all()); n != 2*(6+6+4) {
		t.Errorf("%d sets", n)
	}
	for n, set := range sets {
		if set == nil {
			continue
		}
		if got := setOf(&elementsOf(set, 1)[0].key); got != n {
			t.Errorf("%s has number %d, want %d", set.name, got, n)
		}
		for _, n := range []int{0, 1, 2, perMessage, perMessage + 1, 3*perMessage - 1} {
			want := elementsOf(set, n)
			var b batch
			b.begin(0)
			b.addElements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "table", set, want)
			b.addElements(unix.NFT_MSG_DELSETELEM, 0, "table", set, nil)
			msgs := split(t, b.finish(1))
			var got []element
			for _, m := range msgs[1 : len(msgs)-1] {
				if len(m.data) >= 1<<16 {
					t.Errorf("a message of %d bytes", len(m.data))
				}
				for typ, value := range attributes(m.data) {
					switch {
					case typ == unix.NFTA_SET_ELEM_LIST_TABLE && cString(value) != "table",
						typ == unix.NFTA_SET_ELEM_LIST_SET && cString(value) != set.name:
						t.Errorf("attribute %d: %q", typ, value)
					case typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS:
						for _, elem := range attributes(value) {
							e, ok := parseElement(elem, set)
							if !ok {
								t.Error("an element without a key")
							}
							for typ, value := range attributes(elem) {
								if typ == unix.NFTA_SET_ELEM_TIMEOUT {
									e.left = time.Duration(binary.BigEndian.Uint64(value)) * time.Millisecond
								}
							}
							got = append(got, e)
						}
					}
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d elements of %s: got %d", n, set.name, len(got))
			}
		}
	}
}

// A life under a millisecond is a millisecond: without one, an element stays.
func TestNoElementIsForGood(t *testing.T) {
	set := scopedSets()[0]
	for _, left := range []time.Duration{1, time.Microsecond, time.Millisecond - 1} {
		b := appendElements(nil, "t", set, []element{{elementsOf(set, 1)[0].key, left}})
		timeout := appendUint64(nil, unix.NFTA_SET_ELEM_TIMEOUT, 1)
		if !strings.Contains(string(b), string(timeout)) {
			t.Errorf("%v: %x", left, b)
		}
	}
}

func TestParseElement(t *testing.T) {
	key := func(addr ...byte) []byte {
		b, n := nest(nil, unix.NFTA_SET_ELEM_KEY)
		b = appendAttribute(b, unix.NFTA_DATA_VALUE, addr)
		closeAttribute(b, n)
		return b
	}
	left := appendUint64(nil, unix.NFTA_SET_ELEM_EXPIRATION, 1500)
	for _, tt := range []struct {
		name string
		data []byte
		want string
		left time.Duration
	}{
		{"IPv4", append(key(192, 0, 2, 1), left...), "192.0.2.1", 1500 * time.Millisecond},
		{"IPv6", append(key(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), left...), "2001:db8::1", 1500 * time.Millisecond},
		{"without an end", key(192, 0, 2, 1), "192.0.2.1", 0},
		{"a short end", append(key(192, 0, 2, 1), appendUint32(nil, unix.NFTA_SET_ELEM_EXPIRATION, 7)...), "192.0.2.1", 0},
		{"a key of another size", key(1, 2, 3), "", 0},
		{"no key", left, "", 1500 * time.Millisecond},
		{"nothing", nil, "", 0},
		{"cut off", key(192, 0, 2, 1)[:9], "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := scopedSets()[0]
			if tt.name == "IPv6" {
				set = scopedSets()[1]
			}
			e, ok := parseElement(tt.data, set)
			if ok != (tt.want != "") || ok && e.key.Addr().String() != tt.want || e.left != tt.left {
				t.Errorf("got %v for %v, %v", e.key.Addr(), e.left, ok)
			}
		})
	}
}

func TestBatch(t *testing.T) {
	var b batch
	set := scopedSets()[0]
	for _, dryRun := range []bool{false, true, false} { // the buffer is used again
		b.begin(7)
		b.dryRun = dryRun
		for range 2 {
			b.addElements(unix.NFT_MSG_NEWSETELEM, 0, "t", set, elementsOf(set, 3))
		}
		msgs := split(t, b.finish(100))
		end := msgs[len(msgs)-1]
		if hasEnd := end.typ == unix.NFNL_MSG_BATCH_END; hasEnd == dryRun {
			t.Errorf("dry run %v: an end: %v", dryRun, hasEnd)
		}
		if len(msgs) != 4 && !dryRun || msgs[0].typ != unix.NFNL_MSG_BATCH_BEGIN {
			t.Errorf("%d messages", len(msgs))
		}
		if want := appendUint32(nil, unix.NFNL_BATCH_GENID, 7); string(msgs[0].data) != string(want) {
			t.Errorf("begins with %x, want the generation, %x", msgs[0].data, want)
		}
		for i, m := range msgs {
			if m.seq != 100+uint32(i) {
				t.Errorf("message %d has number %d", i, m.seq)
			}
			if ack := m.flags&unix.NLM_F_ACK != 0; ack != (i == 2) {
				t.Errorf("message %d asks for an answer: %v", i, ack)
			}
		}
	}
}

// The generation after a transaction, as nf_tables_commit counts.
func TestNextGeneration(t *testing.T) {
	for g, want := range map[uint32]uint32{0: 1, 1: 2, 1<<31 - 1: 1 << 31, 1<<32 - 2: 1<<32 - 1, 1<<32 - 1: 1} {
		if got := next(g); got != want {
			t.Errorf("after %d comes %d, want %d", g, got, want)
		}
	}
}

func TestAttributesOfGarbage(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing": nil, "short": {8, 0, 1}, "size under the header": {3, 0, 1, 0},
		"size beyond the end": {9, 0, 1, 0, 0, 0, 0, 0}, "zeros": make([]byte, 64),
	} {
		for typ, value := range attributes(b) {
			t.Errorf("%s: %d %x", name, typ, value)
		}
	}
	// The last one need not be padded.
	var got []string
	for _, value := range attributes([]byte{5, 0, 1, 0, 'a', 0, 0, 0, 5, 0, 2, 0, 'b'}) {
		got = append(got, string(value))
	}
	if strings.Join(got, "") != "ab" {
		t.Errorf("got %q", got)
	}
}

func TestParseError(t *testing.T) {
	refused := binary.NativeEndian.AppendUint32(nil, uint32(0xffffffff-uint32(unix.EEXIST)+1))
	request := func(size uint32) []byte {
		b := make([]byte, max(size, unix.SizeofNlMsghdr))
		binary.NativeEndian.PutUint32(b, size)
		return b
	}
	text := appendString(nil, unix.NLMSGERR_ATTR_MSG, "why")
	for _, tt := range []struct {
		name  string
		flags uint16
		data  []byte
		want  string
	}{
		{"acknowledged", 0, append(make([]byte, 4), request(16)...), "<nil>"},
		{"refused", unix.NLM_F_CAPPED, append(refused, request(99)[:16]...), "file exists"},
		{"refused, with a reason", unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS,
			slices.Concat(refused, request(99)[:16], text), "file exists (why)"},
		{"refused, with a reason after the request", unix.NLM_F_ACK_TLVS,
			slices.Concat(refused, request(30), []byte{0, 0}, text), "file exists (why)"},
		{"refused, with a request that is cut off", unix.NLM_F_ACK_TLVS,
			slices.Concat(refused, request(9999)[:20]), "file exists"},
		{"too short", 0, refused, "bad message"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := parseError(unix.NlMsghdr{Flags: tt.flags, Seq: 5}, tt.data)
			got := "<nil>"
			if err != nil {
				got = err.Error()
			}
			var k *kernelError
			if got != tt.want || errors.As(err, &k) && (k.seq != 5 || !errors.Is(err, unix.EEXIST)) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
