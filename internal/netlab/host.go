package netlab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a machine of the lab: a network namespace and what runs in it.
type Host struct {
	name     string
	accepted atomic.Uint64

	// mu guards what follows. It is held for reading while ns or routes are in use, so that close
	// cannot give their descriptor numbers to somebody else meanwhile.
	mu     sync.RWMutex
	ns     int
	routes *netlink.Handle
	runs   map[io.Closer]struct{} // what close has to end
	closed bool
}

// settings are what a host starts with, whatever the machine has. The kernel gives a new namespace
// the machine's IPv4 settings (Docker hosts forward, systemd hosts filter by reverse path), and
// IPv6 defaults under which a link is not usable for its first second or two.
var settings = []struct{ key, value string }{
	{"net/ipv4/ip_forward", "0"}, // first, as it resets others
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/default/rp_filter", "0"},
	{"net/ipv6/conf/all/forwarding", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
}

func newHost(name string, namespace func() (int, error)) (*Host, error) {
	ns, err := namespace()
	if err != nil {
		return nil, fmt.Errorf("netlab: host %s: %w", name, err)
	}
	h := &Host{name: name, ns: ns, runs: make(map[io.Closer]struct{})}
	if err := h.boot(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func (h *Host) boot() error {
	err := h.Do(func() (err error) {
		h.routes, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range settings {
		if err := h.Sysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return h.fail("set lo up", h.up("lo"))
}

// Name returns the name the host was made with.
func (h *Host) Name() string { return h.name }

// Accepted returns how many TCP connections the host's echo servers have accepted.
func (h *Host) Accepted() uint64 { return h.accepted.Load() }

// fail says on which host and doing what err came up.
func (h *Host) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("netlab: host %s: %s: %w", h.name, doing, err)
}

// keep has c closed with the host. If that is closed already, c stays the caller's to close.
func (h *Host) keep(c io.Closer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	h.runs[c] = struct{}{}
	return nil
}

// drop forgets what has ended by itself.
func (h *Host) drop(c io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.runs, c)
}

func (h *Host) close() error {
	h.mu.Lock()
	runs := h.runs
	h.runs = nil
	h.closed = true
	h.mu.Unlock()

	var errs []error
	for c := range runs {
		errs = append(errs, c.Close())
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	if h.routes != nil {
		h.routes.Close()
	}
	errs = append(errs, unix.Close(h.ns))
	return h.fail("close", errors.Join(errs...))
}
