// Command sentinel points a machine's resolver at the sentinels of CoreDNS, and back. See sentinel/README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage: ipdestinationguard-sentinel [-root DIR] [-wait DURATION] up|down|run|status

up      gives lo the addresses of the sentinels, waits until CoreDNS answers at them (-wait), and points the machine's
        resolver there
down    undoes all of it
run     does as up, follows changes of the machine's nameservers, lets the machine have them back for as long as CoreDNS
        does not answer, and ends, when it is told to, as down
status  tells how it is

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch err := command(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "ipdestinationguard-sentinel:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func command(ctx context.Context, args []string, out, errs io.Writer) error {
	flags := flag.NewFlagSet("ipdestinationguard-sentinel", flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.Usage = func() { fmt.Fprint(errs, usage); flags.PrintDefaults() }
	root := flags.String("root", "/", "the `folder` that has etc, run and var of the machine")
	wait := flags.Duration("wait", 10*time.Second, "how long up waits for CoreDNS to answer")
	err := flags.Parse(args)
	verb := flags.Arg(0)
	if err == nil && verb != "" { // options may stand behind it as well
		err = flags.Parse(flags.Args()[1:])
	}
	if errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	if verb == "" || flags.NArg() > 0 {
		flags.Usage()
		return errUsage
	}
	m := newMachine(*root, func(format string, args ...any) { fmt.Fprintf(errs, format+"\n", args...) })
	switch verb {
	case "up":
		return m.up(ctx, *wait)
	case "down":
		return m.down()
	case "run":
		return m.run(ctx)
	case "status":
		return m.status(out)
	default:
		fmt.Fprintf(errs, "there is no %q\n", verb)
		flags.Usage()
		return errUsage
	}
}
