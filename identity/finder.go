package identity

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A finder turns ids of cgroups into paths.
type finder struct {
	now      func() time.Time
	byHandle atomic.Bool

	// Or else by walks.
	most         bounds
	trunk, parts walks
}

func (f *finder) init(now func() time.Time) {
	f.now = now
	f.byHandle.Store(mayOpenByHandle())
	f.most = mostWalked
	f.trunk.init()
	f.parts.init()
}

// path returns where the cgroup is, or was a moment ago.
func (f *finder) path(ctx context.Context, m *mount, cgroup uint64, arrived time.Time) (string, error) {
	if f.byHandle.Load() {
		p, err := pathByHandle(m, cgroup)
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return p, err
		}
		f.byHandle.Store(false)
	}
	if p, ok := f.parts.last.Load().paths[cgroup]; ok {
		return p, nil
	}
	trunk, err := f.trunk.settle(ctx, f.now, cgroup, arrived, func() *walked {
		return walkTrunk(m, f.now(), f.most)
	})
	if err != nil {
		return "", err
	}
	if p, ok := trunk.paths[cgroup]; ok {
		return p, nil
	}
	parts, err := f.parts.settle(ctx, f.now, cgroup, arrived, func() *walked {
		return walkParts(m, f.trunk.last.Load(), f.most)
	})
	if err != nil {
		return "", err
	}
	if p, ok := parts.paths[cgroup]; ok {
		return p, nil
	}
	if err := cmp.Or(trunk.err, parts.err); err != nil {
		return "", err
	}
	return "", ErrGone
}

// fileidKernfs is the type of a file handle that is an id of kernfs (FILEID_KERNFS).
const fileidKernfs = 0xfe

// pathByHandle asks the kernel for the directory with the id.
func pathByHandle(m *mount, cgroup uint64) (string, error) {
	at, err := unix.Open(m.point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: m.point, Err: err}
	}
	defer unix.Close(at)
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, cgroup))
	fd, err := unix.OpenByHandleAt(at, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err == unix.ESTALE || err == unix.ENOENT {
		return "", ErrGone
	}
	if err != nil {
		return "", os.NewSyscallError("open_by_handle_at", err)
	}
	defer unix.Close(fd)
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	below, ok := strings.CutPrefix(p, m.point)
	switch {
	case ok && below == "":
		return "/", nil
	case !ok || below[0] != '/':
		return "", ErrGone // not below the mount: of another cgroup namespace
	}
	return below, nil
}

// mayOpenByHandle asks before trying: a service manager may have told the kernel to
// kill who tries without the right.
func mayOpenByHandle() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_DAC_READ_SEARCH) != 0
}
