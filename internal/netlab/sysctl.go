package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Forward makes the host a router, for both families.
func (h *Host) Forward() error {
	return errors.Join(
		h.Sysctl("net/ipv4/ip_forward", "1"),
		h.Sysctl("net/ipv6/conf/all/forwarding", "1"),
	)
}

// Sysctl sets a switch below net/, written with slashes or with dots: "net/ipv4/ip_forward",
// "net.ipv4.ip_forward". All others would be the machine's, not the host's, and are refused.
func (h *Host) Sysctl(key, value string) error {
	doing := fmt.Sprintf("set %s to %s", key, value)
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	if !filepath.IsLocal(key) || !strings.HasPrefix(filepath.Clean(key), "net/") {
		return h.fail(doing, errors.New("not a switch of the network"))
	}
	return h.Do(func() error {
		// /proc/sys/net shows the namespace of the thread which opens it.
		f, err := os.OpenFile(filepath.Join("/proc/sys", key), os.O_WRONLY, 0)
		if err != nil {
			return h.fail(doing, err)
		}
		_, err = f.WriteString(value)
		return h.fail(doing, errors.Join(err, f.Close()))
	})
}
