package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// grantCost: what a grant costs the writer, by how many answers wait, against
// the kernel's own time for one element in a full batch. So many answers wait
// at the same time only where the rest of CoreDNS is faster than here, so the
// benchmark of the backend alone has them wait.
func grantCost(b *bench) error {
	w, err := newWorld(withRuleset(b.Ours))
	if err != nil {
		return err
	}
	defer w.close()
	s := w.servers[0]
	if err := s.leaveRuleset(); err != nil {
		return err
	}
	const full = 1000
	for range pick(b, 9, 3) {
		out, err := exec.Command("go", "test", "-run", "^$", "-bench", "^BenchmarkGrant$", "-benchtime", "200ms", "./nft").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
		}
		h, err := kernelTransaction(s.Host, 50, full)
		if err != nil {
			return err
		}
		b.report.sample("grantcost", "kernel", sample{Value: micros(h.quantile(0.5)) / full})
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); strings.HasPrefix(line, "BenchmarkGrant/waiters=") {
				waiters, _, _ := strings.Cut(strings.TrimPrefix(f[0], "BenchmarkGrant/waiters="), "-")
				m := map[string]float64{}
				for i := 2; i+1 < len(f); i += 2 {
					m[f[i+1]], _ = strconv.ParseFloat(f[i], 64)
				}
				b.report.sample("grantcost", waiters, sample{Value: m["kernel-ns/grant"] / 1000, More: m})
			}
		}
	}
	for _, waiters := range []string{"1", "8", "64"} {
		r := b.report.compare("grantcost", waiters, "kernel", func(s sample) float64 { return s.Value })
		more := func(name string) float64 {
			return median(values(b.report.Samples["grantcost"][waiters], func(s sample) float64 { return s.More[name] }))
		}
		r.What, r.Unit, r.Against = fmt.Sprintf("kernel time a grant, %s waiting answers", waiters), "us", "one element of 1,000"
		r.Note = fmt.Sprintf("%.1f grants in a transaction; each answer took %.1f us in all", more("grants/transaction"), more("ns/op")/1000)
		if waiters == "64" {
			r = r.ratioAtMost(2)
		}
		b.report.add(r)
	}
	return nil
}

var benchLine = regexp.MustCompile(`(?m)^Benchmark(\S+?)(-\d+)?\s+\d+\s+([\d.]+) ns/op\s+(\d+) B/op\s+(\d+) allocs/op`)

// allocations of a cached answer on its way through our code.
func allocations(b *bench) error {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", "^BenchmarkServeDNS$/^A$", "-benchtime", pick(b, "1s", "200ms"), ".").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	type result struct{ nanos, bytes, allocs float64 }
	found := map[string]result{}
	for _, m := range benchLine.FindAllStringSubmatch(string(out), -1) {
		var r result
		for i, v := range []*float64{&r.nanos, &r.bytes, &r.allocs} {
			*v, _ = strconv.ParseFloat(m[3+i], 64)
		}
		found[strings.TrimPrefix(m[1], "ServeDNS/")] = r
	}
	hot, okHot := found["A/hot"]
	without, okWithout := found["A/without"]
	if !okHot || !okWithout {
		return fmt.Errorf("no result in %s", out)
	}
	for name, r := range found {
		b.report.sample("allocations", name, sample{Value: r.allocs, More: map[string]float64{"ns": r.nanos, "bytes": r.bytes}})
	}
	r := row{Name: "allocs", What: "allocations of a hot answer in our code", Ours: hot.allocs,
		Note: fmt.Sprintf("%.0f ns and %.0f bytes more than the next plugin alone (%.0f ns)", hot.nanos-without.nanos, hot.bytes-without.bytes, without.nanos)}
	b.report.add(r.atMost(0, ""))
	return nil
}
