package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// content is a file with its rights, or a symbolic link.
type content struct {
	text string // or where the link leads
	link bool
	mode fs.FileMode
	uid  int
	gid  int
}

// mark is the first line of what is ours.
const mark = "# ipdestinationguard-sentinel: do not edit. What was here before is in " + kept + "\n"

// ours reports whether we have written it.
func (c *content) ours() bool { return c != nil && !c.link && strings.HasPrefix(c.text, mark) }

func (c *content) equal(other *content) bool {
	return c != nil && other != nil && *c == *other
}

// read returns what stands at a path itself, or nil if nothing does.
func (m *machine) read(name string) (*content, error) {
	path := m.path(name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	c := &content{mode: info.Mode().Perm(), uid: int(stat.Uid), gid: int(stat.Gid)}
	if info.Mode().Type() == fs.ModeSymlink {
		c.link = true
		c.text, err = os.Readlink(path)
	} else {
		c.text, err = hostdns.Text(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return m.read(name) // somebody has just removed it, or replaced it
	}
	return c, err
}

// write has a path say something. It is never there in part: it is made beside it, and safe on the disk before it is
// put in its place.
func (m *machine) write(name string, c *content) error {
	path, beside := m.path(name), m.path(part(name))
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.between("write " + name)
	if err := c.make(beside); err != nil {
		return err
	}
	m.between("rename " + name)
	if err := os.Rename(beside, path); err != nil {
		return err
	}
	return syncFolder(path)
}

// part is where a file is made.
func part(name string) string {
	return filepath.Join(filepath.Dir(name), "."+strings.TrimPrefix(filepath.Base(name), ".")+".part")
}

// make writes where nothing is.
func (c *content) make(path string) (err error) {
	if c.link {
		if err := os.Symlink(c.text, path); err != nil {
			return err
		}
		return os.Lchown(path, c.uid, c.gid)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.WriteString(f, c.text); err != nil {
		return err
	}
	return errors.Join(f.Chown(c.uid, c.gid), f.Chmod(c.mode), f.Sync())
}

// put is write, unless the path says so already.
func (m *machine) put(name string, c *content) error {
	if is, err := m.read(name); err == nil && is.equal(c) {
		return nil
	}
	return m.write(name, c)
}

// remove takes a file away, if there is one.
func (m *machine) remove(name string) error {
	if _, err := os.Lstat(m.path(name)); errors.Is(err, fs.ErrNotExist) {
		return nil // not even its folder has to be there
	}
	m.between("remove " + name)
	if err := os.Remove(m.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncFolder(m.path(name))
}

// exchange puts something in the place of resolv.conf and returns what was there. Both change places in one step: what a
// DHCP client writes in this moment is not lost, but comes out. Whoever is killed here leaves it at fresh.
func (m *machine) exchange(c *content) (*content, error) {
	if err := m.write(fresh, c); err != nil {
		return nil, err
	}
	m.between("exchange")
	err := unix.Renameat2(unix.AT_FDCWD, m.path(fresh), unix.AT_FDCWD, m.path(resolv), unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOENT) {
		// A file system that cannot, or there is nothing to exchange it with.
		before, err := m.read(resolv)
		if err != nil {
			return nil, err
		}
		if err := os.Rename(m.path(fresh), m.path(resolv)); err != nil {
			return nil, mounted(err)
		}
		return before, syncFolder(m.path(resolv))
	}
	if err != nil {
		return nil, errors.Join(mounted(err), os.Remove(m.path(fresh)))
	}
	if err := syncFolder(m.path(resolv)); err != nil {
		return nil, err
	}
	return m.read(fresh)
}

func mounted(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is a mount of its own, as in a container, and cannot be replaced in one step: set the resolver where the container is started: %w", resolv, err)
	}
	return err
}

// syncFolder has a rename or a removal reach the disk.
func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
