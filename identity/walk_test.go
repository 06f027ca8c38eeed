package identity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// walker finds units by walks in a tree of which the kernel need not know: ids are inodes.
func walker(t *testing.T, m mount) *Askers {
	a := &Askers{mount: func() (mount, error) { return m, nil }}
	a.units.init(time.Now)
	a.units.finder.byHandle.Store(false)
	return a
}

func newTree(t *testing.T) *cgroups { return &cgroups{t, mount{t.TempDir()}, ""} }

// hidden is what has an error that does not say that it is gone.
func (c *cgroups) hidden(a *Askers, cgroup uint64, want string) {
	c.t.Helper()
	if got, err := a.Unit(c.t.Context(), cgroup); err == nil || errors.Is(err, ErrGone) || !strings.Contains(err.Error(), want) {
		c.t.Errorf("%d: got %+v, %v, want %q", cgroup, got, err, want)
	}
}

const userManager = "/user.slice/user-1000.slice/user@1000.service"

// Who has very many cgroups, and makes and removes more all the time, hides nobody else.
func TestHugePart(t *testing.T) {
	c := newCgroups(t)
	a := walker(t, c.mount)
	a.units.finder.most.part, a.units.finder.most.share = 200, 20
	for i := range 3000 {
		c.add(fmt.Sprintf("%s/%d", userManager, i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ctx.Err() == nil; i = (i + 1) % 1000 {
			folder := fmt.Sprintf("%s%s%s/more%d", c.mount.point, c.top, userManager, i)
			_ = os.Mkdir(folder, 0o755)
			_ = os.Remove(folder)
		}
	})
	asks := func(asker uint64) {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = a.Unit(ctx, asker)
			_, _ = a.Unit(ctx, 1<<50+uint64(i)) // never the same
		}
	}
	deep := c.add(userManager + "/0/1/2/3/4/5/6/7/8/9")
	for range 4 {
		churn.Go(func() { asks(deep) })
	}
	defer churn.Wait()
	defer cancel()
	for i := range 10 {
		service := fmt.Sprintf("/system.slice/%d.service", i)
		c.isUnit(a, c.add(service), service, c.add(service))
		c.isUnit(a, c.add(service+"/worker"), service, c.add(service))
	}
	other := "/user.slice/user-2000.slice/user@2000.service/app.slice/a.service"
	c.isUnit(a, c.add(other), other, c.add(other))
	c.hidden(a, deep, "too many cgroups in "+c.top+userManager)
	if cost := a.units.finder.parts.last.Load().cost; cost > 2000 {
		t.Errorf("%d were looked at", cost)
	}
}

// What others than root may write to is a part as well, whatever it is called.
func TestPartsHaveBounds(t *testing.T) {
	for name, own := range map[string]func(t *testing.T, folder string){
		"by its name":    func(*testing.T, string) {},
		"by its mode":    func(t *testing.T, folder string) { must(t, os.Chmod(folder, 0o775)) },
		"by its owner":   func(t *testing.T, folder string) { chown(t, folder) },
		"by mode, world": func(t *testing.T, folder string) { must(t, os.Chmod(folder, 0o757)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newTree(t)
			a := walker(t, c.mount)
			a.units.finder.most = bounds{trunk: 100, part: 400, parts: 900, share: 10}
			var parts []string
			for i := range 20 {
				part := fmt.Sprintf("/a.slice/%d", i)
				if name == "by its name" {
					part += ".scope"
				}
				c.add(part)
				own(t, c.mount.point+part)
				for j := range 50 * (i % 2) {
					c.add(fmt.Sprintf("%s/%d/x", part, j))
				}
				parts = append(parts, part)
			}
			inner := parts[10] + "/1/2/3/4/5.service"
			small := c.add(inner)
			long := c.add(parts[12] + strings.Repeat("/"+strings.Repeat("d", 200), 12))
			c.isUnit(a, small, inner, small)
			c.hidden(a, long, "too many cgroups in /a.slice/")
			last := a.units.finder.parts.last.Load()
			if last.cost > 900 || len(last.paths) > 900 {
				t.Errorf("%d were looked at, %d are kept", last.cost, len(last.paths))
			}
			// Why is known for a second.
			c.hidden(a, long, "too many cgroups in /a.slice/")
			if a.units.finder.parts.last.Load() != last {
				t.Error("it was walked again")
			}
			a.units.now = func() time.Time { return time.Now().Add(checkEvery) }
			c.hidden(a, long, "too many cgroups in /a.slice/")
			if a.units.finder.parts.last.Load() == last {
				t.Error("it was not walked again")
			}
		})
	}
}

func chown(t *testing.T, folder string) {
	if err := os.Chown(folder, 1000, 1000); err != nil {
		cannot(t, err)
	}
}

func TestTrunkHasABound(t *testing.T) {
	c := newTree(t)
	a := walker(t, c.mount)
	a.units.finder.most.trunk = 100
	near := c.add("/near.service")
	for i := range 200 {
		c.add(fmt.Sprintf("/a.slice/b.slice/%d", i))
	}
	c.isUnit(a, near, "/near.service", near)
	c.hidden(a, 1<<60, "more than 100 cgroups")
}

func TestWalksHaveADepth(t *testing.T) {
	c := newTree(t)
	a := walker(t, c.mount)
	deepest := "/a.scope" + strings.Repeat("/d", maxDepth-1)
	c.hidden(a, c.add(deepest+"/d"), "deeper than 32 levels")
	c.isUnit(a, c.add(deepest), "/a.scope", c.add("/a.scope"))
}

// A part that cannot be read keeps nobody else from being found.
func TestPartsThatCannotBeRead(t *testing.T) {
	c := newTree(t)
	a := walker(t, c.mount)
	must(t, os.Chmod(c.mount.point, 0o755), os.Chmod(filepath.Dir(c.mount.point), 0o755))
	secret := c.add("/a.service/secret")
	must(t, os.Chmod(c.mount.point+"/a.service", 0))
	defer os.Chmod(c.mount.point+"/a.service", 0o755)
	other := c.add("/b.service/c")
	service := c.add("/b.service")
	must(t, asUser(t, 1000, func() error {
		c.isUnit(a, other, "/b.service", service)
		c.hidden(a, secret, "permission denied")
		return nil
	}))
}

// Nobody waits for others for ever, and who is known does not wait at all.
func TestUnitIsFoundInTimeOrNot(t *testing.T) {
	c := newTree(t)
	known, other := c.add("/known.service"), c.add("/other.service/a")
	synctest.Test(t, func(t *testing.T) {
		a := walker(t, c.mount)
		f := &a.units.finder
		if _, err := a.Unit(t.Context(), known); err != nil {
			t.Error(err)
		}
		for _, w := range []*walks{&f.trunk, &f.parts} {
			w.turn <- struct{}{} // somebody walks
			began := time.Now()
			if _, err := a.Unit(t.Context(), other); !errors.Is(err, ErrLate) || time.Since(began) != findWithin {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := a.Unit(ctx, other); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != findWithin+time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			cancel()
			if got, err := a.Unit(ctx, known); err != nil || got.Path != "/known.service" {
				t.Errorf("got %v, %v", got, err)
			}
			<-w.turn
		}
		// A rest is waited for no longer either.
		last := *f.trunk.last.Load()
		last.took, last.ended = time.Hour, time.Now()
		f.trunk.last.Store(&last)
		ctx, cancel := context.WithTimeout(t.Context(), maxRest/2)
		defer cancel()
		if _, err := a.Unit(ctx, other); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if got, err := a.Unit(t.Context(), other); err != nil || got.Path != "/other.service" {
			t.Errorf("once there is nobody: got %v, %v", got, err)
		}
	})
}

// All that wait for a walk make do with one.
func TestWalksAreShared(t *testing.T) {
	c := newTree(t)
	synctest.Test(t, func(t *testing.T) {
		a := walker(t, c.mount)
		f := &a.units.finder
		f.trunk.turn <- struct{}{}
		var asking sync.WaitGroup
		for i := range 100 {
			service := fmt.Sprintf("/%d.service", i)
			id := c.add(service)
			asking.Go(func() {
				if got, err := a.Unit(t.Context(), id); err != nil || got != (backend.Cgroup{Path: service, ID: id, Level: 1}) {
					t.Errorf("got %+v, %v", got, err)
				}
			})
		}
		synctest.Wait()
		before := f.trunk.last.Load()
		<-f.trunk.turn
		time.Sleep(time.Nanosecond)
		asking.Wait()
		if after := f.trunk.last.Load(); after == before || len(after.paths) != 101 || after.took != 0 {
			t.Errorf("%d are known", len(after.paths))
		}
	})
}
