package identity

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
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
	st, err := m.stat(cgroup)
	return st.Ino, err
}

func (m *mount) stat(cgroup string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Lstat(m.point+cgroup, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return unix.Stat_t{}, &os.PathError{Op: "stat", Path: m.point + cgroup, Err: err}
	}
	return st, nil
}

// relative turns what people write into a path below the mount.
func (m *mount) relative(p string) string {
	p = path.Clean("/" + p)
	prefixes := []string{m.point}
	if path.Base(m.point) == "unified" {
		prefixes = append(prefixes, "/unified")
	}
	for _, prefix := range prefixes {
		if below, ok := strings.CutPrefix(p+"/", prefix+"/"); ok {
			return path.Clean("/" + below)
		}
	}
	return p
}

// named returns the cgroup that people mean by a path, if rules can name it.
func (m *mount) named(p string) (c backend.Cgroup, err error) {
	c.Path = m.relative(p)
	c.Level = levelOf(c.Path)
	switch {
	case c.Level == 0:
		return c, fmt.Errorf("cgroup %q: the root cannot be named: every program is below it", p)
	case c.Level > backend.MaxLevel:
		return c, fmt.Errorf("cgroup %q: it is at level %d, and rules reach %d levels deep", p, c.Level, backend.MaxLevel)
	}
	c.ID = m.idNow(c.Path)
	return c, nil
}

// idNow returns the id of the cgroup at a path, or 0 while there is none.
func (m *mount) idNow(cgroup string) uint64 {
	id, err := m.id(cgroup)
	if err != nil {
		return 0 // the path may as well have a file in it, or be too long: there is no cgroup either
	}
	return id
}

// UnitAt returns the cgroup that people mean by a path below the mount of cgroup2, with
// or without a slash at the beginning, or by its path in the file system. On a machine
// whose mount is /sys/fs/cgroup/unified the path may begin with unified/, as it has to
// for nft. The cgroup's path is without these; its ID is 0 while there is none.
//
// The ID is good for as long as the cgroup lives: see [FollowUnits]. The root and what
// is deeper than [backend.MaxLevel] is an error, and the error is [ErrUnsupported] where
// cgroup2 is not mounted.
func UnitAt(path string) (backend.Cgroup, error) {
	m, err := findMount()
	if err != nil {
		return backend.Cgroup{}, fmt.Errorf("cgroup %q: %w", path, err)
	}
	return m.named(path)
}
