package main

import (
	"net/netip"
)

// ceiling: the load generator against the lab's own responder, which does
// next to nothing for an answer.
func ceiling(b *bench) error {
	w, err := newWorld(guardOff(b.Ours))
	if err != nil {
		return err
	}
	defer w.close()
	l := load{ttl: 60, window: inFlight, numbers: never, lasting: turn, from: w.client,
		server: netip.AddrPortFrom(netip.MustParseAddr(w.servers[0].upstream()), 53)}
	if err := w.client.Route("198.18.0.0/24", w.servers[0].lan()); err != nil {
		return err
	}
	for range b.rounds {
		r, err := l.run()
		if err == nil {
			err = r.check()
		}
		if err != nil {
			return err
		}
		b.report.sample("ceiling", "responder", sample{PerSecond: r.perSecond(), P50: micros(r.latency.quantile(0.5)), P99: micros(r.latency.quantile(0.99)), Sent: r.Sent, Bad: r.Failed + r.Lost})
	}
	b.report.add(row{Name: "ceiling", What: "load generator and upstream alone", Unit: "/s", Ours: median(values(b.report.Samples["ceiling"]["responder"], perSecond))})
	return nil
}
