package route

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// load reads the file.
func (b *Book) load(db *bolt.DB, path string) error {
	return guarded(path, func() error {
		return db.View(func(tx *bolt.Tx) error {
			if err := b.loadAll(tx); err != nil {
				return corrupt(path, err)
			}
			return nil
		})
	})
}

func (b *Book) loadAll(tx *bolt.Tx) error {
	if err := whole(tx); err != nil {
		return err
	}
	book, addrs := tx.Bucket(bucketBook), tx.Bucket(bucketAddrs)
	id := unseal(keyID, book.Get(keyID))
	if id == nil {
		return errors.New("it has no id")
	}
	b.id = hex.EncodeToString(id)
	b.strange = strangeIn(book)

	disordered := make(map[*entry]struct{})
	if err := addrs.ForEach(func(k, v []byte) error { return b.loadAddr(k, v, disordered) }); err != nil {
		return err
	}
	for e := range disordered {
		e.sort(addrs)
	}
	if err := tx.Bucket(bucketUse).ForEach(b.loadUse); err != nil {
		return err
	}
	// Last, since it looks at the same pages, where nothing would stop at a fault of memory.
	var found error
	for err := range tx.Check() { // to its end, or its goroutine stays
		found = cmp.Or(found, err)
	}
	return found
}

func (b *Book) loadAddr(k, v []byte, disordered map[*entry]struct{}) error {
	version, a, ok := ipOf(k)
	record := unseal(k, v)
	if !ok || record == nil {
		return fmt.Errorf("the record of address %x is damaged", k)
	}
	switch kind, says := record[0], record[1:]; kind {
	case kindOwned:
		if len(says) < 2 || bytes.IndexByte(says[2:], 0) < 0 {
			break
		}
		b.pages[version].set(a, b.loadOwned(version, a, says, disordered))
		b.count[version]++
		return nil
	case kindRests, kindFree:
		if len(says) != 8 {
			break
		}
		r := rest{addr: a, at: b.fromNow(binary.BigEndian.Uint64(says))}
		if kind == kindFree {
			b.pages[version].set(a, isFree)
			b.loose[version] = append(b.loose[version], r)
			return nil
		}
		r.mapped = true // it may be that the process ended before it was not any more
		b.pages[version].set(a, isResting)
		b.resting = append(b.resting, r)
		b.count[version]++
		return nil
	}
	return errors.New("a record of an unknown kind: is the book of a later version?")
}

// fromNow turns a time on disk into one of this process.
func (b *Book) fromNow(unix uint64) int32 {
	seconds := time.Unix(int64(unix), 0).Sub(b.now()) / time.Second
	return int32(max(math.MinInt32/2, min(seconds, math.MaxInt32/2)))
}

// loadOwned enters an address of a name. Mostly they come in the order in which the name
// has got them.
func (b *Book) loadOwned(version int, a ip, says []byte, disordered map[*entry]struct{}) *entry {
	e := b.enter(append([]byte{versions[version]}, says[2:]...))
	if len(e.slots) == MaxSlots {
		b.leaveLocked(e, []slot{{mapped: a}}, true)
		return e
	}
	place := binary.BigEndian.Uint16(says)
	if place < e.last {
		disordered[e] = struct{}{}
	}
	e.last, e.saved, e.force = max(e.last, place), math.MinInt32, vague
	e.slots = append(e.slots, slot{mapped: a})
	return e
}

// sort puts the slots into the order in which the name has got them.
func (e *entry) sort(addrs *bolt.Bucket) {
	place := func(s slot) int {
		key := bytesOf(e.version(), s.mapped)
		return int(binary.BigEndian.Uint16(unseal(key, addrs.Get(key))[1:]))
	}
	slices.SortFunc(e.slots, func(a, b slot) int { return place(a) - place(b) })
}

func (b *Book) loadUse(k, v []byte) error {
	version, a, ok := ipOf(k)
	record := unseal(k, v)
	if !ok || len(record) < 8+len(k) || len(record) > 8+len(k)+maxKey {
		return fmt.Errorf("the record of how address %x was used is damaged", k)
	}
	e := b.pages[version].get(a)
	if !e.real() {
		return nil
	}
	used := min(0, b.fromNow(binary.BigEndian.Uint64(record)))
	if e.saved == math.MinInt32 {
		e.used, e.saved = used, used
	} else {
		e.used, e.saved = max(e.used, used), max(e.saved, used)
	}
	e.by = string(record[8+len(k):])
	for i := range e.slots {
		if e.slots[i].mapped == a {
			_, e.slots[i].real, _ = ipOf(record[8 : 8+len(k)])
		}
	}
	return nil
}
