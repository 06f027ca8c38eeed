package identity

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) {
	if program := strings.Fields(os.Getenv(programEnv)); len(program) > 0 {
		run(program[0], program[1:])
	}
	netlab.Main(m.Run)
}

// programEnv makes the test binary another program, for tests of what other processes
// look like: one says a line and waits for its end.
const programEnv = "IDENTITY_TEST_PROGRAM"

func run(program string, args []string) {
	says, err := "", error(nil)
	switch program {
	case "ask": // connects to a server, and says from where
		var conn net.Conn
		if conn, err = net.Dial(args[0], args[1]); err == nil {
			says = conn.LocalAddr().String()
		}
	case "self":
		var self backend.Program
		self, err = Self()
		says = fmt.Sprintf("%+v", self)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(says)
	select {}
}

// startProgram runs the test binary as a program, below the shell command that execs
// "$0", and returns what it says.
func startProgram(t testing.TB, h *netlab.Host, shell, program string) string {
	t.Helper()
	binary, err := os.Executable()
	must(t, err)
	cmd := h.Command("sh", "-c", shell, binary)
	cmd.Env = append(os.Environ(), programEnv+"="+program)
	must(t, cmd.Start())
	t.Cleanup(func() { must(t, cmd.Stop()) })
	eventually(t, "the program has said something", func() bool { return strings.Contains(cmd.Output(), "\n") })
	return strings.TrimSpace(cmd.Output())
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// cannot skips a test that cannot run here, and fails it where nobody would notice.
func cannot(t testing.TB, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(args...)
	}
	t.Skip(args...)
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

func newHost(t testing.TB) *netlab.Host { return newHosts(t, "a")[0] }

func newHosts(t testing.TB, names ...string) (hosts []*netlab.Host) {
	t.Helper()
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	for _, name := range names {
		h, err := lab.Host(name)
		must(t, err)
		hosts = append(hosts, h)
	}
	return hosts
}

// newPair makes two hosts with one link, eth0 on either: a has 192.0.2.1 and
// 2001:db8::1, b has .2 and ::2.
func newPair(t testing.TB) (a, b *netlab.Host) {
	t.Helper()
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	a, err = lab.Host("a")
	must(t, err)
	b, err = lab.Host("b")
	must(t, err)
	must(t, lab.Link(a, "eth0", b, "eth0"),
		a.Addr("eth0", "192.0.2.1/24"), a.Addr("eth0", "2001:db8::1/64"),
		b.Addr("eth0", "192.0.2.2/24"), b.Addr("eth0", "2001:db8::2/64"))
	return a, b
}

// watched is a watcher, the host it watches, and what it logs.
type watched struct {
	*Watcher
	t    testing.TB
	host *netlab.Host
	nl   *netlink.Handle

	mu     sync.Mutex
	errors []error
}

func watch(t testing.TB, h *netlab.Host) *watched { return watchWith(t, h, func(*Watcher) {}) }

// watchWith changes the watcher before that starts.
func watchWith(t testing.TB, h *netlab.Host, change func(*Watcher)) *watched {
	t.Helper()
	w := unstarted(t, h)
	change(w.Watcher)
	must(t, w.start())
	return w
}

// unstarted is a watcher that hears nothing.
func unstarted(t testing.TB, h *netlab.Host) *watched {
	t.Helper()
	w := &watched{t: t, host: h}
	must(t, h.Do(func() (err error) {
		if w.nl, err = netlink.NewHandle(); err == nil {
			w.Watcher, err = openWatcher(w.heard)
		}
		return err
	}))
	t.Cleanup(func() { w.Watcher.Close(); w.nl.Close() })
	return w
}

func (w *watched) heard(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errors = append(w.errors, err)
}

func (w *watched) logged() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]error(nil), w.errors...)
}

func (w *watched) ifindex(ifname string) int {
	w.t.Helper()
	link, err := w.nl.LinkByName(ifname)
	must(w.t, err)
	return link.Attrs().Index
}

// port makes an interface with nobody at the other end.
func (w *watched) port(name string) (index int) {
	w.t.Helper()
	must(w.t, w.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-end"}))
	for _, ifname := range []string{name + "-end", name} {
		link, err := w.nl.LinkByName(ifname)
		must(w.t, err, w.nl.LinkSetUp(link))
		index = link.Attrs().Index
	}
	return index
}

// neighbour makes an entry of the neighbour table.
func (w *watched) neighbour(index int, addr string, hw hardware, state int) {
	w.t.Helper()
	must(w.t, w.nl.NeighSet(neighbourEntry(index, addr, hw, state)))
}

func (w *watched) removeNeighbour(index int, addr string) {
	w.t.Helper()
	must(w.t, w.nl.NeighDel(&netlink.Neigh{LinkIndex: index, IP: netip.MustParseAddr(addr).AsSlice()}))
}

func neighbourEntry(index int, addr string, hw hardware, state int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, IP: netip.MustParseAddr(addr).AsSlice(), HardwareAddr: hw[:], State: state,
	}
}

// mirrors returns what the mirror has of addr at an interface.
func (w *watched) mirrors(index int, addr netip.Addr) (hw hardware, ok bool) {
	return w.neighbours.get(spotOf(addr, uint32(index)))
}

// links waits until the mirror has the link address, or none for the zero one.
func (w *watched) links(index int, addr string, want hardware) {
	w.t.Helper()
	eventually(w.t, addr+" is at "+hex(want), func() bool {
		got, ok := w.mirrors(index, netip.MustParseAddr(addr))
		return ok == (want != hardware{}) && got == want
	})
}

func hex(hw hardware) string {
	if hw == (hardware{}) {
		return "no link address"
	}
	return macOf(hw).String()
}
