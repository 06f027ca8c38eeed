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
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

func (g *guardctl) grantsCommand() *cobra.Command {
	var name, address, client string
	cmd := &cobra.Command{
		Use:   "grants",
		Short: "What is open now, to whom, until when, and by whose answer",
		Args:  cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			q, err := grantsQuery(name, address, client)
			if err != nil {
				return err
			}
			list, err := g.ask().Grants(cmd.Context(), q)
			if err != nil {
				return err
			}
			return g.show(list, func(w io.Writer) {
				writeGrants(w, time.Now(), list.Grants)
				if list.More {
					fmt.Fprintf(w, "and more than these %d: narrow it down by --name, --address or --client\n", len(list.Grants))
				}
			})
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "only those that an answer for this name has opened, as far as that is remembered")
	cmd.Flags().StringVar(&address, "address", "", "only those for this address, or in this network")
	cmd.Flags().StringVar(&client, "client", "", "only those of this client: its address, or as the list has it")
	return cmd
}

func grantsQuery(name, address, client string) (q admin.GrantsQuery, err error) {
	q.Name, q.Client = name, client
	if address != "" {
		q.Address, err = admin.ParsePrefix(address)
	}
	return q, err
}

func writeGrants(w io.Writer, now time.Time, grants []admin.Grant) {
	if len(grants) == 0 {
		fmt.Fprintln(w, "no grants")
		return
	}
	var rows [][]string
	for _, x := range grants {
		names := strings.Join(x.Names, " ")
		if names == "" {
			names = "(not remembered)"
		}
		only := x.Only
		if only == "" {
			only = "anything"
		}
		rows = append(rows, []string{x.Address.String(), x.For, only, left(now, x.Until), names})
	}
	table(w, []string{"ADDRESS", "FOR", "ONLY", "LEFT", "NAMES"}, rows)
}

func (g *guardctl) revokeCommand() *cobra.Command {
	var cut bool
	var name, address, client string
	cmd := &cobra.Command{
		Use:   "revoke [NAME | ADDRESS | NETWORK | CLIENT]",
		Short: "End grants now, of a name, an address or a client",
		Long: `End grants before their time: those that an answer for a name has opened, those in a network, those
for an address and those of the client that has it, or those of a client that has none (--client).
Several conditions must all hold. New connections are refused at once; live ones go on, unless --cut
is given. It is no ban: the next answer opens anew.`,
		Args: cobra.MaximumNArgs(1),
		RunE: works(func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 && name+address+client == "" {
				return fmt.Errorf("%w: write a name, an address, a network or --client CLIENT; guardctl flush ends all grants", admin.ErrInvalid)
			}
			q, err := grantsQuery(name, address, client)
			if err != nil {
				return err
			}
			all := []admin.GrantsQuery{q}
			if len(args) == 1 {
				if all, err = meant(args[0], q); err != nil {
					return err
				}
			}
			var requests []admin.RevokeRequest
			for _, q := range all {
				requests = append(requests, admin.RevokeRequest{GrantsQuery: q, Cut: cut})
			}
			return g.revoke(cmd, requests...)
		}),
	}
	cmd.Flags().BoolVar(&cut, "cut", false, "end live connections there as well")
	cmd.Flags().StringVar(&name, "name", "", "of this name")
	cmd.Flags().StringVar(&address, "address", "", "for this address, or in this network")
	cmd.Flags().StringVar(&client, "client", "", "of this client: its address, or as guardctl grants has it")
	return cmd
}

func (g *guardctl) flushCommand() *cobra.Command {
	var cut bool
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "End all grants now",
		Long:  `End all grants before their time, as if nothing had ever been looked up. It is no ban: the next answers open anew.`,
		Args:  cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			return g.revoke(cmd, admin.RevokeRequest{All: true, Cut: cut})
		}),
	}
	cmd.Flags().BoolVar(&cut, "cut", false, "end live connections to what is not allowed by the Corefile as well")
	return cmd
}

// meant are the grants that a word means, if they meet the query too: of a name, or in a
// network, or to an address and of the client there, but for what the query says itself.
func meant(word string, q admin.GrantsQuery) (all []admin.GrantsQuery, err error) {
	named, to, of := q, q, q
	if to.Address, err = admin.ParsePrefix(word); err != nil {
		if named.Name, err = isName(word); err == nil && q.Name != "" {
			err = fmt.Errorf("%w: %s and --name %s are two names", admin.ErrInvalid, word, q.Name)
		}
		return []admin.GrantsQuery{named}, err
	}
	if !q.Address.IsValid() {
		all = append(all, to)
	}
	if to.Address.IsSingleIP() && q.Client == "" {
		of.Client = to.Address.Addr().String()
		all = append(all, of)
	}
	if len(all) == 0 {
		err = fmt.Errorf("%w: --address and --client have been given, so %s is neither", admin.ErrInvalid, word)
	}
	return all, err
}

func (g *guardctl) revoke(cmd *cobra.Command, requests ...admin.RevokeRequest) error {
	var sum admin.Revoked
	for _, r := range requests {
		n, err := g.ask().Revoke(cmd.Context(), r)
		if err != nil {
			return err
		}
		sum.Grants += n.Grants
		sum.Connections += n.Connections
	}
	return g.show(sum, func(w io.Writer) {
		fmt.Fprintf(w, "%s ended", why.Number(sum.Grants, "grant"))
		if requests[0].Cut {
			fmt.Fprintf(w, ", %s cut", why.Number(sum.Connections, "connection"))
		}
		if sum.Grants == 0 {
			fmt.Fprint(w, ": none is like that, see guardctl grants")
		}
		fmt.Fprintln(w)
	})
}

// isAddress reports whether a text is an address.
func isAddress(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	return addr, err == nil
}

// isName returns a text that is no address unless it looks like one: names end in no
// number, and have neither : nor /.
func isName(text string) (string, error) {
	last := text[strings.LastIndexByte(strings.TrimSuffix(text, "."), '.')+1:]
	if _, err := strconv.ParseUint(strings.TrimSuffix(last, "."), 10, 64); err == nil || strings.ContainsAny(text, ":/") {
		return "", fmt.Errorf("%w: %q is neither a name nor an address", admin.ErrInvalid, text)
	}
	return text, nil
}
