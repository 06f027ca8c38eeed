package netlab

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

func TestCloseLeavesNothing(t *testing.T) {
	pids := useEverything(t) // once before counting: the runtime opens its poller at the first use
	goroutines, descriptors := runtime.NumGoroutine(), openFiles(t)
	for range 3 {
		pids = append(pids, useEverything(t)...)
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
	if got := openFiles(t); got > descriptors {
		t.Errorf("%d descriptors are open, %d were before", got, descriptors)
	}
	for _, pid := range pids {
		eventually(t, "process "+strconv.Itoa(pid)+" has ended", func() bool { return !running(pid) })
	}
}

// useEverything runs one of each in a lab and closes that under them. It returns the numbers of a
// process and its child.
func useEverything(t *testing.T) (pids []int) {
	t.Helper()
	lab, err := New()
	must(t, err)
	a, b := newPair(t, lab)
	must(t, b.Echo(7), b.ServeDNS(53, Zone()))
	sniffer, err := a.Sniff("toB")
	must(t, err)
	cmd := a.Command("sh", "-c", "sleep 1000 & echo $$ $!; wait")
	must(t, cmd.Start())
	eventually(t, "the shell has told its processes", func() bool { return strings.Contains(cmd.Output(), "\n") })
	for _, field := range strings.Fields(cmd.Output()) {
		pid, err := strconv.Atoi(field)
		must(t, err)
		pids = append(pids, pid)
	}
	if c, err := lab.Cgroup("app.service"); err == nil { // elsewhere TestCgroupClose says why not
		cmd := a.Command("sleep", "1000")
		cmd.As.Cgroup = c
		must(t, cmd.Start())
	}
	program, err := a.Program(As{})
	must(t, err)
	conn, err := program.Dial(t.Context(), "tcp", "192.0.2.2:7")
	must(t, err)
	echoes(t, conn)

	waiting := make(chan error)
	go func() {
		for {
			if _, err := sniffer.Next(t.Context()); err != nil {
				waiting <- err
				return
			}
		}
	}()
	must(t, lab.Close(), lab.Close())
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a waiting Next got %v", err)
	}
	must(t, sniffer.Close(), conn.Close())
	return pids
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(files)
}

func TestClosed(t *testing.T) {
	lab, err := New()
	must(t, err)
	a, b := newPair(t, lab)
	must(t, lab.Close())

	uses := map[string]func() error{
		"Host":   func() error { _, err := lab.Host("c"); return err },
		"Link":   func() error { return lab.Link(a, "x", b, "y") },
		"Addr":   func() error { return a.Addr("lo", "192.0.2.3/32") },
		"Local":  func() error { return a.Local("192.0.2.0/24") },
		"Sysctl": func() error { return a.Sysctl("net/ipv4/ip_forward", "0") },
		"Do":     func() error { return a.Do(func() error { return nil }) },
		"Dial":   func() error { _, err := a.Dial(t.Context(), "tcp", "192.0.2.2:7"); return err },
		"Echo":   func() error { return a.Echo(7) },
		"Sniff":  func() error { _, err := a.Sniff("lo"); return err },
		"Start":  func() error { return a.Command("true").Start() },

		"Cgroup":  func() error { _, err := lab.Cgroup("app.service"); return err },
		"Program": func() error { _, err := a.Program(As{}); return err },
	}
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			if err := use(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v, want net.ErrClosed", err)
			}
		})
	}
}

func TestHostNamesAreUnique(t *testing.T) {
	lab := newLab(t)
	if h := newTestHost(t, lab, "a"); h.Name() != "a" {
		t.Errorf("the name is %q", h.Name())
	}
	if _, err := lab.Host("a"); err == nil {
		t.Error("a second host of the same name was made")
	}
}

// What is made here works from here, and leaves nothing that the next lab would trip over.
func TestHere(t *testing.T) {
	for range 3 {
		lab, err := New()
		must(t, err)
		here, err := lab.Here()
		must(t, err)
		there := newTestHost(t, lab, "there")
		must(t, lab.Link(here, "out", there, "in"), there.Ether("in", "02:00:00:00:00:05"),
			here.Addr("out", "192.0.2.1/24"), there.Addr("in", "192.0.2.2/24"), there.Echo(7))
		conn, err := net.Dial("tcp", "192.0.2.2:7") // by nobody's leave
		must(t, err)
		echoes(t, conn)
		conn.Close()
		neighbours, err := os.ReadFile("/proc/thread-self/net/arp")
		must(t, err)
		if !strings.Contains(string(neighbours), "02:00:00:00:00:05") {
			t.Errorf("the neighbour is another: %s", neighbours)
		}
		must(t, lab.Close())
		if _, err := net.InterfaceByName("out"); err == nil {
			t.Error("the link is still there")
		}
	}
}
