package main

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// sink counts the probes that reach the world.
type sink struct {
	*netlab.Host
	fd     int
	stop   atomic.Bool
	wg     sync.WaitGroup
	read   atomic.Uint64
	missed uint64 // by the host's sockets, before
}

func startSink(h *netlab.Host) (*sink, error) {
	s := &sink{Host: h}
	var err error
	s.fd, err = udpSocket(h, netip.AddrPortFrom(netip.IPv4Unspecified(), probePort), noAddress, receiveTimeout(50_000))
	if err != nil {
		return nil, err
	}
	s.missed = bufferErrors(h)
	s.wg.Go(func() {
		in := newPackets(64, false)
		for !s.stop.Load() {
			if n, err := in.receive(s.fd, 64, unix.MSG_WAITFORONE); err == nil {
				s.read.Add(uint64(n))
			}
		}
	})
	return s, nil
}

// arrived is how many probes have come, also those that were too many to be
// read. (The responder, on the same host, has no more in flight than it can
// queue.)
func (s *sink) arrived() uint64 { return s.read.Load() + bufferErrors(s.Host) - s.missed }

// await returns how many have arrived when all have or a second has passed.
func (s *sink) await(n uint64) uint64 {
	for range 50 {
		if s.arrived() >= n {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return s.arrived()
}

func (s *sink) close() {
	s.stop.Store(true)
	s.wg.Wait()
	unix.Close(s.fd)
}

// bufferErrors is how many UDP packets a host has dropped since nobody read
// them in time.
func bufferErrors(h *netlab.Host) (n uint64) {
	_ = h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "Udp: ") {
				continue
			}
			if names == nil {
				names = strings.Fields(line)
				continue
			}
			for i, f := range strings.Fields(line) {
				if names[i] == "RcvbufErrors" {
					n, _ = strconv.ParseUint(f, 10, 64)
				}
			}
		}
		return nil
	})
	return n
}
