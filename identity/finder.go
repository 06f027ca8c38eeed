package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A finder turns ids of cgroups into paths, for one goroutine at a time.
type finder struct {
	now      func() time.Time
	byHandle bool

	// Of the last walk.
	paths map[uint64]string
	began time.Time
	ended time.Time
	err   error // why it may have passed over some
}

// maxWalk bounds the cgroups that a walk looks at.
const maxWalk = 1 << 16

// path returns where the cgroup is, or was a moment ago.
func (f *finder) path(m *mount, cgroup uint64, arrived time.Time) (string, error) {
	if f.byHandle {
		p, err := pathByHandle(m, cgroup)
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return p, err
		}
		f.byHandle = false
	}
	if p, ok := f.paths[cgroup]; ok {
		return p, nil
	}
	if !f.began.After(arrived) {
		// So that who makes up cgroups takes a fifth of a core at most.
		rest := min(4*f.ended.Sub(f.began), 200*time.Millisecond)
		time.Sleep(rest - f.now().Sub(f.ended))
		f.walk(m)
	}
	if p, ok := f.paths[cgroup]; ok {
		return p, nil
	}
	if f.err != nil {
		return "", f.err
	}
	return "", ErrGone
}

// walk reads the ids of all cgroups.
func (f *finder) walk(m *mount) {
	f.began = f.now()
	defer func() { f.ended = f.now() }()
	f.paths = make(map[uint64]string)
	f.err = nil
	id, err := m.id("/")
	if err != nil {
		f.err = err
		return
	}
	f.paths[id] = "/"
	for next := []string{"/"}; len(next) > 0; {
		parent := next[len(next)-1]
		next = next[:len(next)-1]
		entries, err := os.ReadDir(m.point + parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.err = err
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			child := path.Join(parent, e.Name())
			id, err := m.id(child)
			if err != nil {
				if !errors.Is(err, fs.ErrNotExist) { // else it was removed meanwhile
					f.err = err
				}
				continue
			}
			if len(f.paths) >= maxWalk {
				f.err = fmt.Errorf("more than %d cgroups", maxWalk)
				return
			}
			f.paths[id] = child
			next = append(next, child)
		}
	}
}

// fileidKernfs is the type of a file handle that is an id of kernfs (FILEID_KERNFS).
const fileidKernfs = 0xfe

// pathByHandle asks the kernel for the directory with the id.
func pathByHandle(m *mount, cgroup uint64) (string, error) {
	at, err := unix.Open(m.point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: m.point, Err: err}
	}
	defer unix.Close(at)
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, cgroup))
	fd, err := unix.OpenByHandleAt(at, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err == unix.ESTALE || err == unix.ENOENT {
		return "", ErrGone
	}
	if err != nil {
		return "", os.NewSyscallError("open_by_handle_at", err)
	}
	defer unix.Close(fd)
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	below, ok := strings.CutPrefix(p, m.point)
	switch {
	case ok && below == "":
		return "/", nil
	case !ok || below[0] != '/':
		return "", ErrGone // not below the mount: of another cgroup namespace
	}
	return below, nil
}

// mayOpenByHandle asks before trying: a service manager may have told the kernel to
// kill who tries without the right.
func mayOpenByHandle() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_DAC_READ_SEARCH) != 0
}
