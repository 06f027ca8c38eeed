package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// connections: new TCP connections through a gateway whose set has a million
// addresses, against one whose set has one.
func connections(b *bench) error {
	one, many := withRuleset(b.Ours), withRuleset(b.Ours)
	one.name, many.name = "one-grant", "many-grants"
	w, err := newWorld(many, one)
	if err != nil {
		return err
	}
	defer w.close()
	// What goes to the upper half of the addresses goes by way of the second.
	if err := w.client.Route("11.128.0.0/9", w.servers[1].lan()); err != nil {
		return err
	}
	n := million(b)
	targets := map[string][4]byte{"many-grants": {11, 1, 2, 3}, "one-grant": {11, 129, 2, 3}}
	for _, s := range w.servers {
		if err := s.leaveRuleset(); err != nil {
			return err
		}
		size, times := 1, 1
		address := uint32(11<<24 | 129<<16 | 2<<8 | 3)
		if s.name == "many-grants" {
			size, times, address = 1000, n/1000, 11<<24
		}
		t, err := newTransactor(s.Host, size, time.Hour)
		if err != nil {
			return err
		}
		t.next = func() uint32 { address++; return address - 1 }
		for range times {
			if _, err := t.commit(); err != nil {
				return err
			}
		}
		t.close()
	}
	l, err := startAcceptor(w.world)
	if err != nil {
		return err
	}
	defer l.close()
	for range b.rounds {
		for _, s := range w.servers {
			rate, err := connect(w.client, targets[s.name], turn)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			b.report.sample("tcp", s.name, sample{PerSecond: rate})
		}
	}
	r := b.report.compare("tcp", "many-grants", "one-grant", perSecond)
	r.What, r.Unit = fmt.Sprintf("new TCP connections, %d grants", n), "/s"
	b.report.add(r.atLeast(0.97))
	return nil
}

const connectPort = 7

// connect makes connections, one after the other on each of some threads, and
// returns how many a second.
func connect(h *netlab.Host, target [4]byte, lasting time.Duration) (float64, error) {
	const threads = 4
	var made atomic.Uint64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for range threads {
		wg.Go(func() {
			var end [1]byte
			err := h.Do(func() error {
				for time.Since(start) < lasting {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					// Reset at the end, so that no port waits to be used again.
					_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
					err = unix.Connect(fd, &unix.SockaddrInet4{Port: connectPort, Addr: target})
					if err == nil {
						_, err = unix.Read(fd, end[:]) // until the other end has closed
					}
					unix.Close(fd)
					if err != nil {
						return os.NewSyscallError("connect", err)
					}
					made.Add(1)
				}
				return nil
			})
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(made.Load()) / time.Since(start).Seconds(), nil
}

// acceptor takes connections and lets go of them.
type acceptor struct {
	fd   int
	stop atomic.Bool
	wg   sync.WaitGroup
}

func startAcceptor(h *netlab.Host) (*acceptor, error) {
	a := &acceptor{}
	err := h.Do(func() (err error) {
		if err := h.Sysctl("net/core/somaxconn", "4096"); err != nil {
			return err
		}
		a.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_ = receiveTimeout(50_000)(a.fd)
		if err := unix.Bind(a.fd, &unix.SockaddrInet4{Port: connectPort}); err != nil {
			return err
		}
		return unix.Listen(a.fd, 4096)
	})
	if err != nil {
		return nil, err
	}
	a.wg.Go(func() {
		for !a.stop.Load() {
			if fd, _, err := unix.Accept4(a.fd, unix.SOCK_CLOEXEC); err == nil {
				unix.Close(fd)
			}
		}
	})
	return a, nil
}

func (a *acceptor) close() {
	a.stop.Store(true)
	a.wg.Wait()
	unix.Close(a.fd)
}
