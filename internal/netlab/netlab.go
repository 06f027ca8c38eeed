// Package netlab makes hosts in network namespaces, for tests, benchmarks and the demo.
//
// A program first calls [Isolate] (a test's TestMain calls [Main]), which moves it away from the
// machine's own network. A [Lab] then makes hosts, each a namespace of its own, which are linked,
// addressed and routed like machines. Everything a host was asked to run ends with [Lab.Close].
//
// It asks for no root: an ordinary user gets a user namespace in which they are root.
package netlab

import (
	"fmt"
	"os"
)

// Main runs a package's tests in an isolated network: func TestMain(m *testing.M) { netlab.Main(m.Run) }.
// Where namespaces are not to be had the tests are skipped, saying why. On CI (CI=true) they fail
// instead, as nobody would notice there that they no longer run.
//
// Programs of hosts are this binary once more: see [Host.Program].
func Main(run func() int) {
	if os.Getenv(programEnv) != "" {
		os.Exit(beProgram())
	}
	if err := Isolate(); err != nil {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, "failed:", err)
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "skipped:", err)
		os.Exit(0)
	}
	os.Exit(run())
}
