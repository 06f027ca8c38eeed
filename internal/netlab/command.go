package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a process has between SIGTERM and SIGKILL.
const stopGrace = 5 * time.Second

var (
	errStarted    = errors.New("started already")
	errNotStarted = errors.New("not started")
)

// Cmd is a program which runs on a host. The fields are read by Start. The program leads a process
// group, and what is left of the group when it ends is killed.
type Cmd struct {
	Dir   string    // "" is the caller's
	Env   []string  // nil is the caller's
	Stdin io.Reader // nil is /dev/null
	Tee   io.Writer // gets the output too, when not nil
	As    As        // as whom it runs

	host *Host
	exec *exec.Cmd
	out  output
	done chan struct{} // nil before Start, closed when the program has ended
	err  error         // what Wait returns; written before done is closed
}

// Command returns a program to be started on the host. A name without a slash is looked up in PATH.
func (h *Host) Command(name string, args ...string) *Cmd {
	return &Cmd{host: h, exec: exec.Command(name, args...)}
}

// Start starts the program. It is killed when the lab is closed or this process ends.
func (c *Cmd) Start() error {
	if c.done != nil {
		return c.fail(errStarted)
	}
	c.out.tee = c.Tee
	c.exec.Dir, c.exec.Env, c.exec.Stdin = c.Dir, c.Env, c.Stdin
	c.exec.Stdout, c.exec.Stderr = &c.out, &c.out
	c.exec.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	applied, err := c.As.apply(c.exec.SysProcAttr)
	if err != nil {
		return c.fail(err)
	}
	defer applied()
	c.exec.WaitDelay = time.Second // for a grandchild which left the group and holds the output open

	c.done = make(chan struct{})
	started := make(chan error)
	go c.run(started)
	if err := <-started; err != nil {
		<-c.done
		c.done = nil
		return c.fail(err)
	}
	return nil
}

// run is the life of the process, on one thread from fork to wait: the kernel sends Pdeathsig when
// the thread which forked dies, and Go ends threads that others left locked.
func (c *Cmd) run(started chan<- error) {
	defer close(c.done)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.host.Do(c.exec.Start) // the child inherits the thread's namespace
	if err == nil {
		if err = c.host.keep(killer{c}); err != nil {
			_ = c.exec.Process.Kill()
		}
	}
	started <- err
	if c.exec.Process == nil {
		return
	}
	// The group is killed before its leader is reaped: until then its number cannot be given away.
	for unix.Waitid(unix.P_PID, c.exec.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	_ = unix.Kill(-c.exec.Process.Pid, unix.SIGKILL)
	c.err = c.exec.Wait()
	c.host.drop(killer{c})
}

// Wait waits for the end, and returns an [exec.ExitError] unless the program exited with 0.
func (c *Cmd) Wait() error {
	if c.done == nil {
		return c.fail(errNotStarted)
	}
	<-c.done
	return c.fail(c.err)
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Signal sends the program, not its group, a signal.
func (c *Cmd) Signal(s os.Signal) error {
	if c.done == nil {
		return c.fail(errNotStarted)
	}
	return c.fail(c.exec.Process.Signal(s))
}

// Stop sends SIGTERM, and SIGKILL when that does not help within five seconds. It returns nil if
// the program exited with 0 or died of the SIGTERM: a crash, before or meanwhile, is an error.
func (c *Cmd) Stop() error {
	if c.done == nil {
		return nil
	}
	_ = c.exec.Process.Signal(unix.SIGTERM) // fails only when the program has ended
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-c.done:
	case <-grace.C:
		_ = killer{c}.Close()
		return c.fail(fmt.Errorf("killed, as it did not end within %v of SIGTERM", stopGrace))
	}
	if ws, ok := c.exec.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == unix.SIGTERM {
		return nil
	}
	return c.fail(c.err)
}

// Output returns what the program has written so far to its standard output and error.
func (c *Cmd) Output() string { return c.out.String() }

func (c *Cmd) fail(err error) error { return c.host.fail("run "+c.exec.Path, err) }

// killer is how a closing host ends a program.
type killer struct{ c *Cmd }

func (k killer) Close() error {
	_ = k.c.exec.Process.Kill() // fails only when the program has ended
	<-k.c.done
	return nil
}

// output is a buffer which grows while it is read.
type output struct {
	tee io.Writer

	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	o.buf.Write(p)
	o.mu.Unlock()
	if o.tee != nil {
		return o.tee.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
