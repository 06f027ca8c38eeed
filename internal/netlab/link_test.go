package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// echoes fails the test unless the other end sends back what it gets.
func echoes(t testing.TB, conn net.Conn) {
	t.Helper()
	must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err := conn.Write([]byte("hello"))
	must(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(conn, got)
	must(t, err)
	if string(got) != "hello" {
		t.Errorf("got %q back", got)
	}
}

func TestEchoOverLink(t *testing.T) {
	a, b := newPair(t, newLab(t))
	must(t, b.Echo(7))
	for _, network := range []string{"tcp", "udp"} {
		for _, address := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
			t.Run(network+" "+address, func(t *testing.T) {
				conn, err := a.Dial(t.Context(), network, address)
				must(t, err)
				defer conn.Close()
				echoes(t, conn)
			})
		}
	}
	if got := b.Accepted(); got != 2 {
		t.Errorf("%d connections were accepted, want 2", got)
	}
}

// A connected UDP socket gets no answer but from the address it asked, so this proves where it
// comes from.
func TestEchoFromAnyAddressThroughRouter(t *testing.T) {
	client, _, server := newRouted(t, newLab(t))
	must(t, server.Echo(443))
	for _, network := range []string{"tcp", "udp"} {
		for _, address := range []string{"198.18.0.1:443", "198.19.255.255:443", "[2001:db8:f::1]:443", "[2001:db8:f:ffff::9]:443"} {
			t.Run(network+" "+address, func(t *testing.T) {
				conn, err := client.Dial(t.Context(), network, address)
				must(t, err)
				defer conn.Close()
				echoes(t, conn)
			})
		}
	}
}

func TestDialFails(t *testing.T) {
	a, b := newPair(t, newLab(t))
	must(t, a.Route("198.18.0.0/15", "192.0.2.2"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// b does not forward, and has no such address: the packet is lost.
	if _, err := a.Dial(ctx, "tcp", "198.18.0.1:80"); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's deadline", err)
	}
	for _, address := range []string{"localhost:7", "192.0.2.2", "192.0.2.2:7", "203.0.113.1:7"} {
		if conn, err := a.Dial(t.Context(), "tcp", address); err == nil {
			t.Errorf("connected to %s: %v", address, conn.RemoteAddr())
		}
	}
	if _, err := b.Dial(ctx, "tcp", "192.0.2.1:7"); err == nil {
		t.Error("connected although the context is over")
	}
	if got, home := whereAmI(t), os.Getenv(outsideEnv); got == home {
		t.Errorf("a failed dial left the test in %s", got)
	}
}

func TestListen(t *testing.T) {
	a, b := newPair(t, newLab(t))
	listener, err := b.Listen("tcp", "[2001:db8::2]:0")
	must(t, err)
	defer listener.Close()
	packets, err := b.ListenPacket("udp", "192.0.2.2:0")
	must(t, err)
	defer packets.Close()

	conn, err := a.Dial(t.Context(), "tcp", listener.Addr().String())
	must(t, err)
	defer conn.Close()
	accepted, err := listener.Accept()
	must(t, err)
	defer accepted.Close()
	if got, want := accepted.RemoteAddr().String(), conn.LocalAddr().String(); got != want {
		t.Errorf("connected from %s, not %s", got, want)
	}

	client, err := a.Dial(t.Context(), "udp", packets.LocalAddr().String())
	must(t, err)
	defer client.Close()
	_, err = client.Write([]byte("hello"))
	must(t, err)
	_, from, err := packets.ReadFrom(make([]byte, 10))
	must(t, err)
	if got, want := from.String(), client.LocalAddr().String(); got != want {
		t.Errorf("packet from %s, not %s", got, want)
	}

	if _, err := a.Listen("tcp", "192.0.2.2:0"); err == nil {
		t.Error("listens on another host's address")
	}
}

func TestBridge(t *testing.T) {
	lab := newLab(t)
	hub := newTestHost(t, lab, "switch")
	var hosts []*Host
	for i, name := range []string{"a", "b", "c"} {
		h := newTestHost(t, lab, name)
		must(t,
			lab.Link(h, "eth0", hub, name),
			h.Addr("eth0", fmt.Sprintf("192.0.2.%d/24", i+1)), h.Addr("eth0", fmt.Sprintf("2001:db8::%d/64", i+1)),
			h.Echo(7),
		)
		hosts = append(hosts, h)
	}
	must(t, hub.Bridge("br0", "a", "b", "c"))
	for _, h := range hosts {
		for _, address := range []string{"192.0.2.1:7", "192.0.2.3:7", "[2001:db8::2]:7"} {
			conn, err := h.Dial(t.Context(), "tcp", address)
			must(t, err)
			echoes(t, conn)
			conn.Close()
		}
	}
	if err := hub.Bridge("br1", "none"); err == nil {
		t.Error("a port that is not there was taken")
	}
}

func TestLinkToItself(t *testing.T) {
	lab := newLab(t)
	a := newTestHost(t, lab, "a")
	must(t, lab.Link(a, "one", a, "other"), a.Addr("one", "192.0.2.1/31"), a.Addr("other", "192.0.2.0/31"))
}

func TestManyShortConnections(t *testing.T) {
	const workers, each = 20, 100
	client, _, server := newRouted(t, newLab(t))
	must(t, server.Echo(80))
	start := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				conn, err := client.Dial(t.Context(), "tcp", "198.18.7.7:80")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write([]byte("x"))
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					t.Error(err)
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	if got := server.Accepted(); got != workers*each {
		t.Errorf("%d connections were accepted, want %d", got, workers*each)
	}
	t.Logf("%.0f connections a minute", workers*each/time.Since(start).Minutes())
}

// A later lab's connections would end with those of an earlier one on the same network.
func TestLinksHereHaveIndexesOfTheirOwn(t *testing.T) {
	seen := map[int]bool{}
	for range 2 {
		lab := newLab(t)
		a, err := lab.Here()
		must(t, err)
		must(t, lab.Link(a, "toB", newTestHost(t, lab, "b"), "toA"))
		link, err := a.routes.LinkByName("toB")
		must(t, err)
		if index := link.Attrs().Index; seen[index] {
			t.Errorf("index %d comes again", index)
		} else {
			seen[index] = true
		}
		must(t, lab.Close())
	}
}
