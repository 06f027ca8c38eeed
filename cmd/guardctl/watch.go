package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// screen is what watch shows, from what was asked last and the time before.
type screen struct {
	now, before admin.Status
	denied      admin.DeniedList
	packets     map[string]uint64 // of each flow, the time before
	rows        int               // of flows
}

func (g *guardctl) watchCommand() *cobra.Command {
	var every time.Duration
	var times int
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "A live screen: grants, answers, how long they were held, and what is denied most",
		Long:  `Show what the guard does, as top shows what a machine does, until it is interrupted (Ctrl-C).`,
		Args:  cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return fmt.Errorf("%w: --interval is at least 100ms", admin.ErrInvalid)
			}
			return g.watch(cmd.Context(), every, times)
		}),
	}
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "how often it is looked")
	cmd.Flags().IntVar(&times, "times", 0, "how often in all; 0 is until it is interrupted")
	return cmd
}

// What a terminal is told.
const (
	otherScreen = "\x1b[?1049h\x1b[?25l"
	backAgain   = "\x1b[?25h\x1b[?1049l"
	fromTop     = "\x1b[H"
	restOfLine  = "\x1b[K"
	restOfAll   = "\x1b[J"
)

func (g *guardctl) watch(ctx context.Context, every time.Duration, times int) (err error) {
	lines := 0 // of the terminal
	if f, ok := g.out.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			lines = int(size.Row)
		}
	}
	live := lines > 0 && !g.json
	if live {
		fmt.Fprint(g.out, otherScreen)
		defer fmt.Fprint(g.out, backAgain)
	}
	s := &screen{rows: max(lines-14, 5)}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 1; ; i++ {
		if err := s.look(ctx, g.ask()); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		var b bytes.Buffer
		s.write(&b)
		switch {
		case g.json:
			err = g.show(struct {
				Status admin.Status     `json:"status"`
				Denied admin.DeniedList `json:"denied"`
			}{s.now, s.denied}, nil)
		case live:
			_, err = fmt.Fprint(g.out, fromTop+string(bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte(restOfLine+"\n")))+restOfAll)
		default:
			_, err = b.WriteTo(g.out)
		}
		if err != nil || i == times {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look asks the guard.
func (s *screen) look(ctx context.Context, c *admin.Client) (err error) {
	s.before = s.now
	if s.now, err = c.Status(ctx); err != nil {
		return err
	}
	packets := make(map[string]uint64)
	for _, d := range s.denied.Flows {
		packets[flowName(d)] = d.Packets
	}
	s.packets = packets
	s.denied, err = c.Denied(ctx, admin.DeniedQuery{Since: s.now.Now.Add(-10 * time.Minute)})
	return err
}

// flowName tells flows apart.
func flowName(d admin.Denied) string {
	return fmt.Sprint(d.Hook, d.Audit, d.Interface, d.Client, d.User, d.Protocol, d.Address, d.Port, d.Reason == "invalid")
}

// new is how many packets of a flow have come since the time before.
func (s *screen) new(d admin.Denied) uint64 {
	if had := s.packets[flowName(d)]; had <= d.Packets && !s.before.Now.IsZero() {
		return d.Packets - had
	}
	return 0
}

func (s *screen) write(w io.Writer) {
	now, before := &s.now, &s.before
	seconds := now.Now.Sub(before.Now).Seconds()
	if before.Now.IsZero() || before.Started != now.Started {
		*before, seconds = *now, 1
	}
	rate := func(now, before uint64) string { return fmt.Sprintf("%.1f/s", float64(now-before)/seconds) }
	state := "in force"
	switch {
	case now.Disarmed:
		state = "DISARMED"
	case !now.Enforcing:
		state = "NOT IN FORCE"
	}
	fmt.Fprintf(w, "guard %s: mode %s, scope %s   %s\n\n", state, plain(now.Mode), plain(now.Scope), now.Now.Local().Format(time.TimeOnly))
	for _, h := range now.Hooks {
		var had admin.Hook
		if i := slices.IndexFunc(before.Hooks, func(b admin.Hook) bool { return b.Name == h.Name }); i >= 0 {
			had = before.Hooks[i]
		}
		fmt.Fprintf(w, "%-8s %s; refused %s, audit %s\n", plain(h.Name), stateWords(now.Now, h),
			rate(h.Refused.Packets, min(had.Refused.Packets, h.Refused.Packets)), rate(h.Audited.Packets, min(had.Audited.Packets, h.Audited.Packets)))
	}
	fmt.Fprintf(w, "grants   %d IPv4, %d IPv6; made %s, renewed %s, evicted %s\n", now.Grants.IPv4, now.Grants.IPv6,
		rate(now.Grants.Made, before.Grants.Made), rate(now.Grants.Renewed, before.Grants.Renewed), rate(now.Grants.Evicted, before.Grants.Evicted))
	fmt.Fprintf(w, "answers  passed at once %s, held %s, failed %s, refused %s\n", rate(now.Results.Passed, before.Results.Passed),
		rate(now.Results.Held, before.Results.Held), rate(now.Results.Failed, before.Results.Failed), rate(now.Results.Refused, before.Results.Refused))
	held := "none"
	if now.Hold.Count > before.Hold.Count {
		held = fmt.Sprintf("half up to %v, 99 of 100 up to %v", quantile(now.Hold, before.Hold, 0.5), quantile(now.Hold, before.Hold, 0.99))
	}
	fmt.Fprintf(w, "held     %s\n\n", held)
	flows := slices.Clone(s.denied.Flows)
	slices.SortStableFunc(flows, func(a, b admin.Denied) int {
		return cmp.Or(cmp.Compare(s.new(b), s.new(a)), b.Last.Compare(a.Last))
	})
	var rows [][]string
	for _, d := range flows[:min(len(flows), s.rows)] {
		rows = append(rows, []string{fmt.Sprintf("%.1f", float64(s.new(d))/seconds), ago(now.Now, d.Last), sender(d), d.Address.String(), toWords(d), clip(d.Text, 60)})
	}
	table(w, []string{"DENIED/S", "LAST", "FROM", "TO", "", "WHY"}, rows)
}

// clip leaves the beginning of a text.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most-3] + "..."
}
