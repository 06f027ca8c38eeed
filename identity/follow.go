package identity

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Units follows cgroups that people name by their paths: a path stays, but systemd
// makes a new cgroup, with another id, whenever a unit starts, and removes it when the
// unit stops. The kernel tells of that at once (inotify on the folders above). All is
// looked at once a second as well, some 3 us a unit, since the kernel may have nothing
// left to tell it with (fs.inotify.max_user_instances and max_user_watches). All methods
// may be called at any time.
type Units struct {
	mount   mount
	every   time.Duration
	list    atomic.Pointer[[]backend.Cgroup]
	changed chan struct{}
	closed  chan struct{}
	ended   sync.WaitGroup
	once    sync.Once

	events  *os.File // nil if the kernel had no inotify to give
	control syscall.RawConn
	watches map[int]struct{} // for one goroutine: those that the kernel has
}

// lookEvery is also the most that a change stays unnoticed.
const lookEvery = time.Second

// FollowUnits begins to follow the cgroups at these paths, which [UnitAt] explains, and
// whose errors it returns. Close ends it.
func FollowUnits(paths []string) (*Units, error) {
	u, err := nameUnits(paths)
	if err == nil {
		err = u.listen()
	}
	if err != nil {
		return nil, fmt.Errorf("follow units: %w", err)
	}
	u.start()
	return u, nil
}

// nameUnits returns units that are not followed yet.
func nameUnits(paths []string) (*Units, error) {
	m, err := findMount()
	if err != nil {
		return nil, err
	}
	list := make([]backend.Cgroup, len(paths))
	for i, p := range paths {
		if list[i], err = m.named(p); err != nil {
			return nil, err
		}
	}
	u := &Units{mount: m, every: lookEvery, changed: make(chan struct{}, 1), closed: make(chan struct{})}
	u.list.Store(&list)
	return u, nil
}

// listen asks for what the kernel has to tell.
func (u *Units) listen() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil // there is no more: see Units
	}
	u.events = os.NewFile(uintptr(fd), "inotify") // non-blocking, so Close wakes who reads
	if u.control, err = u.events.SyscallConn(); err != nil {
		u.events.Close()
	}
	return err
}

func (u *Units) start() {
	u.look()
	u.ended.Go(u.follow)
}

// List returns where the units are now, in the order in which they were named. The ID
// of one that is not there is 0. The list is not to be changed.
func (u *Units) List() []backend.Cgroup { return *u.list.Load() }

// Changed is sent to when List returns something else; several changes may be one
// event. It is closed by Close.
func (u *Units) Changed() <-chan struct{} { return u.changed }

// Close ends the following; the list stays as it is. It may be called more than once.
func (u *Units) Close() {
	u.once.Do(func() {
		close(u.closed)
		if u.events != nil {
			u.events.Close()
		}
		u.ended.Wait()
		close(u.changed)
	})
}

func (u *Units) follow() {
	for u.wait() {
		began := time.Now()
		u.look()
		// Who makes and removes cgroups all the time takes a fifth of a core at most.
		if !u.pause(min(4*time.Since(began), u.every/10)) {
			return
		}
	}
}

// wait returns when something may have changed, or false after Close.
func (u *Units) wait() bool {
	if u.events == nil || u.events.SetReadDeadline(time.Now().Add(u.every)) != nil {
		return u.pause(u.every)
	}
	var told [16 << 10]byte // what it says does not matter
	if _, err := u.events.Read(told[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return u.pause(u.every) // it is closed, or should not be
	}
	return true
}

func (u *Units) pause(d time.Duration) bool {
	select {
	case <-u.closed:
		return false
	case <-time.After(d):
		return true
	}
}

// look sees where the units are.
func (u *Units) look() {
	old := u.List()
	list := slices.Clone(old)
	u.watch(list)
	for i := range list {
		list[i].ID = u.mount.idNow(list[i].Path)
	}
	if !slices.Equal(list, old) {
		u.list.Store(&list)
		signal(u.changed)
	}
}

// watch has the kernel tell of what comes and goes on the way to the units, so before
// they are looked at. What it has no watches left for, it does not tell.
func (u *Units) watch(list []backend.Cgroup) {
	if u.events == nil {
		return
	}
	watches := make(map[int]struct{})
	_ = u.control.Control(func(fd uintptr) { // or else it is closed
		for _, unit := range list {
			// From the top, so that whatever comes below a folder that is missing is
			// told of by the one above.
			for i, r := range unit.Path {
				if r != '/' {
					continue
				}
				wd, err := unix.InotifyAddWatch(int(fd), u.mount.point+unit.Path[:i], unix.IN_ONLYDIR|unix.IN_CREATE|unix.IN_DELETE)
				if err != nil {
					break
				}
				watches[wd] = struct{}{}
			}
		}
		for wd := range u.watches {
			if _, still := watches[wd]; !still {
				// The kernel has, unless the folder was being removed when it was to be watched.
				_, _ = unix.InotifyRmWatch(int(fd), uint32(wd))
			}
		}
	})
	u.watches = watches
}
