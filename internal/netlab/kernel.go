package netlab

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Kernel reports whether the kernel is this version or a later one.
func Kernel(major, minor int) bool {
	var u unix.Utsname
	var have, haveMinor int
	if unix.Uname(&u) != nil {
		return false
	}
	_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have, &haveMinor) // 0.0 is no version
	return have > major || have == major && haveMinor >= minor
}
