package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newTestCgroup skips the test where there are none. On CI it fails: see Main.
func newTestCgroup(t *testing.T, lab *Lab, name string) *Cgroup {
	t.Helper()
	c, err := lab.Cgroup(name)
	lacks(t, err)
	return c
}

func lacks(t *testing.T, err error) {
	t.Helper()
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	must(t, err)
}

func TestCommandAs(t *testing.T) {
	lab := newLab(t)
	a := newTestHost(t, lab, "a")
	t.Run("cgroup", func(t *testing.T) {
		c := newTestCgroup(t, lab, "app.slice/web.service")
		if !strings.HasSuffix(c.Path(), "/app.slice/web.service") || c.Path()[0] != '/' {
			t.Errorf("the path is %s", c.Path())
		}
		cmd := a.Command("cat", "/proc/self/cgroup")
		cmd.As.Cgroup = c
		must(t, cmd.Run())
		if !strings.Contains(cmd.Output(), "0::"+c.Path()+"\n") {
			t.Errorf("it is not in %s:\n%s", c.Path(), cmd.Output())
		}
	})
	t.Run("user", func(t *testing.T) {
		lacks(t, Users(1001))
		cmd := a.Command("sh", "-c", "id -u; id -g; grep -E '^Cap(Eff|Bnd)' /proc/self/status")
		cmd.As = As{User: 1001, Caps: []uintptr{unix.CAP_NET_ADMIN}}
		must(t, cmd.Run())
		if want := fmt.Sprintf("1001\n1001\nCapEff:\t%016x\n", 1<<unix.CAP_NET_ADMIN); !strings.HasPrefix(cmd.Output(), want) {
			t.Errorf("got %q, want %q first", cmd.Output(), want)
		}
	})
	t.Run("no user", func(t *testing.T) {
		if err := Users(1<<32 - 1); err == nil {
			t.Error("-1 is no user")
		}
	})
}

func TestCgroupClose(t *testing.T) {
	lab := newLab(t)
	a := newTestHost(t, lab, "a")
	c := newTestCgroup(t, lab, "app.service")
	if _, err := lab.Cgroup("app.service"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	cmd := a.Command("sh", "-c", "sleep 1000 & echo $$ $!; wait")
	cmd.As.Cgroup = c
	must(t, cmd.Start())
	eventually(t, "the shell has told its processes", func() bool { return strings.Contains(cmd.Output(), "\n") })
	must(t, os.Mkdir(filepath.Join(c.dir, "below"), 0o755))

	must(t, c.Close(), c.Close())
	for pid := range strings.FieldsSeq(cmd.Output()) {
		n, err := strconv.Atoi(pid)
		must(t, err)
		eventually(t, "process "+pid+" has ended", func() bool { return !running(n) })
	}
	if _, err := os.Stat(c.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", c.dir, err)
	}
	cmd = a.Command("true")
	cmd.As.Cgroup = c
	if err := cmd.Start(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("started in a cgroup that is gone: %v", err)
	}
	anew := newTestCgroup(t, lab, "app.service")
	must(t, lab.Close())
	if _, err := os.Stat(filepath.Dir(anew.dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", filepath.Dir(anew.dir), err)
	}
}

func TestCgroupName(t *testing.T) {
	lab := newLab(t)
	for _, name := range []string{"", ".", "..", "../x", "/x", "a/../../x"} {
		if _, err := lab.Cgroup(name); err == nil {
			t.Errorf("%q was made", name)
		}
	}
}

// Where the hierarchy is not mounted, or read-only, a mount of one's own does.
func TestCgroupMount(t *testing.T) {
	lacks(t, Users(1)) // in an ordinary user's namespace mounts are locked, and cgroups not to be mounted
	newTestCgroup(t, newLab(t), "app.service")
	for _, program := range []string{"hidden cgroups", "read-only cgroups"} {
		t.Run(program, func(t *testing.T) {
			out, err := isolatedProgram(program).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func withoutCgroups() int {
	return cgroupsAfter(func(mount string) error { return unix.Unmount(mount, unix.MNT_DETACH) })
}

func withReadOnlyCgroups() int {
	return cgroupsAfter(func(mount string) error {
		return unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	})
}

func cgroupsAfter(change func(mount string) error) int {
	err := func() error {
		mount, err := cgroupMount()
		if err != nil {
			return err
		}
		if err := change(mount); err != nil {
			return err
		}
		lab, err := New()
		if err != nil {
			return err
		}
		defer lab.Close()
		h, err := lab.Host("a")
		if err != nil {
			return err
		}
		c, err := lab.Cgroup("app.service")
		if err != nil {
			return err
		}
		cmd := h.Command("cat", "/proc/self/cgroup")
		cmd.As.Cgroup = c
		if err := cmd.Run(); err != nil {
			return err
		}
		if !strings.Contains(cmd.Output(), "0::"+c.Path()+"\n") {
			return fmt.Errorf("it is not in %s: %s", c.Path(), cmd.Output())
		}
		return lab.Close()
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// What a process leaves that ends without closing its lab is removed by its parent.
func TestCgroupsOfTheDead(t *testing.T) {
	newTestCgroup(t, newLab(t), "app.service")
	out, _ := isolatedProgram("die with cgroup").Output()
	dir := strings.TrimSpace(string(out))
	if filepath.Base(dir) != "app.service" {
		t.Fatalf("it wrote %q", out)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", dir, err)
	}
}

func dieWithCgroup() int {
	lab, err := New()
	if err == nil {
		var h *Host
		if h, err = lab.Host("a"); err == nil {
			var c *Cgroup
			if c, err = lab.Cgroup("app.service"); err == nil {
				cmd := h.Command("sleep", "1000")
				cmd.As.Cgroup = c
				err = cmd.Start()
				fmt.Println(c.dir)
			}
		}
	}
	if err != nil {
		fmt.Println(err)
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
