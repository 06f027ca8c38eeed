package netlab

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCommandSeesItsHost(t *testing.T) {
	a, _ := newPair(t, newLab(t))
	var tee strings.Builder
	cmd := a.Command("cat", "/proc/self/net/dev")
	cmd.Tee = &tee
	must(t, cmd.Run())
	var names []string
	for line := range strings.Lines(cmd.Output()) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	if got := strings.Join(names, " "); got != "lo toB" && got != "toB lo" {
		t.Errorf("the command sees %q", got)
	}
	if tee.String() != cmd.Output() {
		t.Error("the tee got something else")
	}
}

func TestCommand(t *testing.T) {
	a := newTestHost(t, newLab(t), "a")
	t.Run("fields", func(t *testing.T) {
		cmd := a.Command("sh", "-c", "pwd; echo $GREETING; cat; echo error >&2")
		cmd.Dir, cmd.Env, cmd.Stdin = "/proc", []string{"GREETING=hello"}, strings.NewReader("input\n")
		must(t, cmd.Run())
		if got := cmd.Output(); got != "/proc\nhello\ninput\nerror\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		var exit *exec.ExitError
		if err := a.Command("sh", "-c", "exit 3").Run(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		cmd := a.Command("no-such-program")
		if err := cmd.Start(); !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		if err := cmd.Wait(); !errors.Is(err, errNotStarted) {
			t.Errorf("waited for what has not started: %v", err)
		}
		must(t, cmd.Stop())
	})
	t.Run("signal", func(t *testing.T) {
		cmd := startReady(t, a, "trap 'echo got it; exit 0' USR1")
		must(t, cmd.Signal(unix.SIGUSR1), cmd.Wait())
		if !strings.Contains(cmd.Output(), "got it") {
			t.Errorf("got %q", cmd.Output())
		}
		if err := cmd.Start(); !errors.Is(err, errStarted) {
			t.Errorf("started twice: %v", err)
		}
	})
	t.Run("stop", func(t *testing.T) {
		cmd := startReady(t, a, "")
		must(t, cmd.Stop(), cmd.Stop())
	})
	t.Run("stop with clean up", func(t *testing.T) {
		cmd := startReady(t, a, "trap 'exit 0' TERM")
		must(t, cmd.Stop())
	})
	t.Run("stop after a crash", func(t *testing.T) {
		cmd := a.Command("sh", "-c", "exit 3")
		must(t, cmd.Start())
		_ = cmd.Wait()
		if err := cmd.Stop(); err == nil {
			t.Error("the crash was not told")
		}
	})
}

// startReady starts a shell which waits, in pieces short enough for its traps to run soon.
func startReady(t *testing.T, h *Host, trap string) *Cmd {
	t.Helper()
	cmd := h.Command("sh", "-c", trap+"\necho ready; while :; do sleep 0.05; done")
	must(t, cmd.Start())
	eventually(t, "the shell is ready", func() bool { return strings.Contains(cmd.Output(), "ready") })
	return cmd
}
