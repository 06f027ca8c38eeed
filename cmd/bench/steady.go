package main

import (
	"fmt"
	"time"
)

// steady: names come at a fixed rate and their grants run out at the same rate.
// What has run out must leave the kernel, or sets fill up with the dead.
func steady(b *bench) error {
	const rate = 5000
	lasting := pick(b, 10*time.Minute, 30*time.Second)
	ttl, options := 60, []string{"on_exit remove"}
	life := 90500 * time.Millisecond
	if b.quick {
		ttl, options = 5, append(options, "ttl 5s 24h", "margin 1s") // cache knows no TTL below 5
		life = 6500 * time.Millisecond
	}
	w, s, err := newServer(guardOn(b.Ours, options...).with(observed...))
	if err != nil {
		return err
	}
	defer w.close()
	type outcome struct {
		r   *loadResult
		s   sample
		err error
	}
	done := make(chan outcome, 1)
	start := time.Now()
	go func() {
		s, r, err := measure(s, load{ttl: ttl, rate: rate, numbers: never, lasting: lasting})
		done <- outcome{r, s, err}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	worst, most := 0.0, 0
	for {
		select {
		case o := <-done:
			if o.err != nil {
				return o.err
			}
			left := 0
			for range 30 { // what is left when all has run out
				time.Sleep(life / 10)
				if left, err = elementsOf(s.Host, setName4); err != nil || left == 0 {
					break
				}
			}
			if err != nil {
				return err
			}
			b.report.sample("steady", "guard-on", o.s)
			r := row{Name: "steady", What: fmt.Sprintf("elements in the kernel at most, %d new names/s for %v", rate, lasting), Unit: "",
				Ours: float64(most), Reference: float64(most) / worst, Against: "live grants",
				Note: fmt.Sprintf("%.0f/s answered, p99 %.0f us, server's CPU %.1f us a query; %d elements left at the end", o.r.perSecond(), o.s.P99, o.s.User+o.s.System, left)}
			b.report.add(r.ratioAtMost(1.1))
			return nil
		case now := <-tick.C:
			n, err := elementsOf(s.Host, setName4)
			if err != nil {
				return err
			}
			m, err := s.metrics()
			if err != nil {
				return err
			}
			gauge := m[`coredns_ipdestinationguard_grants{family="ipv4"}`]
			live := rate * min(now.Sub(start), life).Seconds()
			b.report.sample("steady", "kernel", sample{Value: float64(n), More: map[string]float64{
				"gauge": gauge, "live": live, "seconds": now.Sub(start).Seconds(),
				"rss": m["process_resident_memory_bytes"], "goroutines": m["go_goroutines"]}})
			if now.Sub(start) > life && float64(n)/live > worst {
				worst, most = float64(n)/live, n
			}
		}
	}
}
