package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// What tests run, each built when the first test wants it, with the race detector if the
// tests have it.
var (
	binary         = needed(built("coredns", "coredns", "grpcnotrace"))
	guardctlBinary = needed(built("guardctl", "guardctl", ""))
	sentinelBinary = needed(built("sentinel", "sentinel", ""))
	validating     = built("coredns-unbound", "coredns", "grpcnotrace unbound", "CGO_ENABLED=1")

	raceDetector bool
	buildFlags   []string

	buildDir = sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "e2e")
		if err != nil {
			return "", err
		}
		return dir, os.Chmod(dir, 0o755) // other users run it too
	})
)

// release is what the binaries say that they are, as those of make do.
const (
	release   = "v0.1.2-tested"
	releaseOf = "github.com/destination-guard/coredns-ip-destination-guard.release"
)

// built builds a command of the project, once.
func built(file, command, tags string, env ...string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		dir, err := buildDir()
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, file)
		cmd := exec.Command("go", slices.Concat([]string{"build", "-tags", tags, "-ldflags", "-X " + releaseOf + "=" + release, "-o", path}, buildFlags, []string{"../../cmd/" + command})...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return path, nil
	})
}

// needed is for what no test can do without.
func needed(build func() (string, error)) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		path, err := build()
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// removeBuilt removes all of it.
func removeBuilt() {
	if dir, err := buildDir(); err == nil {
		_ = os.RemoveAll(dir)
	}
}
