package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// routedTraffic: connections, packets and bytes through translation, against a gateway
// that has no routes, and one that has none but masquerades, as routes do and most gateways;
// and what goes untranslated through one that has routes.
func routedTraffic(b *bench) error {
	masquerading := guardOn(b.Ours, "on_exit remove")
	masquerading.name, masquerading.nft = "masquerading", masqueradeRules
	w, err := newWorld(routedOn(b.Ours, "on_exit remove"), guardOn(b.Ours, "on_exit remove"), masquerading)
	if err != nil {
		return err
	}
	defer w.close()
	// What goes to the upper half of the addresses goes by way of the others.
	routed, plain, masq := w.servers[0], w.servers[1], w.servers[2]
	err = errors.Join(
		w.client.Route("11.128.0.0/10", plain.lan()),
		w.client.Route("11.192.0.0/10", masq.lan()),
		w.client.Route(fmt.Sprintf("%d.0.0.0/8", mappedPool), routed.lan()),
		routed.start(), plain.start(), masq.start(),
	)
	if err != nil {
		return err
	}
	ways := []struct {
		name   string
		server *server
		number uint32
		ttl    int
		target netip.Addr
	}{
		{name: "routed", server: routed, number: 0x010203, ttl: 86400},
		{name: "guard-on", server: plain, number: 0x810203, ttl: 86400},
		{name: masq.name, server: masq, number: 0xc10203, ttl: 86400},
		{name: "beside", server: routed, number: 0x010204, ttl: unroutedTTL},
	}
	for i := range ways {
		way := &ways[i]
		if way.target, err = way.server.ask(way.number, way.ttl); err != nil {
			return err
		}
		if mapped := way.target.As4()[0] == mappedPool; mapped != (way.name == "routed") {
			return fmt.Errorf("%s: the name has %v", way.name, way.target)
		}
	}
	acceptor, err := startAcceptor(w.world)
	if err != nil {
		return err
	}
	defer acceptor.close()
	sink, err := startSink(w.world)
	if err != nil {
		return err
	}
	defer sink.close()
	drain, err := startDrain(w.world)
	if err != nil {
		return err
	}
	defer drain.close()

	kinds := []struct {
		row, what, unit string
		measure         func(target netip.Addr) (float64, error)
	}{
		{"routes tcp", "new TCP connections", "/s", func(a netip.Addr) (float64, error) { return connect(w.client, a.As4(), turn) }},
		{"routes packets", "small UDP packets of one flow", "/s", func(a netip.Addr) (float64, error) { return sink.flood(w.client, a, turn) }},
		{"routes bytes", "one TCP stream", "MB/s", func(a netip.Addr) (float64, error) { return pour(w.client, a, turn) }},
	}
	for range b.rounds {
		for _, kind := range kinds {
			for _, way := range ways {
				rate, err := kind.measure(way.target)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", kind.what, way.name, err)
				}
				b.report.sample(kind.row, way.name, sample{PerSecond: rate})
			}
		}
	}
	for _, kind := range kinds {
		translated := b.report.compare(kind.row, "routed", "guard-on", perSecond)
		translated.What, translated.Unit = kind.what+", translated", kind.unit
		nat := b.report.compare(kind.row, "routed", masq.name, perSecond)
		nat.What, nat.Unit = translated.What, kind.unit
		beside := b.report.compare(kind.row, "beside", "guard-on", perSecond)
		beside.What, beside.Unit = kind.what+", untranslated beside a route", kind.unit
		b.report.add(translated.atLeast(0.95), nat, beside)
	}
	return nil
}

const masqueradeRules = `table ip plain { chain out { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }; }`

// flood sends packets to the sink for a time, and returns how many a second arrived.
func (s *sink) flood(from *netlab.Host, to netip.Addr, lasting time.Duration) (float64, error) {
	fd, err := udpSocket(from, noAddress, netip.AddrPortFrom(to, probePort))
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	out := newPackets(perCall, false)
	for i := range out.bufs {
		out.setLen(i, copy(out.bufs[i], probePayload))
	}
	before, start := s.arrived(), time.Now()
	for time.Since(start) < lasting {
		out.send(fd, perCall)
	}
	elapsed := time.Since(start)
	time.Sleep(20 * time.Millisecond) // for what is on its way
	arrived := s.arrived() - before
	if arrived == 0 {
		return 0, errors.New("no packet has arrived")
	}
	return float64(arrived) / elapsed.Seconds(), nil
}

const drainPort = 10

// pour sends bytes over one connection for a time, and returns how many million a second.
func pour(from *netlab.Host, to netip.Addr, lasting time.Duration) (float64, error) {
	conn, err := from.Dial(context.Background(), "tcp", netip.AddrPortFrom(to, drainPort).String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buf := make([]byte, 256<<10)
	start, sent := time.Now(), 0
	for time.Since(start) < lasting {
		_ = conn.SetDeadline(time.Now().Add(lostAfter))
		n, err := conn.Write(buf)
		if err != nil {
			return 0, err
		}
		sent += n
	}
	return float64(sent) / 1e6 / time.Since(start).Seconds(), nil
}

// drain reads what is poured into it.
type drain struct {
	net.Listener
	wg sync.WaitGroup
}

func startDrain(h *netlab.Host) (*drain, error) {
	l, err := h.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", drainPort))
	if err != nil {
		return nil, err
	}
	d := &drain{Listener: l}
	d.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.wg.Go(func() {
				defer conn.Close()
				buf := make([]byte, 256<<10)
				for err == nil {
					_, err = conn.Read(buf)
				}
			})
		}
	})
	return d, nil
}

func (d *drain) close() {
	_ = d.Close()
	d.wg.Wait()
}
