package nft

import (
	"bytes"
	"encoding/binary"
	"iter"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A batch is one transaction in the making: messages between a begin and an end
// (include/uapi/linux/netfilter/nfnetlink.h). Its buffer is used again.
type batch struct {
	buf    []byte
	count  uint32 // messages without begin and end
	last   int    // where the last of them starts
	dryRun bool   // the kernel checks everything and carries out nothing
}

// begin empties the batch. Where generation is not 0, the kernel refuses the
// transaction with ERESTART if it has another by then.
func (b *batch) begin(generation uint32) {
	b.buf, b.count, b.dryRun = b.buf[:0], 0, false
	b.buf = appendHeader(b.buf, unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	if generation != 0 {
		b.buf = appendUint32(b.buf, unix.NFNL_BATCH_GENID, generation)
	}
	b.closeMessage(0)
}

func (b *batch) open(typ, flags uint16) {
	b.last = len(b.buf)
	b.count++
	b.buf = appendHeader(b.buf, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|flags, 0, unix.NFPROTO_INET, 0)
}

func (b *batch) closeMessage(start int) {
	binary.NativeEndian.PutUint32(b.buf[start:], uint32(len(b.buf)-start))
}

// add appends messages that the library has composed.
func (b *batch) add(msgs []netlink.Message) {
	for _, m := range msgs {
		b.last = len(b.buf)
		b.count++
		// One acknowledgement is enough, and no echo is wanted.
		flags := uint16(m.Header.Flags) &^ (unix.NLM_F_ACK | unix.NLM_F_ECHO)
		b.buf = binary.NativeEndian.AppendUint32(b.buf, 0)
		b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(m.Header.Type))
		b.buf = binary.NativeEndian.AppendUint16(b.buf, flags)
		b.buf = append(b.buf, 0, 0, 0, 0, 0, 0, 0, 0)
		b.buf = append(b.buf, m.Data...)
		b.closeMessage(b.last)
		b.buf = pad(b.buf)
	}
}

// finish ends the batch, numbers its messages from seq and returns it. The
// kernel acknowledges the last message after it has committed them all. (It
// would acknowledge the end of the batch only since 6.10.) Without an end it
// checks the messages and takes them back: that is a dry run.
func (b *batch) finish(seq uint32) []byte {
	flags := b.buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	if !b.dryRun {
		end := len(b.buf)
		b.buf = appendHeader(b.buf, unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
		b.closeMessage(end)
	}
	for at := 0; at < len(b.buf); at += align(int(binary.NativeEndian.Uint32(b.buf[at:]))) {
		binary.NativeEndian.PutUint32(b.buf[at+8:], seq)
		seq++
	}
	return b.buf
}

// appendHeader appends a netlink header, whose length is filled in later, and
// the header of nfnetlink.
func appendHeader(b []byte, typ, flags uint16, seq uint32, family byte, resource uint16) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0, family, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, resource)
}

func align(n int) int { return (n + 3) &^ 3 }

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendAttribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(b, value...))
}

func appendString(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(append(b, s...), 0))
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint32(b, v)
}

func appendUint64(b []byte, typ uint16, v uint64) []byte {
	b = binary.NativeEndian.AppendUint16(b, 12)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint64(b, v)
}

// openAttribute begins an attribute that closeAttribute ends.
func openAttribute(b []byte, typ uint16) ([]byte, int) {
	start := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, typ), start
}

// nest begins an attribute that holds others.
func nest(b []byte, typ uint16) ([]byte, int) { return openAttribute(b, typ|unix.NLA_F_NESTED) }

func closeAttribute(b []byte, start int) {
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
}

// attributes yields the attributes in b: type without flags, and value.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[4:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
