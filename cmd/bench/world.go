package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A world has a client, the servers to compare, each on a host of its own, and
// the rest of the internet:
//
//	         .-- server 0 --.
//	client --+-- server 1 --+-- world
//	         '-- ...      --'
//
// Each server is a gateway between client and world. What the client sends to
// the addresses that names have goes by way of server 0.
type world struct {
	lab     *netlab.Lab
	client  *netlab.Host
	world   *netlab.Host
	servers []*server
	dns     *responder
	dir     string
}

// A server is one of the programs compared, on its host.
type server struct {
	*variant
	*netlab.Host
	*netlab.Cmd
	world *world
	index int
	pid   int
	addr  netip.AddrPort // where it answers the client
	conf  string
}

// A variant is a program and how it is set up.
type variant struct {
	name    string
	program string
	// config is the text of its configuration.
	config func(s *server) string
	// ruleset has a guard's ruleset loaded beside it, by a guard that has left.
	ruleset bool
	// mapped has its names answered with addresses of a pool.
	mapped bool
	// nft is rules to load before, by the nft program.
	nft string
}

// newServer makes a world of one server, and starts it.
func newServer(v *variant) (*world, *server, error) {
	w, err := newWorld(v)
	if err != nil {
		return nil, nil, err
	}
	s := w.servers[0]
	if err := s.start(); err != nil {
		w.close()
		return nil, nil, err
	}
	return w, s, nil
}

func newWorld(variants ...*variant) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return w, err
	}
	if w.lab, err = netlab.New(); err != nil {
		return w, err
	}
	if w.client, err = w.lab.Host("client"); err != nil {
		return w, err
	}
	if w.world, err = w.lab.Host("world"); err != nil {
		return w, err
	}
	for i, v := range variants {
		if err := w.addServer(i, v); err != nil {
			return w, err
		}
	}
	for _, err := range []error{
		w.world.Local("11.0.0.0/8"),
		w.client.Route("11.0.0.0/8", w.servers[0].lan()),
	} {
		if err != nil {
			return w, err
		}
	}
	w.dns, err = startResponder(w.world, 2)
	return w, err
}

func (w *world) addServer(i int, v *variant) error {
	h, err := w.lab.Host(v.name)
	if err != nil {
		return err
	}
	s := &server{variant: v, Host: h, world: w, index: i}
	s.addr = netip.AddrPortFrom(netip.MustParseAddr(s.lan()), 53)
	s.conf = filepath.Join(w.dir, v.name)
	w.servers = append(w.servers, s)
	eth := fmt.Sprintf("eth%d", i)
	return errors.Join(
		w.lab.Link(w.client, eth, h, "lan0"),
		w.lab.Link(h, "wan0", w.world, eth),
		w.client.Addr(eth, fmt.Sprintf("192.168.%d.2/24", i)),
		h.Addr("lan0", s.lan()+"/24"),
		h.Addr("wan0", fmt.Sprintf("198.18.%d.1/24", i)),
		w.world.Addr(eth, s.upstream()+"/24"),
		w.world.Route(fmt.Sprintf("192.168.%d.0/24", i), fmt.Sprintf("198.18.%d.1", i)),
		h.Route("11.0.0.0/8", s.upstream()),
		h.Forward(),
		// So that a million connections at most a minute old do not fill the table.
		h.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "1"),
		h.Sysctl("net/netfilter/nf_conntrack_tcp_timeout_close", "1"),
	)
}

func (w *world) close() {
	for _, s := range w.servers {
		if s.Cmd != nil {
			_ = s.Signal(syscall.SIGKILL)
		}
	}
	if w.dns != nil {
		w.dns.close()
	}
	if w.lab != nil {
		_ = w.lab.Close()
	}
	_ = os.RemoveAll(w.dir)
}

func (s *server) lan() string      { return fmt.Sprintf("192.168.%d.1", s.index) }
func (s *server) upstream() string { return fmt.Sprintf("198.18.%d.2", s.index) }

// start starts the server and waits until it answers, and is guarding if it
// guards.
func (s *server) start() error {
	if s.ruleset {
		if err := s.leaveRuleset(); err != nil {
			return err
		}
	}
	if s.nft != "" {
		load := s.Command("nft", "-f", "-")
		load.Stdin = strings.NewReader(s.nft)
		if err := load.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, load.Output())
		}
	}
	return s.launch(s.variant)
}

// restart starts a server, anew if it runs.
func (s *server) restart() error {
	if s.Cmd == nil {
		return s.start()
	}
	if err := s.Stop(); err != nil {
		return err
	}
	return s.launch(s.variant)
}

func (s *server) launch(v *variant) error {
	if err := os.WriteFile(s.conf, []byte(v.config(s)), 0o644); err != nil {
		return err
	}
	flag := "-conf"
	switch filepath.Base(v.program) {
	case "dnsmasq":
		flag = "--conf-file=" + s.conf
	case "unbound":
		flag = "-c"
	}
	args := []string{flag, s.conf}
	if strings.Contains(flag, "=") {
		args = args[:1]
	}
	s.Cmd = s.Command(v.program, args...)
	if err := s.Start(); err != nil {
		return err
	}
	if err := s.ready(); err != nil {
		return fmt.Errorf("%s: %w: %s", v.name, err, s.Output())
	}
	var err error
	s.pid, err = pidOf(s.conf)
	return err
}

const armedText = "In force: "

func (s *server) guards() bool { return strings.Contains(s.config(s), directive) }

func (s *server) ready() error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if s.guards() && !strings.Contains(s.Output(), armedText) {
			continue
		}
		if s.answers() {
			return nil
		}
	}
	return errors.New("it does not answer")
}

func (s *server) answers() bool {
	first, _ := never()
	_, err := s.ask(first, 0)
	return err == nil
}

// leaveRuleset has a guard come and go that leaves its rules.
func (s *server) leaveRuleset() error {
	v := guardOn(s.program, "on_exit keep")
	v.name = s.name
	if err := s.launch(v); err != nil {
		return err
	}
	return s.Stop()
}

// pidOf finds the process that runs with a configuration.
func pidOf(conf string) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil && strings.Contains(string(line), conf+"\x00") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process runs with %s", conf)
}

// cpu is the time that the server's threads have had, in their own code and in
// the kernel.
func (s *server) cpu() (user, system time.Duration) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		return 0, 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	tick := func(i int) time.Duration {
		n, _ := strconv.Atoi(f[i])
		return time.Duration(n) * 10 * time.Millisecond
	}
	return tick(11), tick(12)
}

// get fetches from an HTTP server on the server's loopback.
func (s *server) get(port int, path string) ([]byte, error) {
	return httpGet(s.Host, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), path)
}
