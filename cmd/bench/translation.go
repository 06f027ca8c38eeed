package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// routedTraffic: connections, packets and bytes through translation, against what else a
// gateway can be: one whose guard has no routes and that masquerades, as routes do and as most
// gateways have to; one that translates as well, by the kernel's own rules; and one that leaves
// packets as they are. And what goes untranslated through one that has routes.
func routedTraffic(b *bench) error {
	beside := func(name, rules string) *variant {
		v := guardOn(b.Ours, "on_exit remove")
		v.name, v.nft = name, rules
		return v
	}
	w, err := newWorld(routedOn(b.Ours, "on_exit remove"), beside("guard-on", ""), beside("masquerading", masqueradeRules), beside("translating", translateRules))
	if err != nil {
		return err
	}
	defer w.close()
	// What goes to the upper half of the addresses goes by way of the others.
	routed, plain, masquerading, translating := w.servers[0], w.servers[1], w.servers[2], w.servers[3]
	err = errors.Join(
		w.client.Route("11.128.0.0/10", plain.lan()),
		w.client.Route("11.192.0.0/10", masquerading.lan()),
		w.client.Route(translatedAddr.String()+"/32", translating.lan()),
		w.client.Route(fmt.Sprintf("%d.0.0.0/8", mappedPool), routed.lan()),
		routed.start(), plain.start(), masquerading.start(), translating.start(),
	)
	if err != nil {
		return err
	}
	ways := []struct {
		name   string
		server *server
		number uint32
		ttl    int
		real   netip.Addr // that the name has
		target netip.Addr // that the client is told
	}{
		{name: "routed", server: routed, number: 0x010203, ttl: 86400},
		{name: plain.name, server: plain, number: 0x810203, ttl: 86400},
		{name: masquerading.name, server: masquerading, number: 0xc10203, ttl: 86400},
		{name: translating.name, server: translating, number: 0xc10204, ttl: 86400},
		{name: "beside", server: routed, number: 0x010204, ttl: unroutedTTL},
	}
	for i := range ways {
		way := &ways[i]
		if way.target, err = way.server.ask(way.number, way.ttl); err != nil {
			return err
		}
		way.real = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 11<<24|way.number)))
		if mapped := way.target.As4()[0] == mappedPool; mapped != (way.name == "routed") {
			return fmt.Errorf("%s: the name has %v", way.name, way.target)
		}
		if way.server == translating {
			way.target = translatedAddr
		}
	}
	acceptor, err := startAcceptor(w.world)
	if err != nil {
		return err
	}
	defer acceptor.close()
	drain, err := startDrain(w.world)
	if err != nil {
		return err
	}
	defer drain.close()

	kinds := []struct {
		row, what, unit string
		measure         func(target, real netip.Addr) (float64, error)
	}{
		{"routes tcp", "new TCP connections", "/s", func(a, _ netip.Addr) (float64, error) { return connect(w.client, a.As4(), shortTurn) }},
		{"routes packets", "small UDP packets of one flow", "/s", func(a, real netip.Addr) (float64, error) { return flood(w.client, w.world, a, real, shortTurn) }},
		{"routes bytes", "one TCP stream", "MB/s", func(a, _ netip.Addr) (float64, error) { return pour(w.client, a, shortTurn) }},
	}
	for range b.rounds * int(turn/shortTurn) {
		for _, kind := range kinds {
			for _, way := range ways {
				rate, err := kind.measure(way.target, way.real)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", kind.what, way.name, err)
				}
				b.report.sample(kind.row, way.name, sample{PerSecond: rate})
			}
		}
	}
	for _, kind := range kinds {
		compared := func(what, ours, reference string) row {
			r := b.report.compare(kind.row, ours, reference, perSecond)
			r.What, r.Unit = kind.what+", "+what, kind.unit
			return r
		}
		b.report.add(
			compared("translated", "routed", translating.name).atLeast(0.95),
			compared("translated", "routed", masquerading.name),
			compared("translated", "routed", plain.name),
			compared("by the kernel's own rules", translating.name, plain.name),
			compared("untranslated beside a route", "beside", plain.name),
		)
	}
	return nil
}

// shortTurn is a turn's length where one hardly differs from the next but by what else goes
// on in the machine.
const shortTurn = turn / 5

// translatedAddr is translated by the kernel's own rules.
var translatedAddr = netip.AddrFrom4([4]byte{9, 1, 2, 4})

const masqueradeRules = `table ip plain { chain out { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }; }`

// translateRules do what a route does.
var translateRules = fmt.Sprintf(`table ip plain {
	map real { type ipv4_addr : ipv4_addr; elements = { %v : 11.193.2.4 }; }
	chain in { type nat hook prerouting priority dstnat; ip daddr 9.0.0.0/8 dnat ip to ip daddr map @real; }
	chain out { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
}`, translatedAddr)

const floodPort = 11

// flood sends packets of one flow to the real address for a time, and returns how many a second arrived. Nobody
// reads them: the way there is all that takes time. The first one is answered, so the flow is
// a live connection.
func flood(from, to *netlab.Host, addr, real netip.Addr, lasting time.Duration) (float64, error) {
	there, err := udpSocket(to, netip.AddrPortFrom(real, floodPort), noAddress, receiveTimeout(1_000_000))
	if err != nil {
		return 0, err
	}
	defer unix.Close(there)
	here, err := udpSocket(from, noAddress, netip.AddrPortFrom(addr, floodPort), receiveTimeout(1_000_000))
	if err != nil {
		return 0, err
	}
	defer unix.Close(here)
	if err := greet(here, there); err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(there, unix.SOL_SOCKET, unix.SO_RCVBUF, 0) // the least there is
	out := newPackets(perCall, false)
	for i := range out.bufs {
		out.setLen(i, copy(out.bufs[i], probePayload))
	}
	before, start := bufferErrors(to), time.Now()
	for time.Since(start) < lasting {
		out.send(here, perCall)
	}
	elapsed := time.Since(start)
	time.Sleep(20 * time.Millisecond) // for what is on its way
	arrived := bufferErrors(to) - before
	if arrived == 0 {
		return 0, errors.New("no packet has arrived")
	}
	return float64(arrived) / elapsed.Seconds(), nil
}

// greet sends a packet from here, and one back from there.
func greet(here, there int) error {
	var buf [1]byte
	if _, err := unix.Write(here, buf[:]); err != nil {
		return err
	}
	_, sender, err := unix.Recvfrom(there, buf[:], 0)
	if err != nil {
		return err
	}
	if err := unix.Sendto(there, buf[:], 0, sender); err != nil {
		return err
	}
	_, err = unix.Read(here, buf[:])
	return err
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
