package route

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
)

// holder says, if it can be found out, which process has locked a file.
func holder(path string) string {
	var stat syscall.Stat_t
	if syscall.Stat(path, &stat) != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	inode := fmt.Sprintf(":%d", stat.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], inode) {
			continue
		}
		name, err := os.ReadFile("/proc/" + f[4] + "/comm")
		if err != nil {
			return ", by process " + f[4]
		}
		return fmt.Sprintf(", by process %s (%s)", f[4], strings.TrimSpace(string(name)))
	}
	return ""
}

// debugFaults makes faults of memory panics, until what it returns is called.
func debugFaults() (restore func()) {
	was := debug.SetPanicOnFault(true)
	return func() { debug.SetPanicOnFault(was) }
}
