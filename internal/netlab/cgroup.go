package netlab

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is a control group (version 2) for programs of the lab's hosts, such as systemd makes for
// each unit.
type Cgroup struct {
	lab  *Lab
	path string
	dir  string
}

// cgroupsMade tells the labs' cgroups apart.
var cgroupsMade atomic.Uint64

// Cgroup makes a control group for the lab's programs, "app.service" or "app.slice/web.service". The
// error says what keeps the caller from making one: it takes root, or a cgroup that was delegated.
func (l *Lab) Cgroup(name string) (*Cgroup, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, err := l.cgroup(name)
	if err != nil {
		return nil, fmt.Errorf("netlab: cgroup %s: %w", name, err)
	}
	return c, nil
}

func (l *Lab) cgroup(name string) (*Cgroup, error) {
	if l.closed {
		return nil, net.ErrClosed
	}
	if !filepath.IsLocal(name) || name == "." {
		return nil, errors.New("not a name")
	}
	if l.cgroups == nil {
		own, err := newCgroup()
		if err != nil {
			return nil, err
		}
		l.cgroups = own
	}
	c := &Cgroup{lab: l, path: l.cgroups.path + "/" + name, dir: filepath.Join(l.cgroups.dir, name)}
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o755); err != nil {
		return nil, err
	}
	return c, os.Mkdir(c.dir, 0o755)
}

// Path returns where the cgroup is in its hierarchy, with a slash first. The lab's part of it is
// unlike that of all other labs.
func (c *Cgroup) Path() string { return c.path }

// ID returns its number: the inode of its directory.
func (c *Cgroup) ID() (uint64, error) {
	var s unix.Stat_t
	if err := unix.Stat(c.dir, &s); err != nil {
		return 0, fmt.Errorf("netlab: cgroup %s: %w", c.path, err)
	}
	return s.Ino, nil
}

// Close kills what runs in the cgroup and below it, and removes it. Another of the same name can
// then be made, as when a unit is restarted. Closing the lab does it as well.
func (c *Cgroup) Close() error {
	c.lab.mu.Lock()
	defer c.lab.mu.Unlock()
	return c.remove()
}

func (c *Cgroup) remove() error {
	if err := removeCgroup(c.dir); err != nil {
		return fmt.Errorf("netlab: cgroup %s: remove: %w", c.path, err)
	}
	return nil
}

// newCgroup makes what a lab's cgroups are in.
func newCgroup() (*Cgroup, error) {
	mount, err := cgroupMount()
	if err == nil && cgroupRoots(mount) == nil {
		err = unix.EROFS
	}
	if err != nil {
		// Sandboxes show the hierarchy read-only, or not at all. A mount of one's own is not.
		mount, err = mountCgroups()
	}
	if err != nil {
		return nil, fmt.Errorf("%w %s", err, cgroupNeeds)
	}
	name := fmt.Sprintf("%s%d", cgroupPrefix(os.Getpid()), cgroupsMade.Add(1))
	err = unix.EROFS
	for _, root := range cgroupRoots(mount) {
		c := &Cgroup{path: filepath.Join("/", root, name), dir: filepath.Join(mount, root, name)}
		if err = os.Mkdir(c.dir, 0o755); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w %s", err, cgroupNeeds)
}

const cgroupNeeds = "(needs root, or a delegated cgroup: systemd-run --user --scope -p Delegate=yes)"

// cgroupPrefix begins the names of a process' cgroups below a root.
func cgroupPrefix(pid int) string { return fmt.Sprintf("netlab-%d-", pid) }

// cgroupRoots are the cgroups of a mount in which one may perhaps make more: the topmost, and the
// caller's own, which may have been delegated to it.
func cgroupRoots(mount string) (roots []string) {
	candidates := []string{"/"}
	own, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && path != "/" {
			candidates = append(candidates, path)
		}
	}
	for _, root := range candidates {
		if unix.Access(filepath.Join(mount, root, "cgroup.procs"), unix.W_OK) == nil {
			roots = append(roots, root)
		}
	}
	return roots
}

// cgroupMount finds the hierarchy of version 2, the whole of it.
func cgroupMount() (string, error) {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	found := ""
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before) // ID, parent, device, root, mount point, ...
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			found = fields[4] // the last is the one on top
		}
	}
	if found == "" {
		return "", errors.New("no cgroup2 is mounted")
	}
	return found, nil
}

// mountCgroups mounts the hierarchy where programs look for it, for this process and its children
// only, whose mounts are private: see settle.
var mountCgroups = sync.OnceValues(func() (string, error) {
	const place = "/sys/fs/cgroup"
	if os.Getenv(outsideEnv) == "" {
		return "", errors.New("no cgroup2 that can be written, and mounts are not private")
	}
	if err := unix.Mount("cgroup2", place, "cgroup2", 0, ""); err != nil {
		return "", fmt.Errorf("mount cgroup2: %w", err)
	}
	return place, nil
})

// removeCgroup kills what runs in a cgroup and below it, and removes all of them.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for deadline := time.Now().Add(readyWithin); ; time.Sleep(time.Millisecond) {
		err := killCgroup(dir, dirs)
		for _, d := range dirs {
			if e := unix.Rmdir(d); e != nil && e != unix.ENOENT {
				err = errors.Join(err, &fs.PathError{Op: "remove", Path: d, Err: e})
				break
			}
		}
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// killCgroup sends SIGKILL to all in the topmost of some cgroups and below it.
func killCgroup(top string, dirs []string) error {
	if err := os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0); err == nil {
		return nil
	}
	for _, d := range dirs { // before Linux 5.14
		procs, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for pid := range strings.FieldsSeq(string(procs)) {
			if n, err := strconv.Atoi(pid); err == nil && n > 0 {
				_ = unix.Kill(n, unix.SIGKILL) // it may have ended
			}
		}
	}
	return nil
}

// removeCgroupsOf removes what a process that has ended without closing its labs has left.
func removeCgroupsOf(pid int) {
	mount, err := cgroupMount()
	if err != nil {
		return
	}
	for _, root := range cgroupRoots(mount) {
		left, _ := filepath.Glob(filepath.Join(mount, root, cgroupPrefix(pid)+"*"))
		for _, dir := range left {
			_ = removeCgroup(dir)
		}
	}
}
