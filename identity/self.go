package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Self returns by what rules can tell the packets of this process from those of others:
// by its cgroup (version 2), if there is no other process in it or below, or else by
// its effective user alone.
//
// A cgroup that is shared, like the session in which somebody has started it by hand,
// would let all in it do what is meant for this process; so do not take it for one's
// own. The root can be in no rule, as everything is below it: neither the real one nor
// what a cgroup namespace shows as such, as containers have it. Nor can what is deeper
// than [backend.MaxLevel], or cgroups that are not mounted.
//
// It is what is so at the moment. A unit's ExecReload= and ExecStartPost= run in the
// unit's cgroup too: who asks then, and not once when the process starts, may get
// another answer. With an error, which says why the cgroup could not be found out, the
// user is good nevertheless.
func Self() (backend.Program, error) {
	self := backend.Program{User: uint32(os.Geteuid())}
	m, err := findMount()
	if err == nil {
		self.Cgroup, err = m.ownCgroup(os.Getpid())
	}
	if err != nil && !errors.Is(err, ErrUnsupported) {
		return self, fmt.Errorf("the cgroup of this process: %w", err)
	}
	return self, nil
}

// ownCgroup returns the cgroup of this process, or the zero one if that is not its own.
func (m *mount) ownCgroup(process int) (own backend.Cgroup, err error) {
	memberships, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return own, err
	}
	p := unifiedPath(string(memberships))
	level := levelOf(p)
	if level < 1 || level > backend.MaxLevel {
		return own, nil
	}
	id, err := m.id(p)
	alone := false
	if err == nil {
		alone, err = m.alone(p, process)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV): // removed
		return own, nil
	case errors.Is(err, unix.EOPNOTSUPP): // of threads: their processes are in one above
		return own, nil
	case err != nil || !alone:
		return own, err
	}
	return backend.Cgroup{Path: p, ID: id, Level: level}, nil
}

// unifiedPath reads the path in the hierarchy of version 2 (proc_pid_cgroup(5)). It is
// empty if there is none below the root of the cgroup namespace: to what is outside, the
// path leads by way of .. .
func unifiedPath(memberships string) string {
	for line := range strings.Lines(memberships) {
		p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if ok && p == path.Clean(p) {
			return p
		}
	}
	return ""
}

// alone reports whether no other process is in a cgroup or below.
func (m *mount) alone(cgroup string, process int) (bool, error) {
	folder := m.point + cgroup
	members, err := os.ReadFile(folder + "/cgroup.procs")
	if err != nil {
		return false, err
	}
	me := false
	for member := range strings.Lines(string(members)) { // 0 is one of another PID namespace
		if me = strings.TrimSpace(member) == strconv.Itoa(process); !me {
			return false, nil
		}
	}
	below, err := os.ReadDir(folder)
	if err != nil || !me {
		return false, err
	}
	for _, e := range below {
		if !e.IsDir() {
			continue
		}
		// The kernel counts all that is further below too.
		events, err := os.ReadFile(path.Join(folder, e.Name(), "cgroup.events"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err == nil && !bytes.Contains(events, []byte("populated 0")) {
			return false, nil
		}
	}
	return true, nil
}
