package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
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
		"/docker/4f":                     "/docker/4f",
		"/a/.service.d/b":                "/a/.service.d/b",
		"/1/2/3/4/5/6/7/8":               "/1/2/3/4/5/6/7/8",
		"/1/2/3/4/5/6/7/8/9":             "/1/2/3/4/5/6/7/8",
		"/1/2/3/4/5/6/7/8/9.service/a":   "/1/2/3/4/5/6/7/8",
		"/1/2.slice/3/4/5/6/7/8/9.scope": "/1/2.slice/3/4/5/6/7/8",
		"/1/2.service/3/4/5/6/7/8/9":     "/1/2.service",
		"/1/2.slice/3/4/5/6/7/8/9":       "/1/2.slice",
		"/a.service/b.slice":             "/a.service",
	} {
		if got := unitPath(cgroup); got != want {
			t.Errorf("%s: got %s, want %s", cgroup, got, want)
		}
	}
}

// ways are the two ways to find a cgroup by its id.
func ways(t *testing.T, test func(t *testing.T, a *Askers, c *cgroups)) {
	for _, byHandle := range []bool{true, false} {
		t.Run(map[bool]string{true: "by handle", false: "by a walk"}[byHandle], func(t *testing.T) {
			c := newCgroups(t)
			a := newAskers(t, newHost(t))
			if byHandle && !a.units.finder.byHandle.Load() {
				cannot(t, "CAP_DAC_READ_SEARCH is missing")
			}
			if _, err := pathByHandle(&c.mount, 1); byHandle && errors.Is(err, unix.EPERM) {
				cannot(t, "the kernel opens by handle for root of the machine only")
			}
			a.units.finder.byHandle.Store(byHandle)
			test(t, a, c)
			if a.units.finder.byHandle.Load() != byHandle {
				t.Error("the kernel has refused to open by handle")
			}
		})
	}
}

func (c *cgroups) isUnit(a *Askers, cgroup uint64, path string, id uint64) {
	c.t.Helper()
	path = c.top + path
	want := backend.Cgroup{Path: path, ID: id, Level: strings.Count(path, "/")}
	if got, err := a.Unit(c.t.Context(), cgroup); err != nil || got != want {
		c.t.Errorf("unit of %d: got %+v, %v; want %+v", cgroup, got, err, want)
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

		if got, err := a.Unit(t.Context(), 1); got != (backend.Cgroup{Path: "/", ID: 1}) || err != nil {
			t.Errorf("the root is %+v, %v", got, err)
		}
		deep := strings.Repeat("/d", backend.MaxLevel-1)
		c.isUnit(a, c.add(deep+"/a/b.service/c"), deep, c.add(deep))
		for _, nobody := range []uint64{0, 1 << 40, 1<<64 - 1} {
			if _, err := a.Unit(t.Context(), nobody); !errors.Is(err, ErrGone) {
				t.Errorf("%d: got %v", nobody, err)
			}
		}

		// A unit that is started again has another cgroup.
		c.remove("/x.service")
		again := c.add("/x.service")
		c.isUnit(a, service, "/x.service", service) // for a second
		now = now.Add(checkEvery)
		for _, gone := range []uint64{service, worker} {
			if _, err := a.Unit(t.Context(), gone); !errors.Is(err, ErrGone) {
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
	unit, err := a.Unit(t.Context(), got.Cgroup)
	must(t, err)
	if unit.Level == 0 && unit.Path == "/" {
		return // which cannot be named
	}
	if want, err := UnitAt(unit.Path); unit != want || err != nil {
		t.Errorf("it is %+v, and UnitAt says %+v, %v", unit, want, err)
	}
}

func TestUnitsAreBounded(t *testing.T) {
	var u knownUnits
	u.init(time.Now)
	for i := range uint64(maxUnits + 100) {
		u.set(i, unit{})
	}
	u.set(maxUnits+99, unit{Cgroup: backend.Cgroup{Path: "/last"}})
	if last, ok := u.get(maxUnits + 99); len(u.known) != maxUnits || !ok || last.Path != "/last" {
		t.Errorf("%d are known, the last is %+v", len(u.known), last)
	}
}

func TestFindUnitOfChild(t *testing.T) {
	ways(t, func(t *testing.T, a *Askers, c *cgroups) {
		h, a2 := here(t)
		a2.units.finder.byHandle.Store(a.units.finder.byHandle.Load())
		for i, network := range []string{"udp", "tcp"} {
			server := serve(t, h, network, "127.0.0.1:0")
			unitPath := fmt.Sprintf("/child%d.service", i)
			id := c.add(unitPath)
			worker := c.add(unitPath + "/worker")
			client, err := netip.ParseAddrPort(startProgram(t, h, c.enter(unitPath+"/worker")+`exec "$0"`, "ask "+network+" "+server.String()))
			must(t, err)
			got, err := a2.Find(network, client, server)
			if err != nil || got.Cgroup != worker {
				t.Errorf("%s: got %+v, %v, want cgroup %d", network, got, err, worker)
			}
			c.isUnit(a2, got.Cgroup, unitPath, id)
		}
	})
}
