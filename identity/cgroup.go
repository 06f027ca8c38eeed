package identity

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A mount is where cgroup2 is mounted.
type mount struct{ point string }

// findMount finds it: /sys/fs/cgroup, or /sys/fs/cgroup/unified where cgroups of
// version 1 are there as well.
func findMount() (mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mount{}, err
	}
	defer f.Close()
	for _, point := range mountPoints(f) {
		var st unix.Statfs_t
		// Something else may be mounted on top.
		if unix.Statfs(point, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return mount{point}, nil
		}
	}
	return mount{}, fmt.Errorf("cgroup2 is not mounted: %w", ErrUnsupported)
}

// mountPoints reads where the whole of cgroup2 is mounted (proc_pid_mountinfo(5)).
// Levels cannot be counted from below another root.
func mountPoints(mountinfo io.Reader) (points []string) {
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if kind, _, _ := strings.Cut(after, " "); kind == "cgroup2" && len(fields) >= 5 && fields[3] == "/" {
			points = append(points, unescape(fields[4]))
		}
	}
	return points
}

// unescape reads an octal escape for a space, a tab, a newline or a backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// id returns the id of the cgroup at a path: its directory's inode, on 64 bits. (A
// 32-bit kernel's inodes hold a part of it, and nothing is found there.)
func (m *mount) id(cgroup string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(m.point+cgroup, &st)
	switch {
	case err != nil:
		return 0, &os.PathError{Op: "stat", Path: m.point + cgroup, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return 0, &os.PathError{Op: "stat", Path: m.point + cgroup, Err: unix.ENOTDIR}
	}
	return st.Ino, nil
}

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
