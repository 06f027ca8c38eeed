package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

func (g *guardctl) deniedCommand() *cobra.Command {
	var follow bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "denied",
		Short: "What was refused, or would have been in audit: who, where to, how often, and why",
		Args:  cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			if follow {
				return g.followDenied(cmd)
			}
			q := admin.DeniedQuery{}
			if since > 0 {
				q.Since = time.Now().Add(-since)
			}
			list, err := g.ask().Denied(cmd.Context(), q)
			if err != nil {
				return err
			}
			return g.show(list, func(w io.Writer) { writeDenied(w, time.Now(), list) })
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on: each flow when it begins, then at most once a minute")
	cmd.Flags().DurationVar(&since, "since", 0, "only what had a packet in the last, for example, 10m")
	return cmd
}

// followDenied writes a line for each flow, until it is interrupted.
func (g *guardctl) followDenied(cmd *cobra.Command) error {
	err := g.ask().Follow(cmd.Context(), func(d admin.Denied) error {
		if g.json {
			return json.NewEncoder(g.out).Encode(d)
		}
		_, err := fmt.Fprintf(g.out, "%s %s\n", d.Last.Local().Format(time.TimeOnly), deniedLine(d))
		return err
	})
	if cmd.Context().Err() != nil {
		return nil
	}
	return err
}

// deniedLine is a flow in a line.
func deniedLine(d admin.Denied) string {
	verb := "refused"
	if d.Audit {
		verb = "audit"
	}
	return fmt.Sprintf("%s: %s to %v %s, %s: %s", verb, plain(sender(d)), d.Address, plain(toWords(d)), counted(d.Packets, d.Bytes), plain(d.Text))
}

// sender is who has sent a flow.
func sender(d admin.Denied) string {
	if d.Client.IsValid() {
		if d.Interface != "" {
			return fmt.Sprintf("%v (%s)", d.Client, d.Interface)
		}
		return d.Client.String()
	}
	switch {
	case d.Program != "":
		return fmt.Sprintf("%s (%s, user %s)", d.Program, d.Unit, d.User)
	case d.Unit != "":
		return fmt.Sprintf("%s (user %s)", d.Unit, d.User)
	case d.User != "":
		return "user " + d.User
	}
	return "this machine"
}

func toWords(d admin.Denied) string {
	if d.Port == 0 {
		return d.Protocol
	}
	return fmt.Sprintf("%s/%d", d.Protocol, d.Port)
}

func writeDenied(w io.Writer, now time.Time, list admin.DeniedList) {
	if len(list.Flows) == 0 {
		fmt.Fprintln(w, "nothing was denied lately")
		return
	}
	var rows [][]string
	for _, d := range list.Flows {
		verb := "refused"
		if d.Audit {
			verb = "audit"
		}
		rows = append(rows, []string{ago(now, d.Last), verb, sender(d), d.Address.String(), toWords(d), fmt.Sprint(d.Packets), d.Text})
	}
	table(w, []string{"LAST", "", "FROM", "TO", "", "PACKETS", "WHY"}, rows)
	if list.More {
		fmt.Fprintln(w, "and more than these")
	}
}
