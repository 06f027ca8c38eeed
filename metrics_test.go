package ipdestinationguard

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// atStart is what there is before anything has happened.
var atStart []*dto.MetricFamily

func init() { atStart, _ = prometheus.DefaultGatherer.Gather() }

const ofGuard = "coredns_ipdestinationguard_"

// says are what the labels of a variable can say; nil where there is no such variable.
func says(families []*dto.MetricFamily, name string) map[string][]string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, suffix)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		labels := map[string][]string{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(labels[l.GetName()], l.GetValue()) {
					labels[l.GetName()] = append(labels[l.GetName()], l.GetValue())
				}
			}
		}
		return labels
	}
	return nil
}

func contents(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Alerts that look for a rise see the first one: whatever the kernel or others do to the
// guard has its counter from the start, at 0.
func TestCountersBeginAtZero(t *testing.T) {
	for _, f := range atStart {
		if !strings.HasPrefix(f.GetName(), ofGuard) {
			continue
		}
		for _, m := range f.GetMetric() {
			if n := m.GetCounter().GetValue(); n != 0 {
				t.Errorf("%s %v begins at %v", f.GetName(), m.GetLabel(), n)
			}
		}
	}
	told := regexp.MustCompile(`events\.(Failed|Repaired)\("(\w+)"|kernelErrors\.WithLabelValues\("(\w+)"`)
	n := 0
	for _, folder := range []string{"nft/*.go", "backend/fake/*.go", "*.go"} {
		files, err := filepath.Glob(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, m := range told.FindAllStringSubmatch(contents(t, file), -1) {
				n++
				variable, label := "kernel_errors_total", "operation"
				if m[1] == "Repaired" {
					variable, label = "repairs_total", "part"
				}
				if word := m[2] + m[3]; !slices.Contains(says(atStart, ofGuard+variable)[label], word) {
					t.Errorf("%s tells of %q, and %s has no series for that from the start", file, word, variable)
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d places are found that tell of the kernel's trouble", n)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| .*\\|$").FindAllStringSubmatch(between(contents(t, "README.md"), "| `never_resolved`", "\n\n"), -1) {
		documented = append(documented, row[1])
	}
	counted := says(atStart, ofGuard+"denied_packets_total")["reason"]
	slices.Sort(documented)
	slices.Sort(counted)
	if !slices.Equal(documented, counted) {
		t.Errorf("the README has the reasons %q,\nand these have a counter: %q", documented, counted)
	}
}

// between is a part of a text, with its beginning.
func between(text, from, to string) string {
	if i := strings.Index(text, from); i >= 0 {
		text, _, _ = strings.Cut(text[i:], to)
	}
	return text
}

// Alerts, dashboard and README name variables, labels and values that there are, and the
// README names all.
func TestVariablesAreNamedRightly(t *testing.T) {
	c := newCoreDNS(t)
	c.mustLoad(corefile("ipdestinationguard nft-both"))
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	scraped := []string{"instance", "job", "le"} // by Prometheus, or of histograms
	named := regexp.MustCompile(ofGuard + `\w+(?:\{[^}]*\})?`)
	check := func(place, query string) {
		t.Helper()
		for _, q := range named.FindAllString(query, -1) {
			variable, matchers, _ := strings.Cut(strings.TrimSuffix(q, "}"), "{")
			labels := says(families, variable)
			if labels == nil {
				t.Errorf("%s: there is no variable %s", place, variable)
				continue
			}
			for _, m := range regexp.MustCompile(`(\w+)(?:="([^"]*)")?`).FindAllStringSubmatch(regexp.MustCompile(`=~"[^"]*"`).ReplaceAllString(matchers, ""), -1) {
				values, ok := labels[m[1]]
				if !slices.Contains(scraped, m[1]) && (!ok || m[2] != "" && !slices.Contains(values, m[2])) {
					t.Errorf("%s: %s has no label %s", place, variable, m[0])
				}
			}
		}
		for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(query, -1) {
			for _, label := range strings.Split(by[1], ", ") {
				if _, ok := says(families, named.FindString(strings.ReplaceAll(query, "{", " ")))[label]; !ok && !slices.Contains(scraped, label) {
					t.Errorf("%s: no label %s in %s", place, label, query)
				}
			}
		}
	}

	alerts := regexp.MustCompile(`(?m)^ +expr: (.*)$`).FindAllStringSubmatch(contents(t, "deployment/alerts.yml"), -1)
	for _, a := range alerts {
		check("alerts.yml", a[1])
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(contents(t, "deployment/grafana-dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			check("the panel "+p.Title, q.Expr)
		}
	}
	for _, m := range regexp.MustCompile(`series: (.*)`).FindAllStringSubmatch(contents(t, "deployment/testdata/alerts_test.yml"), -1) {
		check("alerts_test.yml", m[1])
	}
	if len(alerts) < 10 || len(dashboard.Panels) < 15 {
		t.Errorf("%d alerts and %d panels", len(alerts), len(dashboard.Panels))
	}

	readme := between(contents(t, "README.md"), "## Metrics\n", "\n## ")
	check("README.md", readme)
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), ofGuard) {
			continue
		}
		if !regexp.MustCompile("`" + f.GetName() + "[`{]").MatchString(readme) {
			t.Errorf("the README does not have %s", f.GetName())
		}
		for label, values := range says(families, f.GetName()) {
			for _, v := range values {
				if !strings.Contains(readme, "`"+v+"`") && !strings.Contains(readme, `="`+v+`"`) && label != "reason" {
					t.Errorf("the README does not say of %s that %s can be %s", f.GetName(), label, v)
				}
			}
		}
	}
}
