package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

//go:embed report.html
var reportText string

var reportPage = template.Must(template.New("report").Funcs(template.FuncMap{
	"clock": func(t time.Time) string { return t.Local().Format(time.DateTime) },
	"size":  size,
	"state": func(s admin.Status, h admin.Hook) string { return stateWords(s.Now, h) },
	"hook":  hookWords,
	"from":  sender,
	"to":    toWords,
	"whom":  func(n lookedUp) string { return strings.Join(n.For, ", ") },
}).Parse(reportText))

// report is what the page shows.
type report struct {
	From    time.Time      `json:"from"`
	Status  admin.Status   `json:"status"`
	Names   []lookedUp     `json:"names"`
	Denied  []admin.Denied `json:"denied"`
	Reasons []share        `json:"reasons"`
	Opened  *chart         `json:"-"`
	Refused *chart         `json:"-"`
	More    bool           `json:"more"`
}

// lookedUp is a name, and what its answers have opened.
type lookedUp struct {
	Name      string    `json:"name"`
	Addresses []string  `json:"addresses"` // none where all were taken out
	For       []string  `json:"for"`
	Last      time.Time `json:"last"`
	Stripped  string    `json:"stripped,omitempty"` // why some were taken out
}

// share is of packets that were denied, by reason.
type share struct {
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Percent int    `json:"percent"` // of the largest
}

func (g *guardctl) reportCommand() *cobra.Command {
	var file string
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "report",
		Short: "A page for a person: what was looked up and opened, for whom, what was denied, and why",
		Long: `Write one self-contained HTML page about the last hours: what was looked up and opened, for whom, what
was denied and why, with plots. It needs nothing from anywhere else, and runs no script.`,
		Example: "  guardctl report --html guard.html --since 6h",
		Args:    cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			if file == "" && !g.json {
				return fmt.Errorf("%w: --html FILE says where to", admin.ErrInvalid)
			}
			if since <= 0 {
				return fmt.Errorf("%w: --since is more than nothing", admin.ErrInvalid)
			}
			s, err := g.ask().Status(cmd.Context())
			if err != nil {
				return err
			}
			from := s.Now.Add(-since)
			answers, err := g.ask().Answers(cmd.Context(), admin.AnswersQuery{Since: from})
			if err != nil {
				return err
			}
			denied, err := g.ask().Denied(cmd.Context(), admin.DeniedQuery{Since: from})
			if err != nil {
				return err
			}
			r := newReport(from, s, answers, denied)
			if file == "" {
				return g.show(r, nil)
			}
			if err := r.save(file); err != nil {
				return err
			}
			return g.show(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s, %s\n", file, why.Number(len(r.Names), "name"), why.Number(len(r.Denied), "denied flow"))
			})
		}),
	}
	cmd.Flags().StringVar(&file, "html", "", "the file to write")
	cmd.Flags().DurationVar(&since, "since", 6*time.Hour, "how far back")
	return cmd
}

func newReport(from time.Time, s admin.Status, answers admin.Answers, denied admin.DeniedList) *report {
	r := &report{From: from, Status: s, Denied: denied.Flows, More: answers.More || denied.More, Names: []lookedUp{}, Reasons: []share{}}
	if r.Denied == nil {
		r.Denied = []admin.Denied{}
	}
	byName := map[string]*lookedUp{}
	r.Opened, r.Refused = newChart(from, s.Now), newChart(from, s.Now)
	for _, a := range answers.Answers {
		x := byName[a.Name]
		if x == nil {
			x = &lookedUp{Name: a.Name, Addresses: []string{}}
			byName[a.Name] = x
		}
		if x.Last.Before(a.At) {
			x.Last = a.At
		}
		if a.Stripped != "" {
			x.Stripped = a.Stripped
		} else {
			r.Opened.add(a.At, 1)
			if addr := a.Address.String(); !slices.Contains(x.Addresses, addr) {
				x.Addresses = append(x.Addresses, addr)
			}
		}
		if !slices.Contains(x.For, a.For) {
			x.For = append(x.For, a.For)
		}
	}
	for _, x := range byName {
		r.Names = append(r.Names, *x)
	}
	slices.SortFunc(r.Names, func(a, b lookedUp) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Name, b.Name)) })
	packets := map[string]uint64{}
	for _, d := range denied.Flows {
		packets[d.Reason] += d.Packets
		r.Refused.add(d.Last, 1)
	}
	for reason, n := range packets {
		r.Reasons = append(r.Reasons, share{Reason: reason, Packets: n})
	}
	slices.SortFunc(r.Reasons, func(a, b share) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Reason, b.Reason))
	})
	for i := range r.Reasons {
		r.Reasons[i].Percent = max(1, int(float64(r.Reasons[i].Packets)/float64(r.Reasons[0].Packets)*100))
	}
	return r
}

// save writes the page in the place of an earlier one, or leaves that as it is.
func (r *report) save(file string) error {
	var b bytes.Buffer
	if err := reportPage.Execute(&b, r); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".guardctl-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b.Bytes()); err == nil {
		err = f.Chmod(0o640) // it tells who has looked up what
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// A chart counts what has happened in each part of a time.
type chart struct {
	from time.Time
	part time.Duration
	Bars []bar
}

// bar is one part, as it is drawn.
type bar struct {
	At         string // when it begins
	Count      int
	X, Y, W, H float64
}

const (
	parts                   = 60
	chartWidth, chartHeight = 900, 120
)

func newChart(from, to time.Time) *chart {
	c := &chart{from: from, part: max(to.Sub(from)/parts, 1), Bars: make([]bar, parts)}
	for i := range c.Bars {
		c.Bars[i].At = from.Add(time.Duration(i) * c.part).Local().Format(time.TimeOnly)
		c.Bars[i].X, c.Bars[i].W = float64(i)*chartWidth/parts, chartWidth/parts-1
	}
	return c
}

func (c *chart) add(at time.Time, n int) {
	if i := int(at.Sub(c.from) / c.part); i >= 0 && at.After(c.from) {
		c.Bars[min(i, parts-1)].Count += n
	}
}

// Most is the count of the highest bar.
func (c *chart) Most() (most int) {
	for _, b := range c.Bars {
		most = max(most, b.Count)
	}
	return most
}

// Drawn returns the bars that are to be seen, with their places.
func (c *chart) Drawn() (drawn []bar) {
	most := c.Most()
	for _, b := range c.Bars {
		if b.Count > 0 {
			b.H = float64(b.Count) / float64(most) * chartHeight
			b.Y = chartHeight - b.H
			drawn = append(drawn, b)
		}
	}
	return drawn
}
