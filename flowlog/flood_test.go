package flowlog

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// floods is the environment of the process that sends so many packets.
const floods = "FLOWLOG_FLOODS"

const floodRate = 100_000 // packets a second

// Whoever floods a gateway with what it refuses costs it what refusing costs, and no more:
// the log takes a small part of the work that sending takes and no memory, and no packet is missed.
func TestFlood(t *testing.T) {
	if n, err := strconv.Atoi(os.Getenv(floods)); err == nil {
		if err := flood(n); err != nil {
			t.Fatal(err)
		}
		return
	}
	total := 10 * floodRate
	if testing.Short() || raceDetector {
		total /= 10
	}
	g := guard(t, backend.Rules{})
	if err := g.Listen(testGroup); err != nil {
		t.Fatal(err)
	}
	g.follow()
	memory := heap()

	sender := g.client.Command("/proc/self/exe", "-test.run=^TestFlood$")
	sender.Env = append(os.Environ(), fmt.Sprint(floods, "=", total))
	began, before := time.Now(), used(t, unix.RUSAGE_SELF)
	if err := sender.Run(); err != nil {
		t.Fatalf("%v: %s", err, sender.Output())
	}
	sent, sending := time.Since(began), used(t, unix.RUSAGE_CHILDREN)
	dropped, err := g.client.Dropped("eth0")
	if err != nil {
		t.Fatal(err)
	}
	lost := int(dropped)
	total -= lost
	backendtest.Eventually(t, fmt.Sprintf("all is counted (%d got lost on the way)", lost), func() bool {
		return g.Sums().Tallies[backend.Forward].Refused.Packets >= uint64(total)
	})
	took, cpu := time.Since(began), used(t, unix.RUSAGE_SELF)-before
	sums := g.Sums()
	t.Logf("%d packets in %v, %.0f a second; the log took %v of CPU time in %v, sending %v, and %d KiB; %d flows known, %d unkept, %d events, %d more untold, %d shown packets lost",
		total, sent, float64(total)/sent.Seconds(), cpu, took, sending, (heap()-memory)>>10, sums.Flows, sums.Unkept, len(g.diary.events), sums.Untold, sums.Lost)

	tally := sums.Tallies[backend.Forward]
	if want := (backend.Count{Packets: uint64(total), Bytes: uint64(total) * 29}); tally.Refused != want {
		t.Errorf("%+v refused, want %+v", tally.Refused, want)
	}
	if err := g.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	listed := tally.Unlisted.Packets
	if err := g.enforcer.Denied(t.Context(), func(d backend.Denial) { listed += d.Packets }); err != nil {
		t.Fatal(err)
	}
	if listed != uint64(total) {
		t.Errorf("%d packets in flows and unlisted", listed)
	}
	var loudest Flow
	for _, f := range g.Flows() {
		if f.Packets > loudest.Packets {
			loudest = f
		}
	}
	if loudest.Packets > uint64((total+lost)/2) || loudest.Packets+uint64(lost) < uint64((total+lost)/2) || loudest.Addr != netip.AddrFrom4(loud) || loudest.Bytes != loudest.Packets*29 {
		t.Errorf("%v", loudest)
	}
	if sums.Flows > mostFlows || heap() > memory+16<<20 {
		t.Errorf("%d flows in %d bytes", sums.Flows, heap()-memory)
	}
	if max := int(toldAtOnce + toldPerSecond*took.Seconds()); len(g.diary.events) > max {
		t.Errorf("%d events in %v", len(g.diary.events), took)
	}
	if cpu > sending/8 && !raceDetector {
		t.Errorf("%v of CPU time, sending took %v", cpu, sending)
	}
}

// heap is the memory in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// used is the CPU time that this process has used, or those that it has started and that have ended.
func used(t *testing.T, who int) time.Duration {
	t.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(who, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

var loud = [4]byte{198, 18, 0, 1}

// flood sends packets of UDP: half of them to one port, and half to some 300,000 others.
func flood(n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	began := time.Now()
	for i := range n {
		if i%100 == 0 {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / floodRate)))
		}
		to := unix.SockaddrInet4{Addr: loud, Port: 443}
		if i%2 == 1 {
			binary.BigEndian.PutUint16(to.Addr[2:], uint16(i*7919))
			to.Addr[1], to.Port = 19, 1+i%9
		}
		if err := unix.Sendto(fd, []byte("x"), 0, &to); err != nil {
			return fmt.Errorf("packet %d: %w", i, err)
		}
	}
	return nil
}
