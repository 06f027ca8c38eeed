package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// mostPrograms is how many processes of a cgroup are looked at.
const mostPrograms = 32

// Program returns what the program is called by which a user runs in a cgroup: the name that its
// processes have (proc_pid_comm(5)), at most 15 bytes, any but zero. It is empty where they have
// several, where there are more than 32, and for what is in the cgroups below.
//
// It tells people where to look, and proves nothing: a program gives itself what name it likes,
// and another one of the user's may have joined since.
func (a *Askers) Program(c backend.Cgroup, uid uint32) string {
	m, err := a.mount()
	if err != nil || c.Level == 0 {
		return ""
	}
	list, err := os.ReadFile(filepath.Join(m.point, c.Path, "cgroup.procs"))
	pids := strings.Fields(string(list))
	if err != nil || len(pids) > mostPrograms {
		return ""
	}
	return programOf(pids, uid)
}

func programOf(pids []string, uid uint32) (program string) {
	for _, pid := range pids {
		name, user, err := process(pid)
		switch {
		case err != nil || user != uid: // it has ended, or is another's
		case program != "" && name != program:
			return ""
		default:
			program = name
		}
	}
	return program
}

// process returns a process's name and, as its sockets have it, its user.
func process(pid string) (name string, user uint32, err error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return "", 0, err
	}
	_, uids, found := strings.Cut(string(status), "\nUid:") // real, effective, saved, of files
	fields := strings.Fields(uids)
	if !found || len(fields) < 4 {
		return "", 0, fmt.Errorf("process %s: no users in its status", pid)
	}
	number, err := strconv.ParseUint(fields[3], 10, 32)
	if err != nil {
		return "", 0, err
	}
	comm, err := os.ReadFile("/proc/" + pid + "/comm")
	return strings.TrimSuffix(string(comm), "\n"), uint32(number), err
}
