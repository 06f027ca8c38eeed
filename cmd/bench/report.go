package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is all that a run has found.
type report struct {
	Date    time.Time
	Took    time.Duration
	Command string
	Machine machine
	Commit  string
	Rows    []row
	Notes   []string                       `json:",omitempty"`
	Samples map[string]map[string][]sample // by experiment and variant
}

type machine struct {
	CPU    string
	Cores  int
	Memory string
	Kernel string
	Go     string
	Load   [2]string // average before and after
}

// A row of the table: a figure of ours beside its reference.
type row struct {
	Name      string
	What      string
	Unit      string
	Ours      float64
	Reference float64 // NaN where there is none
	Against   string  // what the reference is
	Target    string  // as the issue says it
	Reached   *bool
	Ratio     float64 // of pairs of runs, the median: what changes in the machine hits both of a pair
	Spread    float64 // how far a pair of runs is from that, relative (median absolute deviation)
	Error     float64 // standard error of the ratio, estimated from the spread
	Note      string
}

// A sample is what one run found.
type sample struct {
	PerSecond    float64 `json:",omitempty"`
	P50, P99     float64 // microseconds
	User, System float64 // microseconds of the server's CPU time a query
	Idle         float64 // share of the machine that had nothing to do
	Sent, Bad    uint64
	Value        float64            `json:",omitempty"` // of what has no queries
	More         map[string]float64 `json:",omitempty"`
}

func (r *report) describe(b *bench) {
	r.Date = time.Now()
	r.Command = "bench " + strings.Join(os.Args[1:], " ")
	r.Machine = machine{
		CPU: cpuModel(), Cores: runtime.NumCPU(), Memory: firstLine("/proc/meminfo"),
		Kernel: firstLine("/proc/sys/kernel/osrelease"), Go: runtime.Version(),
	}
	r.Machine.Load[0] = firstLine("/proc/loadavg")
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		r.Commit = strings.TrimSpace(string(out))
	}
	r.Samples = map[string]map[string][]sample{}
}

func (r *report) finish() {
	r.Took = time.Since(r.Date)
	r.Machine.Load[1] = firstLine("/proc/loadavg")
}

// missing notes programs that are not installed: pairs of a name and a path.
func (r *report) missing(programs ...string) {
	for i := 0; i < len(programs); i += 2 {
		note := programs[i] + ": not installed"
		if programs[i+1] == "" && !slices.Contains(r.Notes, note) {
			r.Notes = append(r.Notes, note)
		}
	}
}

func (r *report) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

func (r *report) sample(experiment, variant string, s sample) {
	if r.Samples[experiment] == nil {
		r.Samples[experiment] = map[string][]sample{}
	}
	r.Samples[experiment][variant] = append(r.Samples[experiment][variant], s)
}

// compare makes a row of the medians of two variants' samples, run in pairs.
func (r *report) compare(experiment, ours, reference string, of func(sample) float64) row {
	a, b := values(r.Samples[experiment][ours], of), values(r.Samples[experiment][reference], of)
	var ratios []float64
	for i := range min(len(a), len(b)) {
		ratios = append(ratios, a[i]/b[i])
	}
	return row{Name: experiment, Ours: median(a), Reference: median(b), Against: reference,
		Ratio: median(ratios), Spread: mad(ratios) / median(ratios), Error: 1.2533 * 1.4826 * mad(ratios) / math.Sqrt(float64(len(ratios)))}
}

func (r row) ratio() float64 {
	if r.Ratio != 0 {
		return r.Ratio
	}
	return r.Ours / r.Reference
}

// atLeast and atMost say what the issue asks for.
func (r row) atLeast(ratio float64) row {
	r.Target = fmt.Sprintf(">= %.2f", ratio)
	ok := r.ratio() >= ratio
	r.Reached = &ok
	return r
}

func (r row) atMost(value float64, unit string) row {
	r.Target = fmt.Sprintf("<= %g %s", value, unit)
	ok := r.Ours <= value
	r.Reached = &ok
	return r
}

func (r row) ratioAtMost(ratio float64) row {
	r.Target = fmt.Sprintf("<= %gx", ratio)
	ok := r.ratio() <= ratio
	r.Reached = &ok
	return r
}

// missed says which rows are not as they should be.
func (r *report) missed() (err error) {
	for _, row := range r.Rows {
		if row.Reached != nil && !*row.Reached {
			err = errors.Join(err, fmt.Errorf("%s, %s: wanted %s", row.Name, row.What, row.Target))
		}
	}
	return err
}

func values(s []sample, of func(sample) float64) (v []float64) {
	for i := range s {
		v = append(v, of(s[i]))
	}
	return v
}

func (r *report) print(out io.Writer) {
	m := r.Machine
	fmt.Fprintf(out, "\n%s, %d cores, Linux %s, %s, commit %s, %s\nload average before %s, after %s\n\n",
		m.CPU, m.Cores, m.Kernel, m.Go, r.Commit, r.Date.Format("2006-01-02 15:04"), m.Load[0], m.Load[1])
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "row\twhat\tours\treference\tratio\twanted\t\tspread\tnote")
	for _, row := range r.Rows {
		reference, ratio, noise, verdict := "", "", "", ""
		if row.Reference != 0 && !math.IsNaN(row.Reference) {
			reference = number(row.Reference) + " " + row.Unit + " (" + row.Against + ")"
			ratio = fmt.Sprintf("%.3f", row.ratio())
			if row.Error > 0 {
				ratio += fmt.Sprintf(" ±%.3f", row.Error)
			}
		}
		if row.Spread > 0 {
			noise = fmt.Sprintf("%.1f %%", 100*row.Spread)
		}
		if row.Reached != nil {
			verdict = "NO"
			if *row.Reached {
				verdict = "yes"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s %s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, row.What, number(row.Ours), row.Unit, reference, ratio, row.Target, verdict, noise, row.Note)
	}
	_ = t.Flush()
	for _, n := range r.Notes {
		fmt.Fprintln(out, n)
	}
}

func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) save(path string) error {
	for i := range r.Rows {
		if math.IsNaN(r.Rows[i].Reference) || math.IsInf(r.Rows[i].Reference, 0) {
			r.Rows[i].Reference = 0
		}
		for _, v := range []*float64{&r.Rows[i].Ratio, &r.Rows[i].Spread, &r.Rows[i].Error} {
			if math.IsNaN(*v) || math.IsInf(*v, 0) {
				*v = 0
			}
		}
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func firstLine(path string) string {
	text, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// idle is the machine's time with nothing to do, and all of its time.
func idleTime() (idle, all float64) {
	fields := strings.Fields(firstLine("/proc/stat"))
	for i, f := range fields[1:] {
		var n float64
		fmt.Sscan(f, &n)
		if i < 8 { // guests' time is in user's already
			all += n
		}
		if i == 3 || i == 4 {
			idle += n
		}
	}
	return idle, all
}
