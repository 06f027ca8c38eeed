package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// hooks are the words for them, as in the Corefile.
var hooks = map[string]string{"local": "output", "gateway": "forward"}

// switchCommand is audit or enforce.
func (g *guardctl) switchCommand(name, short, long string, audit bool) *cobra.Command {
	return &cobra.Command{
		Use:       name + " [local | gateway]",
		Short:     short,
		Long:      long,
		ValidArgs: []string{"local", "gateway"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && hooks[args[0]] == "" {
				return fmt.Errorf("%s %q: write local (what this machine sends), gateway (what it forwards), or nothing for both", name, strings.Join(args, " "))
			}
			return nil
		},
		RunE: works(func(cmd *cobra.Command, args []string) error {
			r := admin.AuditRequest{Audit: audit}
			if len(args) == 1 {
				r.Hook = hooks[args[0]]
			}
			s, err := g.ask().SetAudit(cmd.Context(), r)
			if err != nil {
				return err
			}
			return g.showStatus(s)
		}),
	}
}

func (g *guardctl) auditCommand() *cobra.Command {
	return g.switchCommand("audit", "Let pass what no grant covers, and count it", `Let pass what no grant covers, and count and report it as if it were refused: of what this machine
sends (local), of what it forwards (gateway), or of both. Mapped addresses that nobody has, or that
lead nowhere, are refused all the same. It outlives reloads of the Corefile, and lasts until guardctl enforce, or until CoreDNS is restarted.`, true)
}

func (g *guardctl) enforceCommand() *cobra.Command {
	return g.switchCommand("enforce", "Refuse what no grant covers, from now on", `End audit, of what this machine sends (local), of what it forwards (gateway), or of both, whatever the
Corefile says. It outlives reloads, and lasts until guardctl audit, or until CoreDNS is restarted:
take the line audit out of the Corefile as well. guardctl trial tries it out first.`, false)
}

func (g *guardctl) trialCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "trial DURATION",
		Short: "Enforce for a while; the kernel falls back to audit by itself",
		Long: `Refuse what no grant covers for a while, where now it is in audit. Unless guardctl confirm comes by
then, the kernel itself goes back to audit, also if CoreDNS has crashed or you have locked yourself
out.`,
		Example: "  guardctl trial 5m",
		Args:    one("a duration", "guardctl trial 5m"),
		RunE: works(func(cmd *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[0])
			if err != nil {
				return fmt.Errorf("%w: write a duration such as 90s, 5m or 1h30m", admin.ErrInvalid)
			}
			s, err := g.ask().Trial(cmd.Context(), admin.TrialRequest{Seconds: d.Seconds()})
			if err != nil {
				return err
			}
			return g.showStatus(s)
		}),
	}
}

func (g *guardctl) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep what a trial enforces",
		Args:  cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			s, err := g.ask().Confirm(cmd.Context())
			if err != nil {
				return err
			}
			return g.showStatus(s)
		}),
	}
}
