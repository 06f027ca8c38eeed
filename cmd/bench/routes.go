package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// mappedPool is the first byte of every mapped address.
	mappedPool = 10
	// unroutedTTL is that of names without a route, on servers that have one.
	unroutedTTL = 1800
)

// routedOn is a guard that translates: but for the route it is that of guardOn.
func routedOn(program string, options ...string) *variant {
	return &variant{name: "routed", program: program, mapped: true, config: func(s *server) string {
		route := fmt.Sprintf("max_mappings 2097152\n\t\troute *.0.bench *.60.bench *.3600.bench *.86400.bench {\n\t\t\tpool %d.0.0.0/8\n\t\t\tfamily ipv4\n\t\t\tttl 1s 24h\n\t\t\tstate %s\n\t\t}", mappedPool, s.bookPath())
		return guardOn(program, slices.Concat(options, []string{route})...).config(s)
	}}
}

func (s *server) bookPath() string { return s.conf + ".db" }

// routedAnswers: what it adds to an answer that its addresses are mapped: cached and new
// ones under load, and a new one alone.
func routedAnswers(b *bench) error {
	const names = 1000
	variants := []*variant{routedOn(b.Ours, "on_exit remove"), guardOn(b.Ours, "on_exit remove"), guardOff(b.Ours)}
	hot := load{ttl: 3600, window: inFlight, numbers: again(0, names), lasting: turn}
	cold := load{ttl: 60, window: inFlight, numbers: never, lasting: turn}
	alone := load{ttl: 60, window: 1, sockets: 1, numbers: never, lasting: turn}
	for _, kind := range []struct {
		row  string
		warm load
		load
	}{
		{"routes hot", load{ttl: 3600, window: 32, numbers: again(0, names), count: 4 * names}, hot},
		{"routes cold", load{ttl: 60, window: inFlight, numbers: never, lasting: time.Second}, cold},
		{"routes latency", alone, alone},
	} {
		if err := b.takeTurns(kind.row, variants, kind.warm, kind.load); err != nil {
			return fmt.Errorf("%s: %w", kind.row, err)
		}
	}
	for _, reference := range []string{"guard-on", "guard-off"} {
		b.comparedOf("routes hot", "cached names", "routed", reference, 0)
		b.comparedOf("routes cold", "new names", "routed", reference, 0)
	}
	disk, err := diskTime(pick(b, 1000, 200))
	if err != nil {
		return err
	}
	for _, reference := range []string{"guard-on", "guard-off"} {
		r := b.report.compare("routes latency", "routed", reference, func(s sample) float64 { return s.P50 })
		r.What, r.Unit = "p50 of a new name's answer, alone", "us"
		r.Note = fmt.Sprintf("two pages that the disk must have, one after the other, as for a lone new name: p50 %.0f us", micros(disk.quantile(0.5)))
		b.report.add(r)
	}
	return nil
}

// diskTime times what the book of mapped addresses cannot do without: a page, and then
// another one, are on the disk where the books of servers are.
func diskTime(times int) (*histogram, error) {
	dir, err := os.MkdirTemp("", "bench-disk")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "pages"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const pages = 1024
	if _, err := f.Write(make([]byte, pages*4096)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	page := make([]byte, 4096)
	h := &histogram{}
	for i := range times {
		start := time.Now()
		for k := range 2 {
			page[0]++
			if _, err := f.WriteAt(page, int64((2*i+k)%pages)*4096); err != nil {
				return nil, err
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return nil, os.NewSyscallError("fdatasync", err)
			}
		}
		h.add(int64(time.Since(start)))
	}
	return h, nil
}
