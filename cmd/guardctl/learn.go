package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// learned is what a Corefile would have to say so that all that was seen passes.
type learned struct {
	Mode    string            `json:"mode"`
	Blocks  []admin.Directive `json:"blocks"`   // that there are
	Names   []string          `json:"names"`    // that were asked for
	LeftOut []string          `json:"left_out"` // names that a Corefile cannot be trusted with
	Local   []use             `json:"local"`    // of addresses without a name, by this machine
	Gateway []use             `json:"gateway"`  // and by its clients
	Private []use             `json:"private"`  // of addresses that were taken out of a name's answers
	Lines   []string          `json:"lines"`    // that would let names have addresses that were taken out, and not used
	Other   []use             `json:"other"`    // that no line can help
	More    bool              `json:"more"`     // there was more than is told
}

// use is of an address.
type use struct {
	Address netip.Addr `json:"address"`
	Name    string     `json:"name,omitempty"`
	By      []string   `json:"by"`
	To      []string   `json:"to"`
	Reason  string     `json:"reason"`
	Packets uint64     `json:"packets"`
}

func (g *guardctl) learnCommand() *cobra.Command {
	var since time.Duration
	var anyName bool
	cmd := &cobra.Command{
		Use:   "learn",
		Short: "From what was seen in audit, a block for the Corefile",
		Long: `Write a block for the Corefile, in place of the one that is there: it has the lines of that one, and lets
pass what was seen lately: the names that were asked for, unless it has names, the addresses that were
used without any, and those that a name's answers were not allowed to have: those that nobody could
use, since the answer was all that told of them, as comments. Let
the guard run in audit until everything has been used, then look at each line before you take it:
what an intruder has used is in there as well.`,
		Args: cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			var from time.Time
			if since > 0 {
				from = time.Now().Add(-since)
			}
			s, err := g.ask().Status(cmd.Context())
			if err != nil {
				return err
			}
			answers, err := g.ask().Answers(cmd.Context(), admin.AnswersQuery{Since: from})
			if err != nil {
				return err
			}
			denied, err := g.ask().Denied(cmd.Context(), admin.DeniedQuery{Since: from})
			if err != nil {
				return err
			}
			running, err := g.ask().Directives(cmd.Context())
			if err != nil {
				return err
			}
			l := learn(s.Mode, running, answers, denied)
			return g.show(l, func(w io.Writer) { l.write(w, anyName) })
		}),
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only from the last, for example, 24h; without it, from all that is remembered")
	cmd.Flags().BoolVar(&anyName, "any-name", false, "leave the names out: answers for any open their addresses")
	return cmd
}

func learn(mode string, running admin.Directives, answers admin.Answers, denied admin.DeniedList) *learned {
	l := &learned{Mode: mode, Blocks: running.Directives, More: answers.More || denied.More, Names: []string{}, LeftOut: []string{}, Local: []use{}, Gateway: []use{}, Private: []use{}, Lines: []string{}, Other: []use{}}
	names := map[string]bool{}
	for _, a := range answers.Answers {
		names[a.Name] = true
	}
	for name := range names {
		if plainName.MatchString(name) {
			l.Names = append(l.Names, name)
		} else {
			l.LeftOut = append(l.LeftOut, name)
		}
	}
	slices.Sort(l.Names)
	slices.Sort(l.LeftOut)
	for _, d := range denied.Flows {
		to := &l.Other
		switch {
		case d.Reason == "never_resolved" && d.Client.IsValid():
			to = &l.Gateway
		case d.Reason == "never_resolved":
			to = &l.Local
		case d.Reason == "stripped" && plainName.MatchString(d.Name):
			to = &l.Private
		}
		enter(to, d)
	}
	for _, a := range answers.Answers {
		used := func(u use) bool { return u.Name == a.Name && u.Address == a.Address }
		if a.Line != "" && plainName.MatchString(a.Name) && !slices.Contains(l.Lines, a.Line) && !slices.ContainsFunc(l.Private, used) {
			l.Lines = append(l.Lines, a.Line)
		}
	}
	slices.Sort(l.Lines)
	for _, uses := range []*[]use{&l.Local, &l.Gateway, &l.Private, &l.Other} {
		slices.SortFunc(*uses, func(a, b use) int { return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Reason, b.Reason)) })
	}
	return l
}

// plainName is what stands in a Corefile as it is: no name of a stranger's making is to
// say anything else there.
var plainName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$`)

func enter(uses *[]use, d admin.Denied) {
	i := slices.IndexFunc(*uses, func(u use) bool { return u.Address == d.Address && u.Name == d.Name && u.Reason == d.Reason })
	if i < 0 {
		i = len(*uses)
		*uses = append(*uses, use{Address: d.Address, Name: d.Name, Reason: d.Reason})
	}
	u := &(*uses)[i]
	u.Packets += d.Packets
	const few = 4
	if by := sender(d); !slices.Contains(u.By, by) && len(u.By) < few {
		u.By = append(u.By, by)
	}
	if to := toWords(d); !slices.Contains(u.To, to) && len(u.To) < few {
		u.To = append(u.To, to)
	}
}

func (u *use) String() string {
	return plain(fmt.Sprintf("%s, by %s, %s", strings.Join(u.To, " "), strings.Join(u.By, " "), why.Number(u.Packets, "packet")))
}

// write makes the block. What stands behind # is for people.
func (l *learned) write(w io.Writer, anyName bool) {
	has := l.begin(w)
	if len(l.Names) > 0 && !anyName && !slices.ContainsFunc(has, func(line string) bool { return strings.HasPrefix(line, "names ") }) {
		fmt.Fprintf(w, "    # Names that were asked for. Answers for others open nothing; without these lines, any do.\n")
		for _, name := range l.Names {
			fmt.Fprintf(w, "    names %s\n", name)
		}
	}
	for _, p := range []struct {
		option, comment string
		uses            []use
	}{
		{"allowedLocalIPs", "Used by this machine, and no answer had them.", l.Local},
		{"allowedGatewayIPs", "Used by clients, and no answer had them.", l.Gateway},
		{"private", "Taken out of answers, and used. Let only names have them that are yours.", l.Private},
	} {
		var lines []string
		for _, u := range p.uses {
			line := p.option + " " + u.Address.String()
			if p.option == "private" {
				line = p.option + " " + u.Name + " " + u.Address.String()
			}
			if !slices.Contains(has, line) {
				lines = append(lines, fmt.Sprintf("    %s # %v\n", line, &u))
			}
		}
		if len(lines) > 0 {
			fmt.Fprintf(w, "    # %s\n%s", p.comment, strings.Join(lines, ""))
		}
	}
	if lines := slices.DeleteFunc(slices.Clone(l.Lines), func(line string) bool { return slices.Contains(has, line) }); len(lines) > 0 {
		fmt.Fprintf(w, "    # Taken out of answers, so nobody could use it. Take the # from lines for names that are yours.\n")
		for _, line := range lines {
			fmt.Fprintf(w, "    # %s\n", plain(line))
		}
	}
	if len(l.Other) > 0 {
		fmt.Fprintf(w, "    # Denied for other reasons, which none of these lines changes:\n")
		for _, u := range l.Other {
			fmt.Fprintf(w, "    #   %v %s: %v%s\n", u.Address, plain(u.Reason), &u, adviceFor[u.Reason])
		}
	}
	if len(l.LeftOut) > 0 && !anyName {
		fmt.Fprintf(w, "    # Left out: %s with unusual characters. guardctl learn --json has them.\n", why.Number(len(l.LeftOut), "name"))
	}
	if l.More {
		fmt.Fprintf(w, "    # There was more than could be told.\n")
	}
	fmt.Fprintln(w, "}")
}

// begin writes the block that there is, but for its end, and returns the lines in it.
func (l *learned) begin(w io.Writer) (lines []string) {
	if len(l.Blocks) == 0 {
		fmt.Fprintf(w, "ipdestinationguard {\n    mode %s\n", plain(l.Mode))
		return nil
	}
	first := l.Blocks[0]
	if n := len(l.Blocks); n > 1 {
		fmt.Fprintf(w, "# The Corefile has %d of these blocks. This is the one of %s; what is added to it was seen by any.\n", n, plain(first.Place))
	}
	lines = slices.Clone(first.Lines)
	if last := len(lines) - 1; lines[last] == "}" {
		lines = lines[:last]
	} else {
		lines[last] += " {"
	}
	for i, line := range lines {
		fmt.Fprintln(w, plain(line))
		lines[i] = strings.TrimSpace(line)
	}
	return lines
}

// adviceFor is what helps against denials that no list of addresses should.
var adviceFor = map[string]string{
	"expired":       " (linger 10m keeps open what is in use)",
	"other_holder":  " (who connects has to ask, too; or scope any)",
	"other_port":    " (ports)",
	"other_program": " (users, units)",
	"dns_port":      " (have it ask this CoreDNS; capture does that for clients)",
	"others_ask":    " (have it ask this CoreDNS)",
	"ended_early":   " (max_grants_client)",
}
