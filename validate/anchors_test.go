package validate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The state folder need not be there; only what stands in its way is told of.
func TestPrepareMakesTheStateFolder(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := (&Config{State: state}).Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	err := (&Config{State: "/dev/null/x"}).Prepare()
	if !errors.Is(err, syscall.ENOTDIR) || !strings.HasPrefix(err.Error(), "trusted keys are kept in the state folder: ") {
		t.Error(err)
	}
}
