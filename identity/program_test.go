package identity

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// run starts a program in a cgroup, under a name.
func (c *cgroups) run(path, name string) {
	c.t.Helper()
	at := filepath.Join(c.t.TempDir(), name)
	sleep, err := exec.LookPath("sleep")
	must(c.t, err)
	must(c.t, os.Symlink(sleep, at))
	cmd := exec.Command(at, "1000")
	must(c.t, cmd.Start())
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	must(c.t, os.WriteFile(c.mount.point+c.top+path+"/cgroup.procs", fmt.Append(nil, cmd.Process.Pid), 0))
}

func TestProgram(t *testing.T) {
	c := newCgroups(t)
	a := newAskers(t, newHost(t))
	c.add("/a.service/below")
	is := func(want string) {
		t.Helper()
		unit := backend.Cgroup{Path: c.top + "/a.service", Level: 2}
		if got := a.Program(unit, uint32(os.Getuid())); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := a.Program(unit, 4711); got != "" {
			t.Errorf("another user's is %q", got)
		}
	}
	is("")
	c.run("/a.service", "one (or) two")
	is("one (or) two")
	c.run("/a.service/below", "other") // in a cgroup of its own
	c.run("/a.service", "one (or) two")
	is("one (or) two")
	c.run("/a.service", "other")
	is("")
	for _, nowhere := range []backend.Cgroup{{}, {Path: "/", ID: 1}, {Path: c.top + "/gone", Level: 2}} {
		if got := a.Program(nowhere, 0); got != "" {
			t.Errorf("in %v: %q", nowhere, got)
		}
	}
	many := strings.Split(strings.Repeat("4711000 ", 3), " ")
	if got := programOf(many, 0); got != "" {
		t.Errorf("of those that have ended: %q", got)
	}
}

// Who runs very many is not looked through.
func TestProgramOfMany(t *testing.T) {
	c := newCgroups(t)
	a := newAskers(t, newHost(t))
	c.add("/a.service")
	unit := backend.Cgroup{Path: c.top + "/a.service", Level: 2}
	for range mostPrograms {
		c.run("/a.service", "one")
	}
	if got := a.Program(unit, uint32(os.Getuid())); got != "one" {
		t.Errorf("got %q", got)
	}
	c.run("/a.service", "one")
	if got := a.Program(unit, uint32(os.Getuid())); got != "" {
		t.Errorf("of one too many: %q", got)
	}
}
