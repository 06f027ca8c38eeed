package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
)

// Lab owns hosts.
type Lab struct {
	// mu guards what follows, and makes Close wait for a host in the making.
	mu      sync.Mutex
	hosts   map[string]*Host
	links   int
	cgroups *Cgroup // what all of its cgroups are in; nil before the first
	closed  bool
}

// New returns an empty lab. Hosts have both address families, so it fails on a kernel without IPv6.
func New() (*Lab, error) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil, fmt.Errorf("netlab: the kernel has no IPv6: %w", err)
	}
	return &Lab{hosts: make(map[string]*Host)}, nil
}

// Host makes a host with lo up and nothing else. The name serves errors only: the namespace has
// none, so that nothing is left in /run/netns however the program ends.
func (l *Lab) Host(name string) (*Host, error) { return l.host(name, newNamespace) }

// Here makes this process's own network a host, for what cannot be moved into another: goroutines
// that open sockets when they like. Its links end with the lab; the rest of its settings stays.
func (l *Lab) Here() (*Host, error) { return l.host(here, currentNamespace) }

const here = "here"

func (l *Lab) host(name string, namespace func() (int, error)) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("netlab: lab: %w", net.ErrClosed)
	}
	if _, ok := l.hosts[name]; ok {
		return nil, fmt.Errorf("netlab: host %s exists", name)
	}
	h, err := newHost(name, namespace)
	if err != nil {
		return nil, err
	}
	l.hosts[name] = h
	return h, nil
}

// Close ends every host with its servers, captures, processes and namespace, and removes cgroups. What was handed to the
// caller to close, by Dial and Listen, stays the caller's.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.close())
	}
	clear(l.hosts)
	if l.cgroups != nil {
		errs = append(errs, l.cgroups.remove())
		l.cgroups = nil
	}
	return errors.Join(errs...)
}
