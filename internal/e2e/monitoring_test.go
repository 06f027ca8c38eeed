package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Prometheus itself scrapes a guard at work, takes the alert rules, and has an answer to
// each query of the dashboard. What that draws over time, it draws.
func TestDashboardShowsWhatPrometheusHas(t *testing.T) {
	t.Parallel()
	prometheus, err := exec.LookPath("prometheus")
	w := newWorld(t)
	w.lacks(err)
	w.noOwner()
	_, option := w.socket()
	w.start(corefile(guardBlock("nft-both", option)))
	dir := t.TempDir()
	rules, err := filepath.Abs("../../deployment/alerts.yml")
	w.must(err)
	config := filepath.Join(dir, "prometheus.yml")
	w.save(config, fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%s]\nscrape_configs: [{job_name: coredns, static_configs: [{targets: ['127.0.0.1:9153']}]}]\n", rules))
	assets := "--web.page-title=Guard"
	if pages := filepath.Join(filepath.Dir(prometheus), "../share/prometheus/web"); exists(pages) { // Debian's, which may be unpacked somewhere
		assets = "--web.local-assets=" + pages
	}
	server := w.guard.Command(prometheus, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090", assets)
	w.must(server.Start())
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return w.guard.Dial(ctx, network, address)
	}}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	ask := func(path string, query url.Values, result any) error {
		response, err := client.Get("http://127.0.0.1:9090/api/v1/" + path + "?" + query.Encode())
		if err != nil {
			return err
		}
		defer response.Body.Close()
		return json.NewDecoder(response.Body).Decode(result)
	}

	// What the dashboard can show of a minute's life.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			_ = w.resolve(w.client, gateway4, w.behind().addr4(i%200), 60)
			_, _ = w.ask(w.client, gateway4, "a-10-9-9-9.evil.test.", 1)
			_ = w.connect(w.guard, "udp", fmt.Sprintf("198.19.%d.%d", i/250%250, i%250)) // each a flow of its own
		}
	}()

	text, err := os.ReadFile("../../deployment/grafana-dashboard.json")
	w.must(err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	w.must(json.Unmarshal(text, &dashboard))
	var drawn []string
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*").Replace(q.Expr)
			if p.Type == "timeseries" {
				drawn = append(drawn, expr)
			}
			// There is none of that, or not yet.
			calm := p.Title == "Trouble" || p.Title == "Audit" || strings.Contains(expr, `result="failed"`) || strings.Contains(expr, "unlisted")
			var answer struct {
				Status, Error string
				Data          struct{ Result []struct{ Value [2]any } }
			}
			w.eventually("Prometheus has an answer to "+expr, func() bool {
				answer.Data.Result = nil
				if err := ask("query", url.Values{"query": {expr}}, &answer); err == nil && answer.Status != "success" {
					w.Fatalf("%s: %s", expr, answer.Error)
				}
				return slices.ContainsFunc(answer.Data.Result, func(r struct{ Value [2]any }) bool {
					return r.Value[1] != "NaN" && calm == (r.Value[1] == "0")
				})
			})
		}
	}
	var loaded struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, State string }
			}
		}
	}
	w.must(ask("rules", nil, &loaded))
	n := 0
	for _, g := range loaded.Data.Groups {
		for _, r := range g.Rules {
			n++
			if r.Health == "err" || r.State == "firing" {
				t.Errorf("alert %s: %s, %s", r.Name, r.Health, r.State)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d alerts are loaded", n)
	}

	// The first time that somebody else removes the table is seen.
	w.must(w.asSomebody(deleteTable))
	w.eventually("an alert says so", func() bool {
		w.must(ask("rules", nil, &loaded))
		for _, g := range loaded.Data.Groups {
			for _, r := range g.Rules {
				if r.Name == "GuardChangedByOthers" && r.State == "firing" {
					return true
				}
			}
		}
		return false
	})

	response, err := client.Get("http://127.0.0.1:9090/classic/static/rickshaw/rickshaw.min.js")
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("Prometheus has not all it draws with, as Debian's has (libjs-rickshaw and others): %s", response.Status)
	}
	w.lacks(err)
	response.Body.Close()
	n = 0
	for queries := range slices.Chunk(drawn, 8) { // the page confuses more than ten
		n++
		w.draw("http://127.0.0.1:9090/classic/graph", queries, fmt.Sprintf("dashboard-%d.png", n))
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// draw has a browser show Prometheus's page with the graphs of queries, and fails the test
// unless there is a line in each. DASHBOARD_PICTURES is a folder to keep the picture in.
func (w *world) draw(page string, queries []string, name string) {
	w.Helper()
	browser, err := exec.LookPath("chromium")
	w.lacks(err)
	parameters, dir := url.Values{}, w.TempDir()
	for i, q := range queries {
		for key, value := range map[string]string{"expr": q, "tab": "0", "range_input": "1m", "step_input": "1"} {
			parameters.Set(fmt.Sprintf("g%d.%s", i, key), value)
		}
	}
	var missing []string
	for range 5 { // the browser may look before all is there
		picture := filepath.Join(dir, name)
		c := w.guard.Command(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+filepath.Join(dir, "profile"),
			fmt.Sprint("--window-size=1200,", 100+800*len(queries)), "--virtual-time-budget=20000", "--screenshot="+picture, "--dump-dom", page+"?"+parameters.Encode())
		if err := c.Run(); err != nil {
			missing = []string{err.Error()}
			continue
		}
		graphs := strings.Split(c.Output(), `class="graph_wrapper"`)[1:]
		missing = nil
		for i, q := range queries {
			if i >= len(graphs) || !drawnLine.MatchString(graphs[i]) {
				missing = append(missing, q)
			}
		}
		if b, err := os.ReadFile(picture); len(missing) == 0 && err == nil && len(b) > 10_000 {
			if keep := os.Getenv("DASHBOARD_PICTURES"); keep != "" {
				w.must(os.WriteFile(filepath.Join(keep, name), b, 0o644))
			}
			return
		}
	}
	w.Errorf("no line is drawn of: %q", missing)
}

// drawnLine is one of at least two points, as the page draws it.
var drawnLine = regexp.MustCompile(`<path class="path" d="M[^"]*L`)
