// Package e2e runs the real binary between hosts in network namespaces and sends
// real packets: what a user gets is what is tested.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) {
	if ifname := os.Getenv(wireguardEnv); ifname != "" {
		if err := beWireGuard(ifname); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	netlab.Main(func() int {
		defer removeBuilt()
		return m.Run()
	})
}

// A world is three hosts in a row:
//
//	client --- guard --- world
//
// The guard is where CoreDNS runs: the machine that is guarded, and the gateway
// of the client. The world answers DNS on every address (see netlab.Zone) and
// echoes TCP and UDP on echoPort, on all addresses of worldNets.
type world struct {
	*testing.T
	lab                  *netlab.Lab
	client, guard, world *netlab.Host
	state                string // folder of what CoreDNS keeps, however often it is started
}

const (
	resolver4, resolver6 = "192.0.2.2", "2001:db8::2" // upstream of the guard
	stranger4, stranger6 = "198.18.53.53", "2001:db8:18::53"
	gateway4, gateway6   = "192.168.50.1", "fd50::1" // of the client
	echoPort             = 7
)

// emptyWorld is one without hosts.
func emptyWorld(t *testing.T) *world {
	t.Helper()
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{T: t, lab: lab}
}

// host adds one.
func (w *world) host(name string) *netlab.Host {
	w.Helper()
	h, err := w.lab.Host(name)
	w.must(err)
	return h
}

// addrs gives an interface of a host its addresses.
func (w *world) addrs(h *netlab.Host, ifname string, cidrs ...string) {
	w.Helper()
	for _, cidr := range cidrs {
		w.must(h.Addr(ifname, cidr))
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := emptyWorld(t)
	w.client, w.guard, w.world = w.host("client"), w.host("guard"), w.host("world")
	w.must(w.lab.Link(w.client, "eth0", w.guard, "lan0"))
	w.must(w.lab.Link(w.guard, "wan0", w.world, "eth0"))
	w.addrs(w.client, "eth0", "192.168.50.2/24", "fd50::2/64")
	w.addrs(w.guard, "lan0", gateway4+"/24", gateway6+"/64")
	w.addrs(w.guard, "wan0", "192.0.2.1/24", "2001:db8::1/64")
	w.addrs(w.world, "eth0", resolver4+"/24", resolver6+"/64")
	w.must(w.guard.Forward())
	// Or a client would be told of its first six refusals, then of one a second.
	w.must(w.guard.Sysctl("net/ipv4/icmp_ratelimit", "0"))
	w.must(w.guard.Sysctl("net/ipv6/icmp/ratelimit", "0"))
	for _, r := range []struct {
		host      *netlab.Host
		cidr, via string
	}{
		{w.client, "0.0.0.0/0", gateway4}, {w.client, "::/0", gateway6},
		{w.guard, "0.0.0.0/0", resolver4}, {w.guard, "::/0", resolver6},
		{w.world, "192.168.50.0/24", "192.0.2.1"}, {w.world, "fd50::/64", "2001:db8::1"},
	} {
		w.must(r.host.Route(r.cidr, r.via))
	}
	w.must(w.world.Local("198.18.0.0/15"))
	w.must(w.world.Local("2001:db8:18::/48"))
	w.must(w.world.Echo(echoPort))
	w.must(w.world.ServeDNS(53, netlab.Zone()))
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) save(path, text string) {
	w.Helper()
	w.must(os.WriteFile(path, []byte(text), 0o644))
}

// coredns is a running binary.
type coredns struct {
	*netlab.Cmd
	corefile string // path
}

// examples is the line that a server block needs because the world's addresses are
// for examples and not the internet's.
const examples = "private ** 192.0.2.0/24 198.18.0.0/15 2001:db8::/32"

var directiveText = regexp.MustCompile(guardTable + `[^\n{]*({([^{}]|{[^{}]*})*})?`)

// withExamples adds it to a directive, at its end.
func withExamples(text string) string {
	return directiveText.ReplaceAllStringFunc(text, func(directive string) string {
		if options, block := strings.CutSuffix(directive, "}"); block {
			return options + "\t" + examples + "\n}"
		}
		return directive + " {\n\t" + examples + "\n}"
	})
}

// corefile writes a Corefile with the directive for server blocks on every
// address of the guard.
func corefile(directive string) string {
	return fmt.Sprintf(`. {
	errors
	%s
	forward . %s
	ready 127.0.0.1:8181
	prometheus 127.0.0.1:9153
}
`, withExamples(directive), resolver4)
}

// start runs the binary on the guard and returns when its rules are in force.
func (w *world) start(corefile string) *coredns { w.Helper(); return w.startAs(netlab.As{}, corefile) }

// startAs is start as somebody else, or in a cgroup.
func (w *world) startAs(as netlab.As, corefile string) *coredns {
	w.Helper()
	return w.armed(w.launchAs(as, corefile))
}

// armed returns when the rules of a binary are in force.
func (w *world) armed(c *coredns) *coredns {
	w.Helper()
	w.eventually("the rules are in force", func() bool {
		if err := c.Signal(syscall.Signal(0)); err != nil {
			w.Fatalf("CoreDNS has ended: %v", err)
		}
		return strings.Contains(c.Output(), "In force: ")
	})
	return c
}

// launch runs the binary on the guard and does not wait.
func (w *world) launch(corefile string) *coredns {
	w.Helper()
	return w.launchAs(netlab.As{}, corefile)
}

// asCoreDNS is a user of its own that has what CoreDNS needs, as a systemd unit gives
// it.
func (w *world) asCoreDNS() netlab.As {
	w.Helper()
	return netlab.As{User: w.user(53), Caps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}}
}

// stateDir is where systemd would have made room.
func (w *world) stateDir() string {
	w.Helper()
	if w.state == "" {
		w.state = w.TempDir()
		w.must(os.Chmod(w.state, 0o777)) // CoreDNS may be another user
	}
	return w.state
}

func (w *world) launchAs(as netlab.As, corefile string) *coredns {
	w.Helper()
	return w.runAs(as, w.guard, corefile)
}

// runAs runs the binary on a host, with more in its environment, and does not wait.
func (w *world) runAs(as netlab.As, host *netlab.Host, corefile string, env ...string) *coredns {
	w.Helper()
	return w.run(binary(w.T), as, host, corefile, env...)
}

// run is runAs for another binary.
func (w *world) run(binary string, as netlab.As, host *netlab.Host, corefile string, env ...string) *coredns {
	w.Helper()
	dir := w.TempDir()
	path := filepath.Join(dir, "Corefile")
	w.must(os.WriteFile(path, []byte(corefile), 0o644))
	w.must(os.Chmod(filepath.Dir(dir), 0o755)) // others have to read it as well
	c := &coredns{Cmd: host.Command(binary, "-conf", path), corefile: path}
	c.As = as
	// What forward leaves behind at a reload ends when the collector finds it.
	c.Env = append(append(os.Environ(), "GOGC=50", "STATE_DIRECTORY="+w.stateDir()), env...)
	w.must(c.Start())
	w.Cleanup(func() {
		_ = c.Signal(syscall.SIGKILL)
		if w.Failed() {
			w.Logf("CoreDNS of %s wrote:\n%s", host.Name(), c.Output())
		}
	})
	return c
}

// cgroup makes a cgroup, as systemd does for a unit. Where there are none the test is
// skipped, but not on CI.
func (w *world) cgroup(name string) *netlab.Cgroup {
	w.Helper()
	c, err := w.lab.Cgroup(name)
	w.lacks(err)
	return c
}

// user is a user's number. Where there are no others than root the test is skipped,
// but not on CI.
func (w *world) user(uid uint32) uint32 { w.Helper(); w.lacks(netlab.Users(uid)); return uid }

func (w *world) lacks(err error) {
	w.Helper()
	if err != nil && os.Getenv("CI") != "true" {
		w.Skip(err)
	}
	w.must(err)
}

// program starts a program on the guard.
func (w *world) program(as netlab.As) *netlab.Program {
	w.Helper()
	p, err := w.guard.Program(as)
	w.must(err)
	return p
}

// eventually waits for something that takes no time worth naming.
func (w *world) eventually(what string, holds func() bool) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("waited in vain until %s", what)
		}
	}
}

// A sender is whoever asks and connects: a host, or a program on one.
type sender interface {
	Name() string
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

var _, _ sender = (*netlab.Host)(nil), (*netlab.Program)(nil)

// ask sends one question from a host to a server, over UDP.
func (w *world) ask(from sender, server, name string, qtype uint16) (answer *dns.Msg, err error) {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.SetEdns0(4096, false)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "udp", net.JoinHostPort(server, "53"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, _, err = (&dns.Client{Timeout: 5 * time.Second}).ExchangeWithConn(m, &dns.Conn{Conn: conn})
	return answer, err
}

// nameOf makes a name that the world answers with the addresses.
func nameOf(ttl int, addrs ...string) string {
	var b strings.Builder
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		kind := "aaaa-"
		if addr.Is4() {
			kind = "a-"
		}
		b.WriteString(kind + strings.NewReplacer(".", "-", ":", "-").Replace(a) + ".")
	}
	return fmt.Sprintf("%sttl-%d.test.", b.String(), ttl)
}

// lookup asks the guard for an address's name and fails unless the answer has
// the address.
func (w *world) lookup(from sender, server, addr string, ttl int) {
	w.Helper()
	w.must(w.resolve(from, server, addr, ttl))
}

// resolve is lookup for other goroutines than the test's.
func (w *world) resolve(from sender, server, addr string, ttl int) error {
	m, err := w.ask(from, server, nameOf(ttl, addr), typeFor(addr))
	if err == nil && (m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0) {
		err = fmt.Errorf("no address: %v", m)
	}
	return err
}

// connect makes a TCP connection or sends a UDP packet to the echo port and
// waits for the echo. A refusal is told from other errors by refused.
func (w *world) connect(from sender, network, addr string) error {
	conn, err := w.dial(from, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn)
}

// dial opens a connection to the echo port.
func (w *world) dial(from sender, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return from.Dial(ctx, network, net.JoinHostPort(addr, fmt.Sprint(echoPort)))
}

func echo(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	var b [4]byte
	_, err := conn.Read(b[:])
	return err
}

// refused reports whether err is what the guard's reject gives an application:
// EHOSTUNREACH for IPv4, EACCES for IPv6, and EPERM to who sends UDP from the
// guard itself. UDP may also just time out.
func refused(err error) bool {
	var timeout net.Error
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// wantRefused and wantOpen check one connection.
func (w *world) wantRefused(from sender, network, addr string) {
	w.Helper()
	if err := w.connect(from, network, addr); err == nil {
		w.Errorf("%s: %s to %s is open, it should be refused", from.Name(), network, addr)
	} else if !refused(err) {
		w.Errorf("%s: %s to %s fails otherwise than refused: %v", from.Name(), network, addr, err)
	}
}

func (w *world) wantOpen(from sender, network, addr string) {
	w.Helper()
	if err := w.connect(from, network, addr); err != nil {
		w.Errorf("%s: %s to %s is refused, it should be open: %v", from.Name(), network, addr, err)
	}
}
