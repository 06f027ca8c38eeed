package nft

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A mapped address never leads to this machine itself, wherever it listens and whoever
// asks: rules for its own doors would take him for somebody else.
func TestRoutedToOwnAddress(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	defer n.dump()
	if err := n.here.Echo(whoPort); err != nil {
		t.Fatal(err)
	}
	owns := []string{from4, from6, gateway4, gateway6, "10.0.1.1", "fd00:1::1", "127.0.0.1", "::1", "127.1.2.3", egressOne4, viaTun6}
	number := 0
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			for _, own := range owns {
				number++
				real := netip.MustParseAddr(own)
				m4, m6 := mappedAddrs(number)
				mapped := m6
				if real.Is4() {
					mapped = m4
				}
				if err := n.Map(t.Context(), []backend.Mapping{{Route: "open", Mapped: mapped, Real: real}}, time.Minute); err != nil {
					t.Fatal(err)
				}
				n.openMapped(number, s.holder)
				n.openReal(real, s.holder) // not by any grant
				addr := netip.AddrPortFrom(mapped, whoPort).String()
				if s.Host == n.client && real.IsLoopback() {
					n.unreached(s, addr) // as from a martian
				} else {
					n.refused(s, addr)
				}
			}
		})
	}
}

func (n *network) openReal(a netip.Addr, holders ...backend.Scope) {
	n.Helper()
	for _, h := range holders {
		if err := n.Grant(n.Context(), []backend.Grant{{Scope: h, Addr: a, Until: time.Now().Add(time.Hour)}}, time.Minute); err != nil {
			n.Fatal(err)
		}
	}
}

// outRules have routes by the second uplink.
func outRules(t *testing.T) backend.Rules {
	r := routedRules(t)
	r.Routes = append(r.Routes,
		backend.Route{Name: "tun", Pools: poolsOfTests, Out: "tun0", Mark: 77},
		backend.Route{Name: "out", Pools: poolsOfTests, Out: "tun0"},
		backend.Route{Name: "mark", Pools: poolsOfTests, Mark: 77})
	return r
}

// Marked traffic goes where the routing table for the mark says; and with a way out, it goes
// no other way, also where that was its way when it began.
func TestRoutedOut(t *testing.T) {
	for _, path := range []string{"forwarded", "local"} {
		t.Run(path, func(t *testing.T) {
			n := routedNetwork(t)
			n.guard(outRules(t))
			defer n.dump()
			n.uplink(77)
			s := n.senders()[path]
			for i, route := range []string{"tun", "out", "mark", "masked"} {
				n.mapTo(route, i+1, 1)
				n.openMapped(i+1, s.holder)
			}
			n.seen(s, 1, 1, viaTun4, viaTun6)
			n.seen(s, 3, 1, viaTun4, viaTun6)
			n.seen(s, 4, 1, from4, from6)
			n.unreached(s, toMapped(2, whoPort)...)

			live := n.dials(s, "tcp", toMapped(1, 443)...)
			live = append(live, n.dials(s, "udp", toMapped(1, 443)...)...)
			sniffed := n.counts()
			n.noUplink()
			for _, c := range live {
				if err := echoSoon(c); err == nil {
					t.Errorf("%v to %v still gets through", c.LocalAddr(), c.RemoteAddr())
				}
			}
			n.unreached(s, toMapped(1, whoPort)...)
			if leaked := sniffed(); leaked > 0 {
				t.Errorf("%d packets have left by the other interface", leaked)
			}
			n.seen(s, 4, 1, from4, from6)

			n.uplinkAgain()
			for _, c := range live[:2] {
				backendtest.Eventually(t, "a connection goes on when its way out is back", func() bool { return echo(c) == nil })
			}
			n.seen(s, 1, 1, viaTun4, viaTun6)
		})
	}
}

// echoSoon is echo for who expects nothing.
func echoSoon(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// dials connects, and says something.
func (n *network) dials(from speaker, network string, addrs ...string) (all []net.Conn) {
	n.Helper()
	for _, addr := range addrs {
		c, err := from.Dial(n.Context(), network, addr)
		if err != nil {
			n.Fatal(err)
		}
		n.Cleanup(func() { c.Close() })
		if err := echo(c); err != nil {
			n.Fatalf("%s to %s over %s: %v", from.Name(), addr, network, err)
		}
		all = append(all, c)
	}
	return all
}

// counts returns what counts the IP packets to the first addresses, mapped or real, that
// arrive by the first uplink from now on.
func (n *network) counts() func() int {
	n.Helper()
	return n.countsTo(append(both(addrs(1)), both(mappedAddrs(1))...))
}

func (n *network) countsTo(targets []netip.Addr) func() int {
	n.Helper()
	s, err := n.world.Sniff("eth0")
	if err != nil {
		n.Fatal(err)
	}
	found, marked, ctx := make(chan int, 1), make(chan bool, 1<<12), n.Context()
	go func() {
		count := 0
		for {
			f, err := s.Next(ctx)
			if err != nil {
				found <- count
				return
			}
			var to netip.Addr
			switch {
			case len(f) >= 34 && f[12] == 8 && f[13] == 0:
				to, _ = netip.AddrFromSlice(f[30:34])
			case len(f) >= 54 && f[12] == 0x86 && f[13] == 0xdd:
				to, _ = netip.AddrFromSlice(f[38:54])
			case len(f) >= 14 && binary.BigEndian.Uint16(f[12:]) == netlab.EthertypeMark:
				marked <- true
			}
			if slices.Contains(targets, to) {
				count++
			}
		}
	}()
	return func() int {
		n.Helper()
		for range 2 { // what is on its way arrives before
			sent, err := n.here.Mark("wan")
			if err != nil {
				n.Fatal(err)
			}
			for range sent {
				select {
				case <-marked:
				case <-time.After(20 * time.Second):
					n.Fatal("what is sent to the world does not arrive")
				}
			}
		}
		s.Close()
		return <-found
	}
}

// What leaves by a tunnel leaves by nothing else, whatever becomes of its address or its
// route, and whoever runs: packets of live connections wait, and go on when there is a route
// again.
func TestRoutedBound(t *testing.T) {
	for _, path := range []string{"forwarded", "local"} {
		t.Run(path, func(t *testing.T) {
			n := routedNetwork(t)
			r := outRules(t)
			n.guard(r)
			defer n.dump()
			n.uplink(77)
			s := n.senders()[path]
			n.openMapped(1, s.holder)
			sniffed := n.counts()
			without := r
			without.Routes = r.Routes[:4]
			bound := func() int {
				t.Helper()
				return strings.Count(nft(t, "list", "set", "inet", r.Table, "bound4")+nft(t, "list", "set", "inet", r.Table, "bound6"), "elements")
			}
			for _, route := range []string{"tun", "mark"} {
				n.mapTo(route, 1, 1)
				live := n.dialsBoth(s, toMapped(1, 443)...)
				n.keepsSending(s, toMapped(1, 443)...)
				n.unmap(1)
				n.talks(false, live...)
				n.connections(nil)
				n.talks(false, live...)
				n.mapTo(route, 1, 1)
				n.comesBack(live...)

				n.reopen(without) // its route goes
				n.talks(false, live...)
				n.refused(s, toMapped(1, whoPort)...)
				n.reopen(r)
				n.talks(false, live...)
				n.mapTo(route, 1, 1)
				n.comesBack(live...)

				if err := n.Close(backend.Keep); err != nil {
					t.Fatal(err)
				}
				n.guard(without) // and the next process has never heard of it
				n.talks(false, live...)
				n.reopen(r)
				n.mapTo(route, 1, 1)
				n.comesBack(live...)

				n.unmap(1)
				if bound() != 2 {
					t.Error("it is bound no more")
				}
				n.connections(nil)
				if bound() != 2 {
					t.Error("it is bound no more, and there are connections")
				}
				n.connections(func(netip.Addr, netip.Addr) bool { return true })
				if bound() != 0 {
					t.Error("it is bound for ever")
				}
			}
			if leaked := sniffed(); leaked > 0 {
				t.Errorf("%d packets have left by the other interface", leaked)
			}
			// What moves to another route lives on, by its way.
			n.mapTo("masked", 1, 1)
			if bound() != 0 {
				t.Error("it is bound")
			}
			n.seen(s, 1, 1, from4, from6)
		})
	}
}

// keepsSending sends packets of live connections from now on, as fast as it can.
func (n *network) keepsSending(from speaker, addrs ...string) {
	ctx := n.Context()
	for _, c := range n.dials(from, "udp", addrs...) {
		_ = c.SetDeadline(time.Time{})
		go func() {
			for ctx.Err() == nil {
				_, err := c.Write([]byte("x")) // others are refusals
				switch {
				case errors.Is(err, os.ErrDeadlineExceeded):
					n.Error(err)
					return
				case errors.Is(err, net.ErrClosed):
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
	}
}

func (n *network) reopen(r backend.Rules) {
	n.Helper()
	if err := n.Open(r); err != nil {
		n.Fatal(err)
	}
}

// comesBack waits until connections go on.
func (n *network) comesBack(conns ...net.Conn) {
	n.Helper()
	for _, c := range conns {
		backendtest.Eventually(n.T, "a connection goes on", func() bool { return echoSoon(c) == nil })
		for { // answers that nobody has waited for
			_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := c.Read(make([]byte, 100)); err != nil {
				break
			}
		}
	}
}
