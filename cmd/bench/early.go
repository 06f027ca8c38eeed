package main

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// early: a packet follows each answer at once. One that the guard refuses had
// its address sent before the grant was in force.
func early(b *bench) error {
	// Short leases, so that a million names fit into the set one after the other.
	w, s, err := newServer(guardOn(b.Ours, "on_exit remove", "ttl 5s 24h", "margin 5s"))
	if err != nil {
		return err
	}
	defer w.close()
	sink, err := startSink(w.world)
	if err != nil {
		return err
	}
	defer sink.close()

	// The gauge first: what nobody has resolved is refused, and counted.
	const unresolved = 100
	if err := w.unresolvedProbes(unresolved); err != nil {
		return err
	}
	before, err := rejected(s.Host)
	if err != nil {
		return err
	}
	if before != unresolved || sink.arrived() != 0 {
		return fmt.Errorf("of %d packets to addresses that nobody resolved %d were refused, %d arrived", unresolved, before, sink.arrived())
	}

	total := uint64(pick(b, 1_000_000, 60_000))
	var sent uint64
	for _, window := range []int{1, 8, 64} {
		l := load{ttl: 5, window: window, numbers: never, count: total/3 + total%3*uint64(1/window), probe: true}
		_, r, err := measure(s, l)
		if err != nil {
			return err
		}
		sent += r.Probes
		arrived := sink.await(sent)
		after, err := rejected(s.Host)
		if err != nil {
			return err
		}
		if arrived+after-before != sent {
			return fmt.Errorf("of %d packets %d arrived and %d were refused", sent, arrived, after-before)
		}
		b.report.sample("early", fmt.Sprintf("window %d", window), sample{
			PerSecond: r.perSecond(), Sent: r.Probes, Bad: after - before, More: map[string]float64{"arrived": float64(sink.arrived())}})
	}
	after, err := rejected(s.Host)
	if err != nil {
		return err
	}
	r := row{Name: "early", What: "packets refused that followed their answer at once", Ours: float64(after - before),
		Note: fmt.Sprintf("of %d, with 1, 8 and 64 questions in flight; %d arrived", sent, sink.arrived())}
	b.report.add(r.atMost(0, ""))
	return nil
}

func (w *world) unresolvedProbes(n int) error {
	fd, err := udpSocket(w.client, noAddress, noAddress)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range n {
		to := unix.SockaddrInet4{Port: probePort}
		binary.BigEndian.PutUint32(to.Addr[:], address4(addresses-1-uint32(i)))
		if err := unix.Sendto(fd, probePayload, 0, &to); err != nil {
			return err
		}
	}
	time.Sleep(50 * time.Millisecond)
	return nil
}
