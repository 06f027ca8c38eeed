package names

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery is how often a file is looked at, which takes some microseconds.
const lookEvery = 2 * time.Second

// A File is the list in a file, and goes with the file's changes.
//
// It looks at the file every two seconds instead of asking the kernel to tell
// it. Notifications are for an inode, and most ways to change a file leave that
// behind: an editor and a package manager rename a new file into place, a
// Kubernetes ConfigMap swaps a symbolic link two folders up, a mount covers it,
// and network file systems tell nothing of what other machines do. Following a
// path is the same for all of them, has no queue that overflows and costs one
// system call. A file counts as changed when its inode, its size or its time of
// modification do.
//
// A file that is replaced is read at the next look. One that is written in
// place is read when it has been left alone for one look, so that a half of it
// is not taken for the whole; whoever pauses longer than that while writing
// should write elsewhere and rename.
type File struct {
	path    string
	changed func(*List, error)
	list    atomic.Pointer[List]

	stop chan struct{}
	done chan struct{} // nil until the file is followed
	once sync.Once

	// Used by the goroutine that looks, only.
	read        fs.FileInfo // of what was read last; nil if it is out of reach
	seen        fs.FileInfo // at the last look
	unreachable string      // the reason told last
}

// OpenFile reads the patterns in a file, as Read does. Nothing is left behind
// where the file is never followed.
func OpenFile(path string) (*File, error) {
	list, info, _, err := load(path)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, stop: make(chan struct{}), read: info, seen: info}
	f.list.Store(list)
	return f, nil
}

// Follow reads the file again when it changes, until Close. It may be called once,
// and not beside or after Close.
//
// After every change since OpenFile, changed is told the list that is in force: the new
// one, or the one before and what is wrong with the new one. It is told once
// when the file is out of reach, and again when it is back. It is called from
// one goroutine only and never after Close has returned; it must not call Close
// itself. It may be nil.
func (f *File) Follow(changed func(*List, error)) {
	f.changed, f.done = changed, make(chan struct{})
	go f.follow()
}

// Path is what OpenFile was given.
func (f *File) Path() string { return f.path }

// List is the list in force. It is never nil.
func (f *File) List() *List { return f.list.Load() }

// Close ends the following and waits for a call of changed that is under way.
// The list stays as it is. Closing twice is closing once.
func (f *File) Close() {
	f.once.Do(func() { close(f.stop) })
	if f.done != nil {
		<-f.done
	}
}

func (f *File) follow() {
	defer close(f.done)
	looks := time.NewTicker(lookEvery)
	defer looks.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-looks.C:
			f.look()
		}
	}
}

func (f *File) look() {
	now, err := os.Stat(f.path)
	if err != nil {
		f.outOfReach(err)
		return
	}
	if f.read != nil && same(now, f.read) {
		return
	}
	if f.seen != nil && os.SameFile(now, f.seen) && !same(now, f.seen) {
		f.seen = now // it may still be being written
		return
	}
	list, info, steady, err := load(f.path)
	switch {
	case info == nil:
		f.outOfReach(err)
		return
	case !steady:
		f.seen = info
		return
	case err == nil:
		f.list.Store(list)
	}
	f.read, f.seen, f.unreachable = info, info, ""
	f.tell(err)
}

// outOfReach tells once that the file cannot be read, and has it read again as
// soon as it can be, whether it has changed or not: somebody waits for the news.
func (f *File) outOfReach(err error) {
	f.read, f.seen = nil, nil
	if f.unreachable != err.Error() {
		f.unreachable = err.Error()
		f.tell(err)
	}
}

func (f *File) tell(err error) {
	if f.changed != nil {
		f.changed(f.list.Load(), err)
	}
}

// load reads a file. If it cannot be read to its end, info is nil; otherwise an
// error is about its content. It is steady if nobody wrote to it meanwhile.
func load(path string) (list *List, info fs.FileInfo, steady bool, err error) {
	// Asked before opening, since opening a named pipe waits for a writer.
	if info, err = os.Stat(path); err != nil {
		return nil, nil, false, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, false, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, false, err
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		return nil, nil, false, err
	}
	list, err = Read(file)
	if failed := (*fs.PathError)(nil); errors.As(err, &failed) {
		return nil, nil, false, err
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	after, failed := file.Stat()
	if failed != nil {
		return nil, nil, false, failed
	}
	return list, before, same(before, after), err
}

func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
