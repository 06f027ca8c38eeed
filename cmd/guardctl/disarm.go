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
guards again when it is restarted. If it does not, guardctl removes the table from the kernel, as
root. CoreDNS guards again as soon as it starts: stop or disable its service to prevent that.`,
		Args: cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			s, err := g.ask().Disarm(cmd.Context())
			d := disarmed{By: "coredns", Table: s.Table, Was: true}
			var unreachable *admin.UnreachableError
			switch {
			case errors.As(err, &unreachable):
				d = disarmed{By: "netlink", Table: table}
				if d.Was, err = removeForGood(table); err != nil {
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

// removeForGood removes the table, and looks whether somebody puts it back.
func removeForGood(name string) (was bool, err error) {
	if was, err = removeTable(name); err != nil || !was {
		return was, err
	}
	time.Sleep(500 * time.Millisecond)
	if back, err := removeTable(name); err == nil && !back {
		return true, nil
	}
	return true, fmt.Errorf("table inet %s comes back: a CoreDNS that does not answer puts it there: stop that first (systemctl stop ipdestinationguard-coredns), then do this again", name)
}

// removeTable removes the table, and reports whether there was one.
func removeTable(name string) (was bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, explainRemoval(name, err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }) {
		return false, nil
	}
	c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return false, explainRemoval(name, err)
	}
	return true, nil
}

func explainRemoval(name string, err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("table inet %s cannot be removed: %w: either this is not root, or a CoreDNS that does not answer still owns it: stop that first (systemctl stop ipdestinationguard-coredns), then do this again", name, err)
	}
	return fmt.Errorf("table inet %s: %w", name, err)
}
