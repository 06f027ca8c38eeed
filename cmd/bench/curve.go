package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// curve: what comes back, and how late, by what is asked for.
func curve(b *bench) error {
	for _, kind := range []string{"hot", "cold"} {
		if err := b.curve(kind); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) curve(kind string) error {
	w, err := newWorld(guardOn(b.Ours, shortLease...), guardOff(b.Ours), stock(b.Stock))
	if err != nil {
		return err
	}
	defer w.close()
	l := load{ttl: 5, numbers: never, lasting: turn}
	if kind == "hot" {
		l.ttl, l.numbers = 3600, again(0, 1000)
	}
	most := 0.0 // what guard-off can do
	for _, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
		full := l
		full.window, full.lasting = inFlight, time.Second
		for range 2 {
			r, _, err := measure(s, full)
			if err != nil {
				return err
			}
			if s.name == "guard-off" {
				most = r.PerSecond
			}
		}
	}
	l.tolerant = true
	for range pick(b, 7, 1) {
		for _, share := range []float64{0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1, 1.1, 1.25} {
			l.rate = most * share
			for _, s := range w.servers {
				r, _, err := measure(s, l)
				if err != nil {
					return err
				}
				r.Value = share
				r.More = map[string]float64{"offered": l.rate}
				b.report.sample("curve-"+kind, s.name, r)
				time.Sleep(20 * time.Millisecond) // for queues to empty
			}
		}
	}
	return nil
}

// plots draws what the run has found into a folder.
func (r *report) plots(dir string) error {
	byShare := func(experiment, variant string, x, y func(sample) float64) (points []point) {
		groups := map[float64][]sample{}
		for _, s := range r.Samples[experiment][variant] {
			groups[s.Value] = append(groups[s.Value], s)
		}
		for _, g := range groups {
			points = append(points, point{median(values(g, x)), median(values(g, y))})
		}
		return points
	}
	offered := func(s sample) float64 { return s.More["offered"] / 1000 }
	var charts []chart
	for _, kind := range []string{"hot", "cold"} {
		experiment := "curve-" + kind
		if r.Samples[experiment] == nil {
			continue
		}
		what := map[string]string{"hot": "cached names", "cold": "names never seen before"}[kind]
		throughput := chart{file: "performance-" + kind + "-throughput", title: "Throughput, " + what, x: "offered, 1,000 questions/s", y: "answered, 1,000/s"}
		late := chart{file: "performance-" + kind + "-p99", title: "p99 latency, " + what, x: "offered, 1,000 questions/s", y: "p99, us", logY: true}
		for _, v := range []string{"guard-on", "guard-off", "stock"} {
			throughput.add(v, byShare(experiment, v, offered, func(s sample) float64 { return s.PerSecond / 1000 }))
			late.add(v, byShare(experiment, v, offered, func(s sample) float64 { return s.P99 }))
		}
		charts = append(charts, throughput, late)
	}
	cost := chart{file: "performance-grants", title: "Throughput beside live grants, against none", x: "live grants", y: "ratio", logX: true}
	for _, kind := range []string{"hot", "cold"} {
		var points []point
		for experiment := range r.Samples {
			n, err := strconv.Atoi(strings.TrimPrefix(experiment, "grants-"+kind+"-"))
			if err != nil || n == 0 {
				continue
			}
			c := r.compare(experiment, "many-grants", "no-grants", perSecond)
			points = append(points, point{float64(n), c.ratio()})
		}
		if points != nil {
			cost.add(kind, points)
		}
	}
	if cost.series != nil {
		charts = append(charts, cost)
	}
	for _, c := range charts {
		path := filepath.Join(dir, c.file+".svg")
		if err := os.WriteFile(path, []byte(c.svg()), 0o644); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
	}
	return nil
}
