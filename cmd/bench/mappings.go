package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// mappings: what half a million mapped addresses cost, against a guard that has as many
// grants and no routes: memory of the process and of the kernel, and a restart.
func mappings(b *bench) error {
	w, err := newWorld(routedOn(b.Ours, "on_exit keep").with(observed...), guardOn(b.Ours, "on_exit keep").with(observed...))
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.client.Route(fmt.Sprintf("%d.0.0.0/8", mappedPool), w.servers[0].lan()); err != nil {
		return err
	}
	n := pick(b, 500_000, 50_000)
	var names uint32
	for i, s := range w.servers {
		if err := s.start(); err != nil {
			return err
		}
		first, err := preload(s, n, 1)
		if err != nil {
			return err
		}
		if i == 0 {
			names = first
		}
		if _, err := s.get(pprofPort, "/debug/pprof/heap?gc=1"); err != nil { // collects garbage
			return err
		}
		m, err := s.metrics()
		if err != nil {
			return err
		}
		b.report.sample("routes memory", s.name, sample{More: map[string]float64{
			"heap": m["go_memstats_heap_inuse_bytes"], "resident memory": m["process_resident_memory_bytes"]}})
	}
	b.mappingsNeed("routes memory", "heap", n)
	b.mappingsNeed("routes memory", "resident memory", n)
	if info, err := os.Stat(w.servers[0].bookPath()); err == nil {
		b.report.add(row{Name: "routes memory", What: "the file of mapped addresses", Unit: "MB", Ours: float64(info.Size()) / 1e6})
	}
	if err := b.restartMapped(w, names, n); err != nil {
		return err
	}
	for _, s := range w.servers {
		bytes, err := s.tableMemory()
		if err != nil {
			return err
		}
		b.report.sample("routes kernel", s.name, sample{More: map[string]float64{"kernel memory": bytes}})
	}
	b.mappingsNeed("routes kernel", "kernel memory", n)
	return nil
}

// mappingsNeed adds a row for memory of a kind.
func (b *bench) mappingsNeed(experiment, kind string, n int) {
	r := b.report.compare(experiment, "routed", "guard-on", func(s sample) float64 { return s.More[kind] / 1e6 })
	r.Name, r.What, r.Unit = "routes memory", fmt.Sprintf("%s, %d mapped addresses of as many names", kind, n), "MB"
	r.Note = fmt.Sprintf("%.0f bytes a mapped address", (r.Ours-r.Reference)*1e6/float64(n))
	b.report.add(r)
}

// tableMemory stops the server and removes what it has left in the kernel, and returns how
// many bytes that frees. (While it is filled for minutes, others on the machine need memory
// as well.)
func (s *server) tableMemory() (bytes float64, err error) {
	if err := s.Stop(); err != nil {
		return 0, err
	}
	const settled = 3 * time.Second // what is removed is freed a moment later
	time.Sleep(settled)
	before := kernelMemory()
	if err := removeTable(s.Host); err != nil {
		return 0, err
	}
	time.Sleep(settled)
	return before - kernelMemory(), nil
}

// restartMapped restarts both in turn, while packets go to what is mapped. Names have the
// same addresses afterwards.
func (b *bench) restartMapped(w *world, names uint32, n int) error {
	routed := w.servers[0]
	const some = 100
	addresses := func() (all [some]netip.Addr, err error) {
		for i := range all {
			if all[i], err = routed.ask(names+uint32(i*(n/some)), 86400); err != nil {
				return all, err
			}
		}
		return all, nil
	}
	before, err := addresses()
	if err != nil {
		return err
	}
	sink, err := startSink(w.world)
	if err != nil {
		return err
	}
	defer sink.close()
	traffic := w.startTraffic(mappedPool<<24+2, uint32(n/4)) // of those that were given out first
	for range pick(b, 5, 2) {
		for _, s := range w.servers {
			err := s.Stop()
			for _, step := range []struct {
				row string
				do  func() error
			}{
				{"routes restart", func() error { return s.launch(s.variant) }},
				{"routes reload", s.reload},
			} {
				start := time.Now()
				if err == nil {
					err = step.do()
				}
				b.report.sample(step.row, s.name, sample{Value: time.Since(start).Seconds()})
			}
			if err != nil {
				traffic.end()
				return fmt.Errorf("%s: %w: %s", s.name, err, s.Output())
			}
		}
	}
	time.Sleep(time.Second)
	traffic.end()
	arrived := sink.await(traffic.sent)
	after, err := addresses()
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("names have other addresses after the restart: %v, and were %v", after, before)
	}
	for _, step := range []struct{ row, what string }{{"routes restart", "until it guards and answers"}, {"routes reload", "until it is in force"}} {
		r := b.report.compare(step.row, "routed", "guard-on", func(s sample) float64 { return s.Value })
		r.What, r.Unit = fmt.Sprintf("%s, %d mapped addresses", step.what, n), "s"
		b.report.add(r)
	}
	b.report.add(row{Name: "routes restart", What: "packets to mapped addresses lost meanwhile", Ours: float64(traffic.sent - min(arrived, traffic.sent)),
		Note: fmt.Sprintf("of %d", traffic.sent)}.atMost(0, ""))
	return nil
}

// kernelMemory is the whole machine's, in bytes, of the kinds that sets are made of.
func kernelMemory() (bytes float64) {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		var kB float64
		switch kind, rest, _ := strings.Cut(line, ":"); kind {
		case "SUnreclaim", "VmallocUsed":
			fmt.Sscan(rest, &kB)
			bytes += kB * 1024
		}
	}
	return bytes
}
