package route

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long a process that is about to end may still have the file.
const lockWait = time.Second

// openFile opens the file, or makes a new one where there is none.
func openFile(path string) (*bolt.DB, error) {
	db, err := openOld(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("making the book of mapped addresses: %w", err)
		}
		return openOld(path)
	}
	return db, err
}

// openOld never makes a file: neither one that was not there, nor of an empty one, which
// has lost what was in it.
func openOld(path string) (db *bolt.DB, err error) {
	var file *os.File
	err = guarded(path, func() (err error) {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout:      lockWait,
			FreelistType: bolt.FreelistMapType,
			OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
				f, err := os.OpenFile(path, flag&^os.O_CREATE, mode)
				if err != nil {
					return nil, err
				}
				if info, err := f.Stat(); err != nil || info.Size() == 0 {
					f.Close()
					return nil, cmp.Or(err, corrupt(path, errors.New("it is empty")))
				}
				file = f
				return f, nil
			},
		})
		return err
	})
	if err == nil {
		return db, nil
	}
	if file != nil { // it is closed already, unless there was a panic; then it is still mapped, so closing would not unlock it
		syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
		file.Close()
	}
	var failed *fs.PathError
	var errno syscall.Errno
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("the book of mapped addresses %s is %w%s", path, ErrInUse, holder(path))
	case errors.Is(err, ErrCorrupt):
		return nil, err
	case errors.As(err, &failed), errors.As(err, &errno):
		return nil, fmt.Errorf("the book of mapped addresses: %w", err)
	}
	return nil, corrupt(path, err)
}

// guarded turns what a damaged file leads to, be it a fault of memory, into an error.
func guarded(path string, do func() error) (err error) {
	defer debugFaults()()
	defer func() {
		if what := recover(); what != nil {
			err = corrupt(path, fmt.Errorf("%v", what))
		}
	}()
	return do()
}

func corrupt(path string, why error) error {
	return fmt.Errorf("%s: %w: %w (who moves it away starts with a new one, and ends what is connected by the old one)", path, ErrCorrupt, why)
}

// create makes a book beside path and gives it its name when it is complete.
func create(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	f.Close()
	defer os.Remove(f.Name())
	db, err := bolt.Open(f.Name(), 0o600, &bolt.Options{Timeout: lockWait})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, bucket := range [][]byte{bucketBook, bucketAddrs, bucketUse} {
			if _, err := tx.CreateBucket(bucket); err != nil {
				return err
			}
		}
		id := make([]byte, 8)
		rand.Read(id)
		return errors.Join(put(tx, bucketBook, keyID, id), putStrange(tx, everything))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // fails if there is one by now
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
