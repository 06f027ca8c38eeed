package main

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

func (g *guardctl) explainCommand() *cobra.Command {
	var q admin.ExplainQuery
	var client, to string
	cmd := &cobra.Command{
		Use:   "explain NAME | ADDRESS",
		Short: "Would it pass now, for whom, until when, by which answer; and if not, why",
		Long: `Say what would become of a new connection to an address, or to those that a name has had: whether it
passes, for whom, until when and by which answer; and if not, why; and where a mapped address leads, and
how what goes there leaves. Without --client, --user and
--unit it is about all that this machine sends, and about every client.

The exit code is 0 if all of it passes, and 3 if any is refused.`,
		Example: `  guardctl explain api.example.com
  guardctl explain 192.0.2.7 --client 192.168.0.9 --to tcp/8443
  guardctl explain 192.0.2.7 --user www-data --unit nginx.service`,
		Args: one("a name or an address", "guardctl explain api.example.com"),
		RunE: works(func(cmd *cobra.Command, args []string) (err error) {
			if addr, ok := isAddress(args[0]); ok {
				q.Address = addr.Unmap().WithZone("")
			} else if q.Name, err = isName(args[0]); err != nil {
				return err
			}
			if client != "" {
				if q.Client, err = netip.ParseAddr(client); err != nil {
					return fmt.Errorf("%w: --client %q is not an address", admin.ErrInvalid, client)
				}
			}
			if q.Protocol, q.Port, err = parseTo(to); err != nil {
				return err
			}
			e, err := g.ask().Explain(cmd.Context(), q)
			if err != nil {
				return err
			}
			if err := g.show(e, func(w io.Writer) { writeExplanation(w, time.Now(), e) }); err != nil {
				return err
			}
			return allPass(e)
		}),
	}
	cmd.Flags().StringVar(&client, "client", "", "the client behind this machine that connects: its address")
	cmd.Flags().StringVar(&q.Interface, "interface", "", "the interface that the client's packets come in by")
	cmd.Flags().StringVar(&q.User, "user", "", "the user of this machine who connects")
	cmd.Flags().StringVar(&q.Unit, "unit", "", "the unit of this machine that connects, as in the Corefile")
	cmd.Flags().StringVar(&to, "to", "tcp/443", "protocol and port; or a protocol without ports, such as icmp")
	return cmd
}

func parseTo(text string) (protocol string, port uint16, err error) {
	protocol, number, ok := strings.Cut(text, "/")
	if !ok {
		return protocol, 0, nil
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%w: --to %q: write protocol/port, as in tcp/443", admin.ErrInvalid, text)
	}
	return protocol, uint16(n), nil
}

// allPass is errNo if something would be refused.
func allPass(e admin.Explanation) error {
	if len(e.Addresses) == 0 {
		return errNo
	}
	for _, x := range e.Addresses {
		for _, v := range x.Verdicts {
			if !v.Passes {
				return errNo
			}
		}
	}
	return nil
}

func writeExplanation(w io.Writer, now time.Time, e admin.Explanation) {
	if e.Text != "" {
		fmt.Fprintln(w, plain(e.Text))
	}
	for _, x := range e.Addresses {
		nowhere := ""
		if fmt.Fprint(w, x.Address); x.Mapped != nil {
			fmt.Fprint(w, " ", plain(x.Mapped.Text))
			if !x.Mapped.To.IsValid() {
				nowhere = ", though it leads nowhere now"
			}
		}
		fmt.Fprintln(w)
		for _, v := range x.Verdicts {
			became := "passes"
			switch {
			case v.Passes && v.Refused:
				became = "PASSES IN AUDIT, would be refused"
			case !v.Passes:
				became = "REFUSED"
			}
			fmt.Fprintf(w, "  %s to %s: %s: %s\n", plain(v.For), plain(v.To), became, plain(v.Text))
		}
		for _, grant := range x.Grants {
			only := ""
			if grant.Only != "" {
				only = ", only " + plain(grant.Only)
			}
			fmt.Fprintf(w, "  open to %s%s, for %s more%s: %s\n", plain(grant.For), only, left(now, grant.Until), nowhere, plain(strings.Join(grant.Names, " ")))
		}
		for _, a := range x.Answers {
			what := "opened it"
			switch {
			case a.Stripped != "":
				if what = "had it taken out: " + plain(a.Stripped); a.Line != "" {
					what += "; if the name is yours and may have it, the directive needs the line: " + plain(a.Line)
				}
			case a.Until != nil && a.Until.Before(now):
				what = "opened it, until " + ago(now, *a.Until)
			}
			fmt.Fprintf(w, "  %s, the answer for %s to %s %s\n", ago(now, a.At), plain(a.Name), plain(a.For), what)
		}
	}
}
