package route

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// What is in the file. An address is a key, so it cannot have two owners.
var (
	bucketBook  = []byte("book")      // id, and what is strange
	bucketAddrs = []byte("addresses") // address -> owned, place, route and name; or rests until, or is free since
	bucketUse   = []byte("use")       // address -> when its name was last answered, where it leads, and who has the route
	keyID       = []byte("id")
	keyStrange  = []byte("fresh")
)

// Kinds of records in bucketAddrs.
const (
	kindOwned = 'o'
	kindRests = 'r'
	kindFree  = 'f'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal puts a checksum before a record: the file has none of its own for its pages.
func seal(key, record []byte) []byte {
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record)
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(record)), sum), record...)
}

// unseal returns nil if the checksum is wrong.
func unseal(key, sealed []byte) []byte {
	if len(sealed) < 5 {
		return nil
	}
	record := sealed[4:]
	if binary.BigEndian.Uint32(sealed) != crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record) {
		return nil
	}
	return record
}

// bytesOf is an address as it is on disk, 4 bytes or 16.
func bytesOf(version int, a ip) []byte {
	if version == 0 {
		return a[12:]
	}
	return a[:]
}

func ipOf(b []byte) (version int, a ip, ok bool) {
	switch len(b) {
	case 4:
		return 0, ip{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}, true
	case 16:
		return 1, ip(b), true
	}
	return 0, ip{}, false
}

func put(tx *bolt.Tx, bucket, key, record []byte) error {
	b := tx.Bucket(bucket)
	b.FillPercent = 0.9 // most addresses are written in sequence
	return b.Put(key, seal(key, record))
}

func putOwned(tx *bolt.Tx, version int, a ip, place uint16, owner string) error {
	record := binary.BigEndian.AppendUint16([]byte{kindOwned}, place)
	return put(tx, bucketAddrs, bytesOf(version, a), append(record, owner...))
}

var everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// putStrange writes which networks are strange, as text.
func putStrange(tx *bolt.Tx, networks []netip.Prefix) error {
	if len(networks) == 0 {
		return tx.Bucket(bucketBook).Delete(keyStrange)
	}
	var text []byte
	for _, n := range networks {
		text = append(n.AppendTo(text), ' ')
	}
	return put(tx, bucketBook, keyStrange, text)
}

// strangeIn is what putStrange has written. What cannot be read says that all is.
func strangeIn(book *bolt.Bucket) (networks []netip.Prefix) {
	sealed := book.Get(keyStrange)
	if sealed == nil {
		return nil
	}
	for text := range strings.FieldsSeq(string(unseal(keyStrange, sealed))) {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return everything
		}
		networks = append(networks, n)
	}
	if networks == nil {
		return everything
	}
	return networks
}

// putUnowned writes until when an address rests, or since when it is free, and forgets how
// it was used.
func putUnowned(tx *bolt.Tx, version int, a ip, kind byte, at time.Time) error {
	key := bytesOf(version, a)
	if err := put(tx, bucketAddrs, key, binary.BigEndian.AppendUint64([]byte{kind}, uint64(at.Unix()))); err != nil {
		return err
	}
	return tx.Bucket(bucketUse).Delete(key)
}

func putUse(tx *bolt.Tx, version int, a ip, used time.Time, real ip, by string) error {
	record := binary.BigEndian.AppendUint64(nil, uint64(used.Unix()))
	record = append(record, bytesOf(version, real)...)
	return put(tx, bucketUse, bytesOf(version, a), append(record, by...))
}
