package identity

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// followed are units below a cgroup of the test's own.
type followed struct {
	*Units
	*cgroups
}

// follow follows units, by what the kernel tells alone or by looking again and again
// alone.
func follow(t testing.TB, told bool, paths ...string) *followed {
	t.Helper()
	f := &followed{cgroups: newCgroups(t)}
	for i := range paths {
		paths[i] = f.top + paths[i]
	}
	var err error
	f.Units, err = nameUnits(paths)
	must(t, err)
	if f.every = time.Millisecond; told {
		f.every = 24 * time.Hour
		must(t, f.listen())
	}
	f.start()
	t.Cleanup(f.Close)
	return f
}

// lists waits for the ids, and that it was said whenever the list has changed.
func (f *followed) lists(want ...uint64) {
	f.t.Helper()
	ids := func() (ids []uint64) {
		for _, unit := range f.List() {
			ids = append(ids, unit.ID)
		}
		return ids
	}
	for !slices.Equal(ids(), want) {
		select {
		case <-f.Changed():
		case <-time.After(20 * time.Second):
			f.t.Fatalf("after 20 s there are %v, not %v", ids(), want)
		}
	}
}

func TestFollowUnits(t *testing.T) {
	for way, told := range map[string]bool{"told": true, "by looking": false} {
		t.Run(way, func(t *testing.T) {
			f := follow(t, told, "/x.service", "/a/b/c", "/x.service", "/y")
			f.lists(0, 0, 0, 0)
			x := f.add("/x.service")
			f.lists(x, 0, x, 0)
			f.add("/a")
			f.add("/a/b")
			c := f.add("/a/b/c")
			f.lists(x, c, x, 0)
			f.add("/a/b/c/d")
			f.add("/z")
			y := f.add("/y")
			f.lists(x, c, x, y)
			f.remove("/x.service")
			f.lists(0, c, 0, y)
			for range 20 { // a unit that is started again and again
				x = f.add("/x.service")
				f.lists(x, c, x, y)
				f.remove("/x.service")
				x = f.add("/x.service")
				f.lists(x, c, x, y)
				f.remove("/x.service")
			}
			f.remove("/a")
			f.lists(0, 0, 0, y)
			c = f.add("/a/b/c")
			f.lists(0, c, 0, y)

			want := backend.Cgroup{Path: f.top + "/a/b/c", ID: c, Level: 4}
			if got := f.List()[1]; got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// Folders come and go faster than they can be looked at, and what is there at last is
// known; the kernel keeps no watches that are of no use.
func TestFollowUnitsInAHurry(t *testing.T) {
	f := follow(t, true, "/a/b/c", "/a/b.service")
	for range 300 {
		f.add("/a/b/c")
		f.remove("/a")
		f.add("/a/b")
		f.remove("/a")
	}
	c := f.add("/a/b/c")
	f.lists(c, 0)
	f.remove("/a")
	f.lists(0, 0)
	// Of the mount and f.top.
	eventually(t, "watches are given up", func() bool { return len(f.kernelWatches()) == 2 })
}

// kernelWatches are the lines that the kernel has on them.
func (f *followed) kernelWatches() (watches []string) {
	f.t.Helper()
	must(f.t, f.control.Control(func(fd uintptr) {
		info, err := os.ReadFile(fmt.Sprint("/proc/self/fdinfo/", fd))
		must(f.t, err)
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "inotify ") {
				watches = append(watches, line)
			}
		}
	}))
	return watches
}

// A cgroup namespace has a mount of its own for the same cgroups.
func TestFollowUnitsOfAnotherNamespace(t *testing.T) {
	f := follow(t, true, "/a/x.service")
	f.add("/a")
	shell := fmt.Sprintf(`set -e; echo 0 > %s/a/cgroup.procs; exec unshare -Cm sh -c '
		mount -t cgroup2 none %[2]s; mkdir %[2]s/x.service; exec "$0"' "$0"`, f.cgroups.mount.point+f.top, t.TempDir())
	startProgram(t, newHost(t), shell, "self")
	f.lists(f.cgroups.mount.idNow(f.top + "/a/x.service"))
}

func TestFollowUnitsCloses(t *testing.T) {
	c := newCgroups(t)
	before := runtime.NumGoroutine()
	id := c.add("/x.service")
	u, err := FollowUnits([]string{c.top + "/x.service"})
	must(t, err)
	u.Close()
	u.Close()
	for range u.Changed() { // it ends
	}
	if got := u.List(); len(got) != 1 || got[0].ID != id {
		t.Errorf("after the end: %+v", got)
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}
