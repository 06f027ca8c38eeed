package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

func TestMountPoints(t *testing.T) {
	const mountinfo = `24 30 0:22 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
25 24 0:23 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
26 24 0:24 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
27 24 0:23 /system.slice /mnt/part rw - cgroup2 cgroup2 rw
28 24 0:23 /../.. /mnt/outside rw - cgroup2 cgroup2 rw
29 24 0:23 / /mnt/a\040space\134 rw - cgroup2 cgroup2 rw
30 1 8:1 / / rw - ext4 /dev/cgroup2 rw
`
	got := mountPoints(strings.NewReader(mountinfo))
	if want := []string{"/sys/fs/cgroup/unified", `/mnt/a space\`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRelative(t *testing.T) {
	hybrid, whole := mount{"/sys/fs/cgroup/unified"}, mount{"/sys/fs/cgroup"}
	for _, tt := range []struct {
		mount      mount
		path, want string
	}{
		{whole, "system.slice/nginx.service", "/system.slice/nginx.service"},
		{whole, "/system.slice//nginx.service/", "/system.slice/nginx.service"},
		{whole, "unified/a", "/unified/a"},
		{whole, "../../etc", "/etc"},
		{whole, "", "/"},
		{hybrid, "unified/a", "/a"},
		{hybrid, "/unified/a/b", "/a/b"},
		{hybrid, "unified", "/"},
		{hybrid, "unifieda", "/unifieda"},
		{hybrid, "a", "/a"},
		{whole, "/sys/fs/cgroup/a/b", "/a/b"},
		{whole, "/sys/fs/cgroup/", "/"},
		{whole, "/sys/fs/cgroups/a", "/sys/fs/cgroups/a"},
		{hybrid, "/sys/fs/cgroup/unified/a", "/a"},
		{hybrid, "/sys/fs/cgroup/unified/unified/a", "/unified/a"},
		{hybrid, "/sys/fs/cgroup/unified", "/"},
	} {
		if got := tt.mount.relative(tt.path); got != tt.want {
			t.Errorf("%s below %s: got %s, want %s", tt.path, tt.mount.point, got, tt.want)
		}
	}
}

// cgroups is a cgroup of the test's own.
type cgroups struct {
	t     testing.TB
	mount mount
	top   string // its path below the mount
}

func newCgroups(t testing.TB) *cgroups {
	t.Helper()
	m, err := writableMount()
	if err != nil {
		cannot(t, err)
	}
	top, err := os.MkdirTemp(m.point, "identity-test-")
	if err != nil {
		cannot(t, "cannot make a cgroup: ", err)
	}
	c := &cgroups{t, m, strings.TrimPrefix(top, m.point)}
	t.Cleanup(func() { c.remove("") })
	return c
}

// writableMount finds cgroup2, and else mounts it; what containers have read-only, it
// makes writable. Only the tests see these mounts: see netlab.Isolate.
func writableMount() (mount, error) {
	m, err := findMount()
	if err != nil {
		if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
			return mount{}, fmt.Errorf("cannot mount cgroup2: %w", err)
		}
		return findMount()
	}
	if unix.Access(m.point, unix.W_OK) == unix.EROFS {
		if err := unix.Mount("", m.point, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
			return mount{}, fmt.Errorf("cannot make cgroup2 writable: %w", err)
		}
	}
	return m, nil
}

// add makes a cgroup and those above it, and returns its id.
func (c *cgroups) add(path string) uint64 {
	c.t.Helper()
	must(c.t, os.MkdirAll(c.mount.point+c.top+path, 0o755))
	id, err := c.mount.id(c.top + path)
	must(c.t, err)
	return id
}

// enter is a shell's way into a cgroup.
func (c *cgroups) enter(path string) string {
	return fmt.Sprintf("echo $$ > '%s/cgroup.procs' && ", c.mount.point+c.top+path)
}

// remove removes a cgroup and all below it.
func (c *cgroups) remove(path string) {
	c.t.Helper()
	var all []string
	must(c.t, filepath.WalkDir(c.mount.point+c.top+path, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			all = append(all, p)
		}
		return err
	}))
	for _, p := range slices.Backward(all) {
		// A process that has just ended may be there for a moment.
		eventually(c.t, p+" is removed", func() bool { return os.Remove(p) == nil })
	}
}

// Ids are not used again, whatever comes and goes.
func TestCgroupIDsAreNotReused(t *testing.T) {
	c := newCgroups(t)
	for last, i := uint64(0), 0; i < 300; i++ {
		id := c.add("/a")
		if id <= last {
			t.Fatalf("%d after %d", id, last)
		}
		last = id
		c.remove("/a")
	}
}

func TestUnitAt(t *testing.T) {
	c := newCgroups(t)
	id := c.add("/x.service")
	x := c.top + "/x.service"
	for _, path := range []string{x, strings.TrimPrefix(x, "/") + "/", c.mount.point + x, "/.." + x} {
		want := backend.Cgroup{Path: x, ID: id, Level: 2}
		if got, err := UnitAt(path); got != want || err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", path, got, err, want)
		}
	}
	deep := strings.Repeat("/d", backend.MaxLevel)
	for _, absent := range []string{c.top + "/nosuch.service", c.top + "/cgroup.procs", c.top + "/cgroup.procs/a", deep, "/" + strings.Repeat("d", 300), "/a\x00b"} {
		want := backend.Cgroup{Path: absent, Level: strings.Count(absent, "/")}
		if got, err := UnitAt(absent); got != want || err != nil {
			t.Errorf("%s: got %+v, %v", absent, got, err)
		}
	}
}

func TestWhatUnitsCannotBe(t *testing.T) {
	m, err := findMount()
	if err != nil {
		cannot(t, err)
	}
	for _, bad := range []string{"/", "", ".", "/a/..", m.point, strings.Repeat("/d", backend.MaxLevel+1)} {
		if got, err := UnitAt(bad); err == nil || errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: got %+v, %v", bad, got, err)
		}
		if _, err := FollowUnits([]string{"/nosuch", bad}); err == nil || errors.Is(err, ErrUnsupported) {
			t.Errorf("%q can be followed: %v", bad, err)
		}
	}
}
