package netlab

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

// isolatedProgram is the test binary, about to isolate itself and to run one of TestMain's programs.
func isolatedProgram(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), outsideEnv+"=", testProgramEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func TestIsolated(t *testing.T) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	must(t, err)
	if outside := os.Getenv(outsideEnv); outside == "" || outside == here {
		t.Fatalf("the tests run in %s, which is the machine's network", here)
	}
	must(t, Isolate())
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
}

func TestIsolatePassesExitCode(t *testing.T) {
	tests := []struct {
		program string
		code    int
	}{
		{"exit", 7},
		{"die", 128 + int(unix.SIGKILL)},
	}
	for _, tt := range tests {
		t.Run(tt.program, func(t *testing.T) {
			var exit *exec.ExitError
			if err := isolatedProgram(tt.program).Run(); !errors.As(err, &exit) || exit.ExitCode() != tt.code {
				t.Errorf("got %v, want exit status %d", err, tt.code)
			}
		})
	}
}

// startWaiting starts a program which waits for SIGUSR1, and returns the isolated process' number.
func startWaiting(t *testing.T) (*exec.Cmd, int) {
	t.Helper()
	cmd := isolatedProgram("signal")
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	return cmd, pid
}

func TestIsolatePassesSignals(t *testing.T) {
	cmd, _ := startWaiting(t)
	must(t, cmd.Process.Signal(unix.SIGUSR1))
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("got %v, want the code which the signal's handler exits with", err)
	}
}

func TestIsolatedProcessEndsWithItsParent(t *testing.T) {
	cmd, pid := startWaiting(t)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, "the isolated process has ended", func() bool { return !running(pid) })
}

func TestMissing(t *testing.T) {
	tests := []struct {
		name string
		sys  fstest.MapFS
		want string
	}{
		{"nothing known", fstest.MapFS{}, "CAP_SYS_ADMIN"},
		{"open", fstest.MapFS{"kernel/unprivileged_userns_clone": {Data: []byte("1\n")}}, "CAP_SYS_ADMIN"},
		{"Debian", fstest.MapFS{"kernel/unprivileged_userns_clone": {Data: []byte("0\n")}},
			"kernel.unprivileged_userns_clone is 0"},
		{"Ubuntu", fstest.MapFS{"kernel/apparmor_restrict_unprivileged_userns": {Data: []byte("1\n")}},
			"sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := missing(tt.sys); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want it to name %q", got, tt.want)
			}
		})
	}
}

// running reports whether a process is there and no zombie: an orphan's is left to init to reap.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// eventually waits for what the kernel does in its own time.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5s: %s", what)
		}
	}
}
