package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// load reads the file.
func (b *Book) load(db *bolt.DB, path string) error {
	return guarded(path, func() error {
		return db.View(func(tx *bolt.Tx) error {
			places := make(map[*entry][]uint16)
			if err := tx.Bucket(bucketAddrs).ForEach(func(k, v []byte) error { return b.loadAddr(k, v, places) }); err != nil {
				return corrupt(path, err)
			}
			b.inOrder(places)
			if err := tx.Bucket(bucketUse).ForEach(b.loadUse); err != nil {
				return corrupt(path, err)
			}
			for i := range b.loose {
				slices.SortStableFunc(b.loose[i], older)
			}
			for err := range tx.Check() {
				return corrupt(path, err)
			}
			return nil
		})
	})
}

func older(a, b rest) int { return int(a.at) - int(b.at) }

func (b *Book) loadAddr(k, v []byte, places map[*entry][]uint16) error {
	version, a, ok := ipOf(k)
	record := unseal(k, v)
	if !ok || record == nil {
		return fmt.Errorf("the record of address %x is damaged", k)
	}
	switch rest_ := record[1:]; record[0] {
	case kindOwned:
		if len(rest_) < 2 || !strings.Contains(string(rest_[2:]), "\x00") {
			break
		}
		key := versions[version:version+1] + string(rest_[2:])
		e := b.enter([]byte(key))
		e.slots = append(e.slots, slot{mapped: a})
		e.saved = math.MinInt32
		places[e] = append(places[e], binary.BigEndian.Uint16(rest_))
		b.pages[version].set(a, e)
		b.count[version]++
		return nil
	case kindRests, kindFree:
		if len(rest_) != 8 {
			break
		}
		r := rest{addr: a, at: b.ago(binary.BigEndian.Uint64(rest_))}
		if record[0] == kindFree {
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

// ago turns a time on disk into one of this process, which is not to come.
func (b *Book) ago(unix uint64) int32 {
	age := b.now().Sub(time.Unix(int64(unix), 0)) / time.Second
	return -int32(max(0, min(age, math.MaxInt32)))
}

// inOrder puts the slots of each entry in the order in which it got them.
func (b *Book) inOrder(places map[*entry][]uint16) {
	for e, at := range places {
		e.last = slices.Max(at)
		if slices.IsSorted(at) {
			continue
		}
		order := make([]int, len(at))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(i, j int) int { return int(at[i]) - int(at[j]) })
		sorted := make([]slot, len(at))
		for i, from := range order {
			sorted[i] = e.slots[from]
		}
		e.slots = sorted
	}
}

func (b *Book) loadUse(k, v []byte) error {
	version, a, ok := ipOf(k)
	record := unseal(k, v)
	if !ok || len(record) != 8+len(k) {
		return fmt.Errorf("the record of how address %x was used is damaged", k)
	}
	e := b.pages[version].get(a)
	if !e.real() {
		return nil
	}
	used := b.ago(binary.BigEndian.Uint64(record))
	if e.saved == math.MinInt32 {
		e.used, e.saved = used, used
	} else {
		e.used, e.saved = max(e.used, used), max(e.saved, used)
	}
	for i := range e.slots {
		if e.slots[i].mapped == a {
			_, e.slots[i].real, _ = ipOf(record[8:])
		}
	}
	return nil
}
