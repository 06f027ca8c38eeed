package identity

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

func TestUnifiedPath(t *testing.T) {
	for memberships, want := range map[string]string{
		"0::/system.slice/coredns.service\n": "/system.slice/coredns.service",
		"0::/\n":                             "/",
		"9:name=systemd:/a\n4:memory:/b\n0::/c:d e (deleted)\n": "/c:d e (deleted)",
		"10:cpu:/a\n":      "",
		"":                 "",
		"0::/../coredns\n": "",
		"0::/a/..b\n":      "/a/..b",
	} {
		if got := unifiedPath(memberships); got != want {
			t.Errorf("%q: got %q, want %q", memberships, got, want)
		}
	}
}

func TestSelfOfOurselves(t *testing.T) {
	self, err := Self()
	if err != nil || self.User != uint32(os.Geteuid()) {
		t.Errorf("got %+v, %v", self, err)
	}
	if self.Cgroup.Path == "" {
		return // which depends on who runs the tests
	}
	if want, err := UnitAt(self.Cgroup.Path); err != nil || self.Cgroup != want {
		t.Errorf("got %+v, and UnitAt says %+v, %v", self, want, err)
	}
}

func TestSelf(t *testing.T) {
	for _, tt := range []struct {
		name  string
		shell string // where $top is a cgroup below $mount, $empty a folder, and $0 the program
		own   string // the cgroup that the program has for itself, below $top
		path  string // what it is for the program, if not the same
	}{
		{"alone", `echo 0 > $top/cgroup.procs; exec "$0"`, "/", ""},
		{"with empty cgroups below", `mkdir -p $top/a/b; echo 0 > $top/cgroup.procs; exec "$0"`, "/", ""},
		{"with a process beside", `echo 0 > $top/cgroup.procs; sleep 600 & exec "$0"`, "", ""},
		{"with an older process beside", `(echo 0 > $top/cgroup.procs; exec sleep 600) &
			until grep -q . $top/cgroup.procs; do :; done; echo 0 > $top/cgroup.procs; exec "$0"`, "", ""},
		{"with a process below", `mkdir -p $top/a/b; (echo 0 > $top/a/b/cgroup.procs; exec sleep 600) &
			until grep -q 'populated 1' $top/a/cgroup.events; do :; done
			echo 0 > $top/cgroup.procs; exec "$0"`, "", ""},
		{"in a cgroup of threads", `mkdir $top/a; echo threaded > $top/a/cgroup.type
			echo 0 > $top/cgroup.procs; echo 0 > $top/a/cgroup.procs; exec "$0"`, "", ""},
		{"at level 8", `mkdir -p $top/3/4/5/6/7/8; echo 0 > $top/3/4/5/6/7/8/cgroup.procs; exec "$0"`, "/3/4/5/6/7/8", ""},
		{"deeper", `mkdir -p $top/3/4/5/6/7/8/9; echo 0 > $top/3/4/5/6/7/8/9/cgroup.procs; exec "$0"`, "", ""},
		{"in the root", `echo 0 > $mount/cgroup.procs; exec "$0"`, "", ""},
		{"in the root of a namespace", `echo 0 > $top/cgroup.procs; exec unshare -Cm sh -c '
			mount -t cgroup2 none $empty; exec "$0"' "$0"`, "", ""},
		{"below the root of a namespace", `mkdir -p $top/a; echo 0 > $top/cgroup.procs; exec unshare -Cm sh -c '
			mount -t cgroup2 none $empty; echo 0 > $empty/a/cgroup.procs; exec "$0"' "$0"`, "/a", "/a"},
		{"outside of a namespace", `mkdir -p $top/a; echo 0 > $top/a/cgroup.procs; exec unshare -Cm sh -c '
			echo 0 > $top/cgroup.procs; mount -t cgroup2 none $empty; exec "$0"' "$0"`, "", ""},
		{"in a namespace with a mount of another", `echo 0 > $top/cgroup.procs; exec unshare -C "$0"`, "", ""},
		{"where nothing is mounted", `echo 0 > $top/cgroup.procs; exec unshare -m sh -c 'mount -t tmpfs none $mount; exec "$0"' "$0"`, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCgroups(t)
			c.add("/coredns.service")
			top := c.top + "/coredns.service"
			setUp := fmt.Sprintf("set -e; export mount='%s' top='%[1]s%s' empty='%s'; ", c.mount.point, top, t.TempDir())
			got := startProgram(t, newHost(t), setUp+tt.shell, "self")
			want := backend.Program{User: uint32(os.Geteuid())}
			if tt.own != "" {
				want.Cgroup.Path = strings.TrimSuffix(top+tt.own, "/")
				want.Cgroup.ID = c.mount.idNow(want.Cgroup.Path)
				if tt.path != "" {
					want.Cgroup.Path = tt.path
				}
				want.Cgroup.Level = strings.Count(want.Cgroup.Path, "/")
			}
			if got != fmt.Sprintf("%+v", want) {
				t.Errorf("got %s, want %+v", got, want)
			}
		})
	}
}
