package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// million is how many grants a large network is taken to have: half of them for
// IPv4 and half for IPv6, as a set holds 1,048,576.
func million(b *bench) int { return pick(b, 1_000_000, 100_000) }

// eachFamily is the types of questions for addresses.
var eachFamily = []uint16{1, 28}

// preload has the server resolve n new names with a TTL of a day, as many of them
// by questions of each type, and returns the first of the numbers.
func preload(s *server, n int, qtypes ...uint16) (first uint32, err error) {
	const portion = 64
	first = fresh.Add(uint32(n)) - uint32(n)
	next := make(chan uint32, n/portion+1)
	for at := uint32(0); at < uint32(n); at += portion {
		next <- first + at
	}
	close(next)
	sequence := func() (uint32, uint32) {
		at, ok := <-next
		if !ok {
			return first, portion
		}
		return at, portion
	}
	for i, qtype := range qtypes {
		_, r, err := measure(s, load{ttl: 86400, window: 64, qtype: qtype, numbers: sequence, count: uint64(share(n, len(qtypes), i))})
		if err != nil {
			return first, err
		}
		if bad := r.Failed + r.Lost; bad > 0 {
			return first, fmt.Errorf("%d names have not been resolved", bad)
		}
	}
	return first, nil
}

// shortLease lets the grants of new names run out soon, so that those beside
// the preloaded ones never fill the set.
var shortLease = []string{"on_exit remove", "ttl 5s 24h", "margin 5s"}

// grants: whether a million grants slow down what goes on beside them.
func grants(b *bench) error {
	few, many := guardOn(b.Ours, shortLease...), guardOn(b.Ours, shortLease...)
	few.name, many.name = "no-grants", "many-grants"
	w, err := newWorld(few, many)
	if err != nil {
		return err
	}
	defer w.close()
	hotNames := again(0, 1000)
	fresh.CompareAndSwap(0, 1000)
	for _, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
	}
	loads := []struct {
		name string
		load
	}{
		{"hot", load{ttl: 3600, window: inFlight, numbers: hotNames, lasting: turn}},
		{"cold", load{ttl: 5, window: inFlight, numbers: never, lasting: turn}},
	}
	have := 0
	for _, n := range []int{0, 1000, 10_000, 100_000, 1_000_000} {
		if n > million(b) {
			break
		}
		if n > have {
			if _, err := preload(w.servers[1], n-have, eachFamily...); err != nil {
				return err
			}
			have = n
		}
		rounds := b.rounds / 3
		if n == million(b) {
			rounds = b.rounds
		}
		for _, l := range loads {
			for _, s := range w.servers {
				if _, _, err := measure(s, l.load); err != nil {
					return err
				}
			}
			for range rounds {
				for _, s := range w.servers {
					r, _, err := measure(s, l.load)
					if err != nil {
						return err
					}
					b.report.sample(fmt.Sprintf("grants-%s-%d", l.name, n), s.name, r)
				}
			}
		}
	}
	for _, l := range loads {
		r := b.report.compare(fmt.Sprintf("grants-%s-%d", l.name, have), "many-grants", "no-grants", perSecond)
		r.What, r.Unit = fmt.Sprintf("%s names beside %d live grants", l.name, have), "/s"
		r.Name = "grants"
		b.report.add(r.atLeast(0.95))
	}
	return nil
}

// memory: what a live grant costs the process, against a CoreDNS that has
// answered the same.
func memory(b *bench) error {
	w, err := newWorld(guardOn(b.Ours, shortLease...).with(observed...), guardOff(b.Ours).with(observed...))
	if err != nil {
		return err
	}
	defer w.close()
	n := million(b)
	var heap, rss [2]float64
	for i, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
		if _, err := preload(s, n, eachFamily...); err != nil {
			return err
		}
		if _, err := s.get(pprofPort, "/debug/pprof/heap?gc=1"); err != nil { // collects garbage
			return err
		}
		m, err := s.metrics()
		if err != nil {
			return err
		}
		heap[i], rss[i] = m["go_memstats_heap_inuse_bytes"], m["process_resident_memory_bytes"]
		b.report.sample("memory", s.name, sample{Value: heap[i], More: map[string]float64{"rss": rss[i], "heap": heap[i], "sys": m["go_memstats_sys_bytes"]}})
	}
	r := row{Name: "memory", What: fmt.Sprintf("heap a grant, %d live", n), Unit: "bytes", Ours: (heap[0] - heap[1]) / float64(n),
		Note: fmt.Sprintf("resident memory: %.0f bytes a grant, %.0f MB in all", (rss[0]-rss[1])/float64(n), rss[0]/1e6)}
	b.report.add(r.atMost(120, "bytes"))
	return nil
}

// restart and reload with a million grants, while packets go to what is open.
func restart(b *bench) error {
	w, s, err := newServer(guardOn(b.Ours, "on_exit keep").with(observed...))
	if err != nil {
		return err
	}
	defer w.close()
	n := million(b)
	first, err := preload(s, n, eachFamily...)
	if err != nil {
		return err
	}
	sink, err := startSink(w.world)
	if err != nil {
		return err
	}
	defer sink.close()
	before, err := rejected(s.Host)
	if err != nil {
		return err
	}
	if before != 0 {
		return fmt.Errorf("%d packets were refused before anything has begun", before)
	}

	traffic := w.startTraffic(address4(first), uint32(n/4)) // of the IPv4 half, what surely was resolved
	took := func(what string, wanted time.Duration, f func() error) error {
		start := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w: %s", what, err, s.Output())
		}
		r := row{Name: "restart", What: fmt.Sprintf("%s with %d grants", what, n), Unit: "s", Ours: time.Since(start).Seconds()}
		b.report.sample("restart", what, sample{Value: r.Ours})
		b.report.add(r.atMost(wanted.Seconds(), "s"))
		return nil
	}
	err = took("reload", time.Second, s.reload)
	if err == nil {
		err = took("stop", time.Hour, s.Stop)
		b.report.Rows[len(b.report.Rows)-1].Target, b.report.Rows[len(b.report.Rows)-1].Reached = "", nil
	}
	if err == nil {
		err = took("restart until it guards and answers", 3*time.Second, func() error { return s.launch(s.variant) })
	}
	adopting := time.Now()
	time.Sleep(time.Second)
	traffic.end()
	if err != nil {
		return err
	}
	arrived := sink.await(traffic.sent)
	refused, err := rejected(s.Host)
	if err != nil {
		return err
	}
	b.report.add(row{Name: "restart", What: "packets lost meanwhile, reload and restart", Ours: float64(traffic.sent - min(arrived, traffic.sent)),
		Note: fmt.Sprintf("of %d; the guard has counted %d refused", traffic.sent, refused)}.atMost(0, ""))

	// How long until the new process knows of all grants again.
	known := 0.0
	for known < 0.999*float64(n) && time.Since(adopting) < pick(b, 5*time.Minute, 30*time.Second) {
		time.Sleep(200 * time.Millisecond)
		m, err := s.metrics()
		if err != nil {
			return err
		}
		known = m[`coredns_ipdestinationguard_grants{family="ipv4"}`] + m[`coredns_ipdestinationguard_grants{family="ipv6"}`]
	}
	user, system := s.cpu()
	b.report.add(row{Name: "restart", What: "until the grants have been read back", Unit: "s", Ours: time.Since(adopting).Seconds(),
		Note: fmt.Sprintf("%.0f of %d known; %v of CPU time", known, n, user+system)})
	return nil
}

// reload changes what is allowed, once in the life of a process.
func (s *server) reload() error {
	text := strings.Replace(s.config(s), "allowedIPs ", "allowedIPs 203.0.113.0/24 ", 1)
	if err := os.WriteFile(s.conf, []byte(text), 0o644); err != nil {
		return err
	}
	if err := s.Signal(syscall.SIGUSR1); err != nil {
		return err
	}
	return s.await(func() bool { return strings.Count(s.Output(), armedText) == 2 })
}

func (s *server) await(holds func() bool) error {
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

// traffic is packets to addresses that are open, 10,000 a second.
type traffic struct {
	sent uint64
	stop chan struct{}
	done chan struct{}
}

func (w *world) startTraffic(address, n uint32) *traffic {
	t := &traffic{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(t.done)
		fd, err := udpSocket(w.client, noAddress, noAddress)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		at := uint32(0)
		for {
			select {
			case <-t.stop:
				return
			case <-tick.C:
			}
			for range 10 {
				to := unix.SockaddrInet4{Port: probePort}
				binary.BigEndian.PutUint32(to.Addr[:], address+at%n)
				at++
				if unix.Sendto(fd, probePayload, 0, &to) == nil {
					t.sent++
				}
			}
		}
	}()
	return t
}

func (t *traffic) end() {
	close(t.stop)
	<-t.done
}
