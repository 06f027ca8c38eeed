package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outsideEnv tells the isolated process which network namespace it was taken out of. Naming it,
// rather than saying "yes", lets the process check that it is indeed elsewhere.
const outsideEnv = "NETLAB_OUTSIDE"

// Isolate runs this program again in network and mount namespaces of its own, and in a user
// namespace which maps the caller to root when the caller may not make the others. In the first
// process it does not return but exits as the second one does; in the second it returns nil, with
// lo up. An error says what keeps this machine from making namespaces.
//
// It has to be called before anything else, as all of main or TestMain up to the call runs twice.
func Isolate() error {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("netlab: the kernel has no network namespaces: %w", err)
	}
	switch os.Getenv(outsideEnv) {
	case "":
		return rerun(here)
	case here:
		return errors.New("netlab: the isolated process is still in the network it came from")
	}
	return settle()
}

// settle makes the new namespaces usable and keeps their mounts to themselves.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return refused(fmt.Errorf("make mounts private: %w", err))
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return refused(fmt.Errorf("set lo up: %w", err))
	}
	return nil
}

// rerun starts the isolated process and exits with its code.
func rerun(here string) error {
	// The kernel sends Pdeathsig when the thread which forked dies, not when the process does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	// go test asks for a dump of all goroutines with SIGQUIT, and that has to reach the tests.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2)

	child, err := startIsolated(here)
	if err != nil {
		signal.Stop(signals)
		return refused(err)
	}
	go func() {
		for s := range signals {
			_ = child.Process.Signal(s) // it fails only when the child has ended, and we are about to
		}
	}()
	if err := child.Wait(); child.ProcessState == nil {
		return fmt.Errorf("netlab: wait for the isolated process: %w", err)
	}
	removeCgroupsOf(child.Process.Pid)
	os.Exit(exitCode(child.ProcessState))
	return nil
}

// startIsolated makes do without a user namespace where it can: root of the machine may do more
// (raise socket buffers, load modules) than root of a user namespace.
func startIsolated(here string) (*exec.Cmd, error) {
	if os.Geteuid() == 0 {
		child := isolated(here, 0)
		err := child.Start()
		if !errors.Is(err, unix.EPERM) { // EPERM: root in a container without CAP_SYS_ADMIN
			return child, err
		}
	}
	child := isolated(here, unix.CLONE_NEWUSER)
	return child, child.Start()
}

func isolated(here string, flags uintptr) *exec.Cmd {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | flags,
		Pdeathsig:  unix.SIGKILL,
	}
	if flags&unix.CLONE_NEWUSER != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return &exec.Cmd{
		Path:        "/proc/self/exe", // the file itself may be deleted, or in a folder we cannot read
		Args:        os.Args,
		Env:         append(os.Environ(), outsideEnv+"="+here),
		Stdin:       os.Stdin,
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		SysProcAttr: attr,
	}
}

// exitCode is what a shell would make of the state.
func exitCode(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}
