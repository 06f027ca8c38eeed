package main

import (
	"fmt"
	"time"
)

// application: what it costs to find out which program asks, in questions of programs
// on the guarded machine itself, one at a time.
func application(b *bench) error {
	guarding := func(scope string) *variant {
		return &variant{name: "scope " + scope, program: b.Ours, config: func(s *server) string {
			return corefile(s, fmt.Sprintf("%s {\n\t\tmode nft-local\n\t\tscope %s\n\t\tallowedIPs %s/32 192.168.0.0/16\n\t\ton_exit remove\n\t}", directive, scope, s.upstream()))
		}}
	}
	w, err := newWorld(guarding("application"), guarding("any"))
	if err != nil {
		return err
	}
	defer w.close()
	const names = 1000
	warm := load{ttl: 3600, window: 32, numbers: again(0, names), count: 4 * names}
	kinds := []struct {
		row, what string
		load
		most float64 // us
	}{
		{"application cold", "added to a held answer by finding out who asks, p50", load{ttl: 60, window: 1, sockets: 1, numbers: never, lasting: 25 * time.Millisecond}, 60},
		{"application hot", "the same, to a cached answer", load{ttl: 3600, window: 1, sockets: 1, numbers: again(0, names), lasting: 25 * time.Millisecond}, 0},
	}
	total := map[string]map[string]*histogram{}
	for _, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
		warm.from = s.Host
		if _, _, err := measure(s, warm); err != nil {
			return err
		}
		total[s.name] = map[string]*histogram{}
	}
	for range pick(b, 400, 100) {
		for _, kind := range kinds {
			for _, s := range w.servers {
				l := kind.load
				l.from = s.Host
				r, result, err := measure(s, l)
				if err != nil {
					return err
				}
				if total[s.name][kind.row] == nil {
					total[s.name][kind.row] = &histogram{}
				}
				total[s.name][kind.row].merge(result.latency)
				b.report.sample(kind.row, s.name, r)
			}
		}
	}
	for _, kind := range kinds {
		r := b.report.compare(kind.row, w.servers[0].name, w.servers[1].name, func(s sample) float64 { return s.P50 })
		r.What, r.Unit = "p50 of an answer, by whom a grant is for", "us"
		with, without := total[w.servers[0].name][kind.row], total[w.servers[1].name][kind.row]
		added := row{Name: kind.row, What: kind.what, Unit: "us", Ours: micros(with.quantile(0.5) - without.quantile(0.5)), Against: "-"}
		if kind.most > 0 {
			added = added.atMost(kind.most, "us")
		}
		b.report.add(r, added)
	}
	return nil
}
