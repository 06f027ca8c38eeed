package admin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// maxPath is the room that the kernel has (unix(7)), less the ending of the name that the
// socket has at first.
const maxPath = 107 - len(unready)

const unready = ".new"

// listen makes the socket. It has its mode and group before anybody finds it. What is
// there is replaced if it is a socket that nobody listens at.
func listen(path string, m members) (_ *net.UnixListener, err error) {
	switch {
	case !filepath.IsAbs(path):
		return nil, fmt.Errorf("%s: the path of a socket begins with a slash", path)
	case len(path) > maxPath:
		return nil, fmt.Errorf("%s: a socket's path has at most %d bytes", path, maxPath)
	}
	if err := vacate(path); err != nil {
		return nil, err
	}
	if path == DefaultPath { // of others the administrator knows whose they are to be
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%w (the systemd unit has RuntimeDirectory=ipdestinationguard)", err)
		}
	}
	at := path + unready
	_ = os.Remove(at) // of a process that was killed here
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			l.Close()
			os.Remove(at)
		}
	}()
	if m.named {
		// A user may give files to groups only that it is in. Then the group has no way in.
		if err := os.Chown(at, -1, int(m.group)); err != nil && !errors.Is(err, os.ErrPermission) {
			return nil, err
		}
	}
	if err := os.Chmod(at, 0o660); err != nil {
		return nil, err
	}
	return l, os.Rename(at, path)
}

// vacate removes a socket that nobody listens at.
func vacate(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there and no socket: name another path, or remove it", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is another process's, which listens there: a second CoreDNS? Name another path for this one", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
