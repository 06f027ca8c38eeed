package main

import (
	"context"
	"fmt"
	"time"
)

// latency: what the hold adds to one answer, when nothing else goes on. Short
// turns, so that a noisy moment hits both.
func latency(b *bench) error {
	w, err := newWorld(append([]*variant{guardOn(b.Ours, "on_exit remove"), withRuleset(b.Ours)}, b.other()...)...)
	if err != nil {
		return err
	}
	defer w.close()
	for _, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
	}
	total := map[string]*histogram{}
	one := load{ttl: 60, window: 1, sockets: 1, numbers: never, lasting: 25 * time.Millisecond}
	for _, s := range w.servers {
		if _, _, err := measure(s, one); err != nil {
			return err
		}
		total[s.name] = &histogram{}
	}
	for range pick(b, 1200, 300) {
		for _, s := range w.servers {
			r, l, err := measure(s, one)
			if err != nil {
				return err
			}
			total[s.name].merge(l.latency)
			b.report.sample("latency", s.name, r)
		}
	}
	b2b, err := kernelTransaction(w.servers[1].Host, pick(b, 100_000, 20_000), 1)
	if err != nil {
		return err
	}
	between, err := transactionsBetweenQuestions(w.servers[1], pick(b, 20_000, 5_000))
	if err != nil {
		return err
	}
	on, off := total["guard-on"], total["ruleset-only"]
	added := func(q float64) float64 { return micros(on.quantile(q) - off.quantile(q)) }
	p50 := b.report.compare("latency", "guard-on", "ruleset-only", func(s sample) float64 { return s.P50 })
	p50.What, p50.Unit = "p50 of an answer, held against not held", "us"
	const asked = "kernel, between questions"
	b.report.sample("latency", "kernel, one upon the other", sample{P50: micros(b2b.quantile(0.5)), P99: micros(b2b.quantile(0.99))})
	b.report.sample("latency", asked, sample{P50: micros(between.quantile(0.5)), P99: micros(between.quantile(0.99))})
	r := row{Name: "latency", What: "added to a held answer, p50", Unit: "us", Ours: added(0.5),
		Reference: micros(between.quantile(0.5)), Against: asked,
		Note: fmt.Sprintf("one transaction upon the other takes the kernel %.1f us", micros(b2b.quantile(0.5)))}.ratioAtMost(3)
	r99 := row{Name: "latency", What: "added to a held answer, p99", Unit: "us", Ours: added(0.99),
		Reference: micros(between.quantile(0.99)), Against: asked}.atMost(500, "us")
	b.report.add(p50, r, r99)
	if b.against != "" {
		r := b.report.compare("latency", "guard-on", "against", func(s sample) float64 { return s.P50 })
		r.What, r.Unit = "p50 of a held answer", "us"
		b.report.add(r)
	}
	return nil
}

// transactionsBetweenQuestions times transactions as they are in the life of an
// answer: the caches of the CPU have had other things to do in between.
func transactionsBetweenQuestions(s *server, times int) (*histogram, error) {
	t, err := newTransactor(s.Host, 1, 2*time.Minute)
	if err != nil {
		return nil, err
	}
	defer t.close()
	conn, err := s.world.client.Dial(context.Background(), "udp", s.addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	hist := &histogram{}
	buf := make([]byte, packetSize)
	for range times {
		n := question(buf, fresh.Add(1), 60, 1)
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write(buf[:n]); err != nil {
			return nil, err
		}
		if _, err := conn.Read(buf); err != nil {
			return nil, err
		}
		took, err := t.commit()
		if err != nil {
			return nil, err
		}
		hist.add(int64(took))
	}
	return hist, nil
}
