package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// measure puts a load on a server and says what became of it.
func measure(s *server, l load) (sample, *loadResult, error) {
	l.server, l.mapped = s.addr, s.mapped
	if l.from == nil {
		l.from = s.world.client
	}
	user, system := s.cpu()
	idle, all := idleTime()
	r, err := l.run()
	if err == nil && !l.tolerant {
		err = r.check()
	}
	if err != nil {
		return sample{}, r, fmt.Errorf("%s: %w", s.name, err)
	}
	user2, system2 := s.cpu()
	idle2, all2 := idleTime()
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(r.Answered) }
	return sample{
		PerSecond: r.perSecond(), P50: micros(r.latency.quantile(0.5)), P99: micros(r.latency.quantile(0.99)),
		User: each(user2 - user), System: each(system2 - system), Idle: (idle2 - idle) / (all2 - all),
		Sent: r.Sent, Bad: r.Failed + r.Lost,
	}, r, nil
}

// ask asks for one name, and returns its address.
func (s *server) ask(number uint32, ttl int) (netip.Addr, error) {
	conn, err := s.world.client.Dial(context.Background(), "udp", s.addr.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	b := make([]byte, packetSize)
	n := question(b, number, ttl, 1)
	_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Write(b[:n]); err != nil {
		return netip.Addr{}, err
	}
	if n, err = conn.Read(b); err != nil {
		return netip.Addr{}, err
	}
	if n < 16 || b[3]&15 != 0 || binary.BigEndian.Uint16(b[6:]) != 1 {
		return netip.Addr{}, fmt.Errorf("%s: no address for name %d", s.name, number)
	}
	return netip.AddrFrom4([4]byte(b[n-4 : n])), nil
}

func micros(d time.Duration) float64 { return float64(d) / 1000 }

func perSecond(s sample) float64 { return s.PerSecond }
func cpuTime(s sample) float64   { return s.User + s.System }

// turn is how long each program is measured before it is another's turn: so
// short that what else goes on in the machine hits all of them. In cold, where
// grants last 90.5 seconds, at least three variants take turns: so there are
// less than a million grants at any time, and as many expire as are made.
const turn = 500 * time.Millisecond

// inFlight is the load of comparisons by throughput: enough for a server to be
// busy all the time, and not so much that its queue is all there is.
const inFlight = 128

// hot: names in the cache, with their grants in force.
func hot(b *bench) error {
	const names = 1000
	warm := load{ttl: 3600, window: 32, numbers: again(0, names), count: 4 * names}
	l := load{ttl: 3600, window: inFlight, numbers: again(0, names), lasting: turn}
	if err := b.takeTurns("hot", b.variants(true), warm, l); err != nil {
		return err
	}
	b.compared("hot", "cached names", "guard-off", 0.97)
	b.compared("hot", "cached names", "stock", 1.05)
	b.compared("hot", "cached names", "ruleset-only", 0)
	b.others("hot", "cached names")
	return b.profiled("hot", l, warm)
}

// cold: each name is asked once, so each answer waits for its grant.
func cold(b *bench) error {
	warm := load{ttl: 60, window: inFlight, numbers: never, lasting: time.Second}
	l := load{ttl: 60, window: inFlight, numbers: never, lasting: turn}
	if err := b.takeTurns("cold", b.variants(false), warm, l); err != nil {
		return err
	}
	b.compared("cold", "new names", "ruleset-only", 0.95)
	b.compared("cold", "new names", "guard-off", 0)
	b.compared("cold", "new names", "stock", 0)
	b.others("cold", "new names")
	return b.profiled("cold", l, warm)
}

// perLife is after how many turns the servers are started anew: two processes of
// one program may differ by some percent for as long as they live.
const perLife = 8

// takeTurns starts and warms the servers and puts the load on each in turn.
func (b *bench) takeTurns(row string, variants []*variant, warm, l load) error {
	w, err := newWorld(variants...)
	if err != nil {
		return err
	}
	defer w.close()
	for round := range b.rounds {
		for _, s := range w.servers {
			if round%perLife == 0 {
				if err := s.restart(); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				if _, _, err := measure(s, warm); err != nil {
					return err
				}
			}
			r, _, err := measure(s, l)
			if err != nil {
				return err
			}
			b.report.sample(row, s.name, r)
		}
	}
	return nil
}

// variants are what the throughput is compared of.
func (b *bench) variants(hot bool) []*variant {
	v := []*variant{guardOn(b.Ours, "on_exit remove"), guardOff(b.Ours), withRuleset(b.Ours), stock(b.Stock)}
	if hot {
		two := guardOn(b.Ours, "on_exit remove").with("multisocket 2")
		two.name = "multisocket"
		v = append(v, two)
	}
	if b.Dnsmasq != "" {
		v = append(v, dnsmasq(b.Dnsmasq), dnsmasqNftset(b.Dnsmasq))
	}
	if b.Unbound != "" {
		v = append(v, unbound(b.Unbound))
	}
	return append(v, b.other()...)
}

// others adds rows for peers that are there, and says which are not.
func (b *bench) others(experiment, what string) {
	for _, name := range []string{"multisocket", "dnsmasq", "dnsmasq+nftset", "unbound", "against"} {
		if b.report.Samples[experiment][name] != nil {
			b.compared(experiment, what, name, 0)
		}
	}
	if b.Dnsmasq == "" || b.Unbound == "" {
		b.report.missing("dnsmasq", b.Dnsmasq, "unbound", b.Unbound)
	}
}

// other is the build that ours is measured against, if one is.
func (b *bench) other() []*variant {
	if b.against == "" {
		return nil
	}
	v := guardOn(b.against, "on_exit remove")
	v.name = "against"
	return []*variant{v}
}

// compared adds a row for throughput, with the server's CPU time.
func (b *bench) compared(experiment, what, reference string, wanted float64) {
	b.comparedOf(experiment, what, "guard-on", reference, wanted)
}

func (b *bench) comparedOf(experiment, what, variant, reference string, wanted float64) {
	r := b.report.compare(experiment, variant, reference, perSecond)
	r.What, r.Unit = what, "/s"
	if wanted > 0 {
		r = r.atLeast(wanted)
	}
	ours, theirs := median(values(b.report.Samples[experiment][variant], cpuTime)), median(values(b.report.Samples[experiment][reference], cpuTime))
	idle := median(values(b.report.Samples[experiment][variant], func(s sample) float64 { return s.Idle }))
	r.Note = fmt.Sprintf("server's CPU %.1f us a query against %.1f; machine %.0f %% idle", ours, theirs, 100*idle)
	b.report.add(r)
}

// profiled takes a CPU profile of the guard under the load.
func (b *bench) profiled(experiment string, l, warm load) error {
	if b.profile == "" {
		return nil
	}
	w, err := newWorld(guardOn(b.Ours, "on_exit remove").with(pprofLine), guardOff(b.Ours).with(pprofLine))
	if err != nil {
		return err
	}
	defer w.close()
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return err
	}
	const seconds = 15
	for _, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
		if _, _, err := measure(s, warm); err != nil {
			return err
		}
		l.lasting = (seconds + 1) * time.Second
		done := make(chan error, 1)
		go func() {
			_, _, err := measure(s, l)
			done <- err
		}()
		profile, err := s.get(pprofPort, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
		if err != nil {
			return err
		}
		if err := <-done; err != nil {
			return err
		}
		allocs, err := s.get(pprofPort, "/debug/pprof/allocs")
		if err != nil {
			return err
		}
		for kind, data := range map[string][]byte{"cpu": profile, "allocs": allocs} {
			path := filepath.Join(b.profile, fmt.Sprintf("%s-%s-%s.pprof", experiment, s.name, kind))
			if err := os.WriteFile(path, data, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
