package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestUnitPath(t *testing.T) {
	for cgroup, want := range map[string]string{
		"/":                           "/",
		"/init.scope":                 "/init.scope",
		"/system.slice/nginx.service": "/system.slice/nginx.service",
		"/system.slice/system-getty.slice/getty@tty1.service":               "/system.slice/system-getty.slice/getty@tty1.service",
		"/system.slice/docker-4f.scope":                                     "/system.slice/docker-4f.scope",
		"/system.slice/docker-4f.scope/init/worker":                         "/system.slice/docker-4f.scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/a.service": "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
		"/user.slice/user-1000.slice/session-2.scope":                       "/user.slice/user-1000.slice/session-2.scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice":           "/user.slice/user-1000.slice/user@1000.service",
		"/kubepods.slice/kubepods-besteffort.slice/cri-4f":                  "/kubepods.slice/kubepods-besteffort.slice",
		"/docker/4f":         "/docker/4f",
		"/a/.service.d/b":    "/a/.service.d/b",
		"/a.service/b.slice": "/a.service",
	} {
		if got := unitPath(cgroup); got != want {
			t.Errorf("%s: got %s, want %s", cgroup, got, want)
		}
	}
}

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
	m, err := findMount()
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

// add makes a cgroup and those above it, and returns its id.
func (c *cgroups) add(path string) uint64 {
	c.t.Helper()
	must(c.t, os.MkdirAll(c.mount.point+c.top+path, 0o755))
	id, err := c.mount.id(c.top + path)
	must(c.t, err)
	return id
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

// ways are the two ways to find a cgroup by its id.
func ways(t *testing.T, test func(t *testing.T, a *Askers, c *cgroups)) {
	for _, byHandle := range []bool{true, false} {
		t.Run(map[bool]string{true: "by handle", false: "by a walk"}[byHandle], func(t *testing.T) {
			c := newCgroups(t)
			a := newAskers(t, newHost(t))
			if byHandle && !a.units.finder.byHandle {
				cannot(t, "CAP_DAC_READ_SEARCH is missing")
			}
			a.units.finder.byHandle = byHandle
			test(t, a, c)
			if a.units.finder.byHandle != byHandle {
				t.Error("the kernel has refused to open by handle")
			}
		})
	}
}

func (c *cgroups) isUnit(a *Askers, cgroup uint64, path string, id uint64) {
	c.t.Helper()
	gotPath, gotID, gotLevel, err := a.Unit(cgroup)
	want := c.top + path
	if err != nil || gotPath != want || gotID != id || gotLevel != strings.Count(want, "/") {
		c.t.Errorf("unit of %d: got %s, %d at %d, %v; want %s, %d", cgroup, gotPath, gotID, gotLevel, err, want, id)
	}
}

func TestUnit(t *testing.T) {
	ways(t, func(t *testing.T, a *Askers, c *cgroups) {
		now := time.Now()
		clock := func() time.Time { return now }
		a.units.now, a.units.finder.now = clock, clock
		service := c.add("/x.service")
		worker := c.add("/x.service/worker")
		plain := c.add("/plain")
		c.isUnit(a, worker, "/x.service", service)
		c.isUnit(a, service, "/x.service", service)
		c.isUnit(a, plain, "/plain", plain)
		later := c.add("/later.scope/a")
		c.isUnit(a, later, "/later.scope", c.add("/later.scope"))

		if path, id, level, err := a.Unit(1); path != "/" || id != 1 || level != 0 || err != nil {
			t.Errorf("the root is %s, %d at %d, %v", path, id, level, err)
		}
		for _, nobody := range []uint64{0, 1 << 40, 1<<64 - 1} {
			if _, _, _, err := a.Unit(nobody); !errors.Is(err, ErrGone) {
				t.Errorf("%d: got %v", nobody, err)
			}
		}

		// A unit that is started again has another cgroup.
		c.remove("/x.service")
		again := c.add("/x.service")
		c.isUnit(a, service, "/x.service", service) // for a second
		now = now.Add(checkEvery)
		for _, gone := range []uint64{service, worker} {
			if _, _, _, err := a.Unit(gone); !errors.Is(err, ErrGone) {
				t.Errorf("after a new start: got %v", err)
			}
		}
		c.isUnit(a, again, "/x.service", again)
		if again <= service {
			t.Errorf("ids go backwards: %d, then %d", service, again)
		}
	})
}

// Everybody can find the unit of a cgroup that is there, without the right to make
// one: by a walk, where the kernel refuses to open by handle.
func TestUnitOfOurselves(t *testing.T) {
	h, a := here(t)
	if _, err := findMount(); err != nil {
		cannot(t, err)
	}
	server := serve(t, h, "udp", "127.0.0.1:0")
	got, err := a.Find("udp", server, server)
	must(t, err)
	path, id, level, err := a.Unit(got.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if wantID, wantLevel, err := UnitID(path); id != wantID || level != wantLevel || err != nil {
		t.Errorf("%s is %d at %d, and UnitID says %d at %d, %v", path, id, level, wantID, wantLevel, err)
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

func TestUnitsAreBounded(t *testing.T) {
	var u units
	u.init(time.Now)
	for i := range uint64(maxUnits + 100) {
		u.set(i, unit{})
	}
	u.set(maxUnits+99, unit{path: "/last"})
	if last, ok := u.get(maxUnits + 99); len(u.known) != maxUnits || !ok || last.path != "/last" {
		t.Errorf("%d are known, the last is %+v", len(u.known), last)
	}
}

func TestUnitID(t *testing.T) {
	c := newCgroups(t)
	want := c.add("/x.service")
	for _, path := range []string{c.top + "/x.service", strings.TrimPrefix(c.top, "/") + "/x.service/"} {
		if id, level, err := UnitID(path); id != want || level != 2 || err != nil {
			t.Errorf("%s: got %d at %d, %v, want %d", path, id, level, err, want)
		}
	}
	if id, level, err := UnitID("/"); id != 1 || level != 0 || err != nil {
		t.Errorf("the root: got %d at %d, %v", id, level, err)
	}
	if _, _, err := UnitID(c.top + "/nosuch.service"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, _, err := UnitID(c.top + "/cgroup.procs"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: got %v", err)
	}
}

// childEnv makes the test binary a program that asks the server which it names, and
// then says from where.
const childEnv = "IDENTITY_TEST_ASK"

func askFromChild(t testing.TB, h *netlab.Host, cgroup string, network string, server netip.AddrPort) netip.AddrPort {
	t.Helper()
	program, err := os.Executable()
	must(t, err)
	cmd := h.Command("sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$1"`, cgroup, program)
	cmd.Env = append(os.Environ(), childEnv+"="+network+" "+server.String())
	must(t, cmd.Start())
	t.Cleanup(func() { must(t, cmd.Stop()) })
	eventually(t, "the child has asked", func() bool { return strings.Contains(cmd.Output(), "\n") })
	client, err := netip.ParseAddrPort(strings.TrimSpace(cmd.Output()))
	if err != nil {
		t.Fatal(cmd.Output())
	}
	return client
}

func TestFindUnitOfChild(t *testing.T) {
	ways(t, func(t *testing.T, a *Askers, c *cgroups) {
		h, a2 := here(t)
		a2.units.finder.byHandle = a.units.finder.byHandle
		for i, network := range []string{"udp", "tcp"} {
			server := serve(t, h, network, "127.0.0.1:0")
			unitPath := fmt.Sprintf("/child%d.service", i)
			id := c.add(unitPath)
			worker := c.add(unitPath + "/worker")
			client := askFromChild(t, h, c.mount.point+c.top+unitPath+"/worker", network, server)
			got, err := a2.Find(network, client, server)
			if err != nil || got.Cgroup != worker {
				t.Errorf("%s: got %+v, %v, want cgroup %d", network, got, err, worker)
			}
			c.isUnit(a2, got.Cgroup, unitPath, id)
		}
	})
}
