package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// disarmed is what disarm has done.
type disarmed struct {
	By    string `json:"by"` // coredns or netlink
	Table string `json:"table"`
	Was   bool   `json:"was"` // there was one
}

func (g *guardctl) disarmCommand() *cobra.Command {
	var table string
	cmd := &cobra.Command{
		Use:   "disarm",
		Short: "Remove the rules: everything is open; works without CoreDNS, too",
		Long: `Remove the guard's table: everything is open. If CoreDNS runs it does so itself, goes on answering, and
guards again when it is restarted. If it does not, or does not answer within ten seconds, guardctl
removes the table from the kernel, as root; where a CoreDNS that lives keeps it, guardctl says how to
end that. CoreDNS guards again as soon as it starts: stop or disable its service to prevent that.`,
		Args: cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			s, err := g.ask().Disarm(cmd.Context())
			d := disarmed{By: "coredns", Table: s.Table, Was: true}
			var unreachable *admin.UnreachableError
			switch {
			case errors.As(err, &unreachable):
				d = disarmed{By: "netlink", Table: table}
				if d.Was, err = removeForGood(table, g.stopping()); err != nil {
					return fmt.Errorf("%w (and CoreDNS does not answer: %v)", err, unreachable)
				}
			case err != nil:
				return err
			}
			return g.show(d, func(w io.Writer) {
				switch {
				case !d.Was:
					fmt.Fprintf(w, "there is no table inet %s: nothing was guarded\n", d.Table)
				case d.By == "coredns":
					fmt.Fprintln(w, "disarmed: everything is open until CoreDNS is restarted")
				default:
					fmt.Fprintf(w, "disarmed: table inet %s is gone, and everything is open until CoreDNS starts\n", d.Table)
				}
			})
		}),
	}
	cmd.Flags().StringVar(&table, "table", "ipdestinationguard", "the guard's table, for when CoreDNS does not run")
	return cmd
}

// stopping says how to stop a CoreDNS that may not answer.
func (g *guardctl) stopping() string {
	how := "stop that first (systemctl stop ipdestinationguard-coredns"
	if pid, err := listenerOf(g.socket); err == nil {
		how += fmt.Sprintf(", or kill -KILL %d, which listens at %s", pid, g.socket)
	}
	return how + "), then do this again"
}

// removeForGood removes the table, and looks whether somebody puts it back.
func removeForGood(name, stopping string) (was bool, err error) {
	if was, err = removeTable(name, stopping); err != nil || !was {
		return was, err
	}
	time.Sleep(500 * time.Millisecond)
	if back, err := removeTable(name, stopping); err == nil && !back {
		return true, nil
	}
	return true, fmt.Errorf("table inet %s comes back: a CoreDNS that does not answer puts it there: %s", name, stopping)
}

// removeTable removes the table, and reports whether there was one.
func removeTable(name, stopping string) (was bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	switch {
	case errors.Is(err, syscall.EPERM):
		return false, fmt.Errorf("table inet %s cannot be removed: %w: this is not root, or has no CAP_NET_ADMIN", name, err)
	case err != nil:
		return false, fmt.Errorf("table inet %s: %w", name, err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }) {
		return false, nil
	}
	c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	switch err := c.Flush(); {
	case errors.Is(err, syscall.EPERM): // and not for want of a right, or nothing had been listed
		return false, fmt.Errorf("table inet %s cannot be removed: a CoreDNS that does not answer owns it: %s", name, stopping)
	case err != nil && !errors.Is(err, syscall.ENOENT):
		return false, fmt.Errorf("table inet %s: %w", name, err)
	}
	return true, nil
}
