package netlab

import (
	"errors"
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f on a thread which is in the host's namespace. It costs about two microseconds, calls
// may nest, and sockets and processes made by f stay in the namespace when f has returned. A
// goroutine started by f does not run in it.
func (h *Host) Do(f func() error) (err error) {
	leave, err := h.enter()
	if err != nil {
		return err
	}
	// Deferred, as f may end the goroutine (t.FailNow).
	defer func() { err = errors.Join(err, leave()) }()
	return f()
}

// enter moves the calling goroutine, on a thread of its own, into the namespace until leave is
// called. When leave fails the goroutine stays locked to the thread: the Go runtime then lets the
// thread die with the goroutine rather than run other goroutines in the wrong network.
func (h *Host) enter() (leave func() error, err error) {
	runtime.LockOSThread()
	// Where to return to is looked up anew each time, so that calls nest.
	back, err := currentNamespace()
	if err == nil {
		if err = h.setns(); err != nil {
			unix.Close(back)
		}
	}
	if err != nil {
		runtime.UnlockOSThread()
		return nil, h.fail("enter", err)
	}
	return func() error { return h.fail("leave", leaveTo(back)) }, nil
}

func (h *Host) setns() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return net.ErrClosed
	}
	return unix.Setns(h.ns, unix.CLONE_NEWNET)
}

// leaveTo returns the thread to a namespace, closes that, and unlocks the thread.
func leaveTo(back int) error {
	defer unix.Close(back)
	if err := unix.Setns(back, unix.CLONE_NEWNET); err != nil {
		return err
	}
	runtime.UnlockOSThread()
	return nil
}

// newNamespace makes a network namespace which lives as long as the descriptor, or as anything in it.
func newNamespace() (int, error) {
	runtime.LockOSThread()
	back, err := currentNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return -1, err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, errors.Join(fmt.Errorf("unshare: %w", err), leaveTo(back))
	}
	ns, err := currentNamespace()
	return ns, errors.Join(err, leaveTo(back))
}

// currentNamespace opens the calling thread's namespace. /proc/self would be the main thread's.
func currentNamespace() (int, error) {
	return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}
