package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

func (g *guardctl) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Whether the guard is in force, what it enforces, and how much it does",
		Args:  cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			s, err := g.ask().Status(cmd.Context())
			if err != nil {
				return err
			}
			return g.showStatus(s)
		}),
	}
}

func (g *guardctl) showStatus(s admin.Status) error {
	return g.show(s, func(w io.Writer) { writeStatus(w, s) })
}

func writeStatus(w io.Writer, s admin.Status) {
	switch {
	case s.Disarmed:
		fmt.Fprintln(w, "DISARMED: nothing is guarded until CoreDNS is restarted")
	case !s.Enforcing:
		fmt.Fprintln(w, "NOT IN FORCE: the rules or some grants are not in the kernel; answers that need them fail")
	default:
		fmt.Fprintf(w, "in force: mode %s, scope %s, table inet %s\n", s.Mode, s.Scope, s.Table)
	}
	for _, h := range s.Hooks {
		fmt.Fprintf(w, "%s: %s\n", hookWords(h.Name), stateWords(s.Now, h))
		fmt.Fprintf(w, "  refused %s", counted(h.Refused.Packets, h.Refused.Bytes))
		if h.Audited.Packets > 0 || h.State != admin.Enforced {
			fmt.Fprintf(w, "; passed in audit %s", counted(h.Audited.Packets, h.Audited.Bytes))
		}
		if h.Unlisted.Packets > 0 {
			fmt.Fprintf(w, "; of these not listed %s", counted(h.Unlisted.Packets, h.Unlisted.Bytes))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "grants: %d IPv4, %d IPv6; made %d, renewed %d, expired %d, evicted %d, revoked %d\n",
		s.Grants.IPv4, s.Grants.IPv6, s.Grants.Made, s.Grants.Renewed, s.Grants.Expired, s.Grants.Evicted, s.Grants.Revoked)
	fmt.Fprintf(w, "answers: passed at once %d, held %d, failed %d, refused %d\n", s.Results.Passed, s.Results.Held, s.Results.Failed, s.Results.Refused)
	if s.Hold.Count > 0 {
		fmt.Fprintf(w, "held for: half up to %v, 99 of 100 up to %v\n", quantile(s.Hold, admin.Hold{}, 0.5), quantile(s.Hold, admin.Hold{}, 0.99))
	}
	fmt.Fprintf(w, "remembered: %s\n", why.Number(s.Remembered, "answer"))
	fmt.Fprintf(w, "%s, running for %v\n", plain(s.Version), s.Now.Sub(s.Started).Round(time.Second))
}

func hookWords(hook string) string {
	switch hook {
	case "output":
		return "what this machine sends"
	case "forward":
		return "what it forwards"
	}
	return plain(hook)
}

func stateWords(now time.Time, h admin.Hook) string {
	by := ""
	if h.By == "guardctl" {
		by = " (by guardctl, until CoreDNS is restarted: the Corefile says otherwise)"
	}
	switch h.State {
	case admin.Enforced:
		return "what no grant covers is refused" + by
	case admin.Audited:
		return "AUDIT: what no grant covers passes, and is counted" + by
	case admin.Tried:
		return fmt.Sprintf("TRIAL: refused for %s more, then audit again unless guardctl confirm comes", left(now, *h.Until)) + by
	}
	return plain(string(h.State)) + by
}

// quantile is a bound that so many of the answers held since before were no longer held
// than.
func quantile(now, before admin.Hold, q float64) time.Duration {
	total := now.Count - before.Count
	for i, b := range now.Buckets {
		count := b.Count
		if i < len(before.Buckets) {
			count -= before.Buckets[i].Count
		}
		if float64(count) >= q*float64(total) {
			return time.Duration(b.Below * float64(time.Second))
		}
	}
	return time.Hour // longer than the longest bound
}
