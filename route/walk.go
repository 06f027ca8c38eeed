package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"
)

// whole returns an error if the file is no book, or not all of one.
//
// bbolt takes a file for what its first pages say: at a page that is missing there is a
// fault of memory, and in a tree that leads back to itself, as in a copy that was made while
// somebody wrote, it walks for ever. So the pages are looked at before it does.
func whole(tx *bolt.Tx) error {
	file, err := os.Open(tx.DB().Path())
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if tx.Size() > info.Size() {
		return fmt.Errorf("%d bytes are missing at its end", tx.Size()-info.Size())
	}
	size := tx.DB().Info().PageSize
	w := walk{file: file, size: size, seen: make([]bool, tx.Size()/int64(size))}
	if err := w.tree(uint64(tx.Cursor().Bucket().Root())); err != nil {
		return err
	}
	for _, name := range [][]byte{bucketBook, bucketAddrs, bucketUse} {
		bucket := tx.Bucket(name)
		if bucket == nil {
			return fmt.Errorf("it has no %q", name)
		}
		if bucket.Root() == 0 { // it is small, and within its record
			continue
		}
		if err := w.tree(uint64(bucket.Root())); err != nil {
			return err
		}
	}
	return nil
}

// walk goes through trees of pages.
type walk struct {
	file *os.File
	size int // of a page
	seen []bool
}

// What a page begins with, in the byte order of the machine: its number (8 bytes), its kind
// (2), how many elements it has (2), and how many pages belong to it besides (4). The
// elements have 16 bytes each. That of a branch says where its key is, from itself on (4),
// how long that is (4), and to which page it leads (8); that of a leaf has flags (4), and
// then where its key is, how long that is, and the value behind it (4 each).
const (
	pageHead    = 16
	pageElement = 16
	branch      = 1
	leaf        = 2
)

var errPage = errors.New("a page is damaged, or from another time than others")

// tree visits a page and those below it.
func (w *walk) tree(id uint64) error {
	page, err := w.read(id)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	kind, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	if pageHead+count*pageElement > len(page) {
		return errPage
	}
	for i := range count {
		at := pageHead + i*pageElement
		element := page[at:]
		switch kind {
		case branch:
			start, long := uint64(order.Uint32(element)), uint64(order.Uint32(element[4:]))
			if uint64(at)+start+long > uint64(len(page)) {
				return errPage
			}
			if err := w.tree(order.Uint64(element[8:])); err != nil {
				return err
			}
		case leaf:
			start, key, value := uint64(order.Uint32(element[4:])), uint64(order.Uint32(element[8:])), uint64(order.Uint32(element[12:]))
			if uint64(at)+start+key+value > uint64(len(page)) {
				return errPage
			}
		}
	}
	if kind != branch && kind != leaf || kind == branch && count == 0 {
		return errPage
	}
	return nil
}

// read reads a page that has not been read before, and those that belong to it.
func (w *walk) read(id uint64) ([]byte, error) {
	head := make([]byte, pageHead)
	if id < 2 || id >= uint64(len(w.seen)) {
		return nil, errPage
	}
	if _, err := w.file.ReadAt(head, int64(id)*int64(w.size)); err != nil {
		return nil, err
	}
	pages := 1 + uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || pages > uint64(len(w.seen))-id {
		return nil, errPage
	}
	for i := range pages {
		if w.seen[id+i] {
			return nil, errPage
		}
		w.seen[id+i] = true
	}
	page := make([]byte, int(pages)*w.size)
	_, err := w.file.ReadAt(page, int64(id)*int64(w.size))
	return page, err
}
