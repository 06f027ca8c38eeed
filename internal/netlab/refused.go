package netlab

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// gates are the switches with which a distribution or an administrator keeps ordinary users from
// making namespaces: key has the value shut, and open is what to do about it.
var gates = []struct{ key, shut, open string }{
	{"kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
	{"kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	{"user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=1000"},
	{"user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=1000"},
	{"user/max_mnt_namespaces", "0", "sysctl -w user.max_mnt_namespaces=1000"},
}

// refused adds to err what a person can do about it, as EPERM alone has half a dozen causes.
func refused(err error) error {
	return fmt.Errorf("netlab: no network namespace: %w (%s)", err, missing(os.DirFS("/proc/sys")))
}

func missing(sysctls fs.FS) string {
	var shut []string
	for _, g := range gates {
		value, err := fs.ReadFile(sysctls, g.key)
		if err == nil && strings.TrimSpace(string(value)) == g.shut {
			shut = append(shut, fmt.Sprintf("%s is %s: %s, or run as root", strings.ReplaceAll(g.key, "/", "."), g.shut, g.open))
		}
	}
	if shut == nil {
		return "needs CAP_SYS_ADMIN or user namespaces; in a container: --privileged"
	}
	return strings.Join(shut, "; ")
}
