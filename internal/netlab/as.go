package netlab

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// As says as what a program runs. The zero value is as the caller does.
type As struct {
	User   uint32    // its number, and that of its group; 0 is the caller's
	Caps   []uintptr // capabilities that it has although its user is not root
	Cgroup *Cgroup   // nil is the caller's
}

// String is empty for the zero value.
func (a As) String() (s string) {
	if a.User != 0 {
		s = fmt.Sprintf(" as user %d", a.User)
	}
	if a.Cgroup != nil {
		s += " in " + a.Cgroup.path
	}
	return s
}

// apply returns what is to be closed when the program has started.
func (a As) apply(attr *syscall.SysProcAttr) (close func(), err error) {
	if a.User != 0 {
		attr.Credential = &syscall.Credential{Uid: a.User, Gid: a.User}
	}
	attr.AmbientCaps = a.Caps
	if a.Cgroup == nil {
		return func() {}, nil
	}
	dir, err := os.Open(a.Cgroup.dir)
	if err != nil {
		return nil, err
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	return func() { dir.Close() }, nil
}

// Users returns an error unless programs can run as the user with this number: the namespace of an
// ordinary user has but one.
func Users(uid uint32) error {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return err
		}
		if inside <= uint64(uid) && uint64(uid) < inside+count {
			return nil
		}
	}
	return fmt.Errorf("netlab: there is no user %d here: needs root", uid)
}
