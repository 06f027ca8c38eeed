// Command guardctl shows what the guard of this machine does, and steers it, over the
// guard's admin socket.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// Exit codes, for scripts. The man page and docs/admin-api.md list them.
const (
	exitOK          = 0
	exitFailed      = 1 // it did not work
	exitUsage       = 2 // it was not asked properly
	exitNo          = 3 // explain: it would be refused; doctor: a failure
	exitUnreachable = 4 // no guard answers at the socket
	exitForbidden   = 5 // one may not use it
	exitConflict    = 6 // the guard is in no state for that: no trial to confirm, say
)

// version is set by the linker (see Makefile).
var version = "unversioned"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program, without what ends a process.
func run(ctx context.Context, args []string, out, errs io.Writer) int {
	g := &guardctl{out: out}
	root := g.command()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if g.client != nil {
		g.client.Close()
	}
	code := exitCode(err)
	if err != nil && !errors.Is(err, errNo) {
		fmt.Fprintf(errs, "guardctl: %v\n", err)
		if hint := hintFor(err, g.socket); hint != "" {
			fmt.Fprintf(errs, "guardctl: %s\n", hint)
		}
	}
	return code
}

// guardctl is one call of the program.
type guardctl struct {
	out    io.Writer
	socket string
	json   bool
	client *admin.Client
}

// A runError is one of work, and not of how it was asked for.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

// errNo is an answer, and no error: see exitNo.
var errNo = errors.New("no")

func exitCode(err error) int {
	var unreachable *admin.UnreachableError
	var ran runError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNo):
		return exitNo
	case errors.Is(err, admin.ErrInvalid):
		return exitUsage
	case errors.Is(err, admin.ErrDenied), errors.Is(err, os.ErrPermission):
		return exitForbidden
	case errors.Is(err, admin.ErrConflict):
		return exitConflict
	case errors.As(err, &unreachable), errors.Is(err, admin.ErrUnavailable):
		return exitUnreachable
	case errors.As(err, &ran):
		return exitFailed
	}
	return exitUsage
}

// hintFor says what to do about an error, or nothing.
func hintFor(err error, socket string) string {
	switch exitCode(err) {
	case exitUnreachable:
		return fmt.Sprintf("is CoreDNS running, and is its admin socket %s? --socket names another; guardctl doctor looks for what is wrong; guardctl disarm works without it", socket)
	case exitForbidden:
		return fmt.Sprintf("be root, or a member of the group %s (usermod -aG %[1]s NAME, then log in anew)", admin.Group)
	case exitUsage:
		if !errors.Is(err, admin.ErrInvalid) {
			return "--help says how"
		}
	}
	return ""
}

// ask is a client that asks the guard.
func (g *guardctl) ask() *admin.Client {
	if g.client == nil {
		g.client = admin.NewClient(g.socket)
	}
	return g.client
}

// works makes errors of work known as such.
func works(do func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := do(cmd, args); err != nil {
			return runError{err}
		}
		return nil
	}
}

// one takes a single argument, and says what that is.
func one(what, example string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("write %s: %s", what, example)
		}
		return nil
	}
}

// show writes a result: as JSON, if that is wanted, or in words.
func (g *guardctl) show(result any, words func(io.Writer)) error {
	if g.json {
		e := json.NewEncoder(g.out)
		e.SetIndent("", "  ")
		return e.Encode(result)
	}
	words(g.out)
	return nil
}

// command is the root of all commands.
func (g *guardctl) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "guardctl",
		Short: "See and steer what this machine's DNS lets it reach",
		Long: `guardctl asks the guard of this machine, the CoreDNS plugin ipdestinationguard, over its admin
socket: what is open, to whom, and why; what was denied, and why; and it can end grants, switch
between audit and enforcement, try enforcement out, and remove the rules.

Exit codes: 0 done; 1 it did not work; 2 it was not asked properly; 3 explain: packets would be
refused, or doctor: there is a failure; 4 no guard answers; 5 one may not ask; 6 the guard is in
no state for that.`,
		Version:           version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("what is to be done?")
		},
	}
	root.PersistentFlags().StringVar(&g.socket, "socket", admin.DefaultPath, "the guard's admin socket")
	root.PersistentFlags().BoolVar(&g.json, "json", false, "write JSON")
	root.AddCommand(
		g.statusCommand(), g.grantsCommand(), g.explainCommand(), g.deniedCommand(),
		g.revokeCommand(), g.flushCommand(),
		g.auditCommand(), g.enforceCommand(), g.trialCommand(), g.confirmCommand(), g.disarmCommand(),
		g.watchCommand(), g.learnCommand(), g.reportCommand(), g.doctorCommand(), g.manCommand(),
	)
	return root
}
