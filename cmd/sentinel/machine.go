package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// machine is what is pointed at the sentinels. All that is to be known about how far that is, stands in its files: so
// it does not matter where somebody was killed who was at it.
type machine struct {
	root string
	log  func(format string, args ...any)

	ask       func() ([]sentinel, error)          // which are in use
	answers   func(nameservers []netip.Addr) bool // one of them does
	addresses interface {
		add() error
		remove() error
		have() ([]netip.Addr, error)
	}
	reload   func() error // systemd-resolved
	reloaded time.Time

	// between is called before each step that changes a file. It is for tests that end the process there.
	between func(step string)

	lock *os.File
}

func newMachine(root string, log func(format string, args ...any)) *machine {
	return &machine{root: root, log: log, ask: askSentinels, answers: anyAnswers, addresses: onLoopback{}, reload: reloadResolved, between: func(string) {}}
}

// The files, as seen by the machine.
const (
	resolv = hostdns.Resolv
	kept   = "/var/lib/ipdestinationguard-sentinel/resolv.conf" // what was there before, or where it leads
	list   = hostdns.Kept                                       // for CoreDNS
	lock   = "/var/lib/ipdestinationguard-sentinel/lock"

	// fresh stands beside resolv.conf before it is put in its place, and what was there after.
	fresh = "/etc/.resolv.conf.ipdestinationguard"

	stub     = "/run/systemd/resolve/stub-resolv.conf"
	uplinks  = hostdns.Uplinks
	dropIn   = "/run/systemd/resolved.conf.d/ipdestinationguard-sentinel.conf"
	lastLink = 40 // as many symbolic links as Linux follows
)

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

// follow is where a link in a folder leads in the end, as a machine with that root sees it.
func (m *machine) follow(folder, target string) (string, error) {
	for range lastLink {
		if !filepath.IsAbs(target) {
			target = filepath.Join(folder, target)
		}
		name := filepath.Clean(target)
		next, err := os.Readlink(m.path(name))
		if errors.Is(err, syscall.EINVAL) {
			return name, nil // it is no link
		}
		if err != nil {
			return "", err
		}
		folder, target = filepath.Dir(name), next
	}
	return "", fmt.Errorf("%s: %w", target, syscall.ELOOP)
}

// begin takes the machine for this process, and makes sure that nobody else can say what comes back into resolv.conf.
func (m *machine) begin() error {
	dir := m.path(filepath.Dir(kept))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		err = os.Chmod(dir, 0o755) // CoreDNS reads in it, whatever our umask is
		if err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	for _, dir := range []string{dir, m.path(filepath.Dir(resolv))} {
		info, err := os.Lstat(dir)
		if err != nil {
			return err
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; !info.IsDir() || owner != uint32(os.Geteuid()) || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s has to be a folder of the user who runs this, and nobody else may write to it: it is %v, of user %d", dir, info.Mode(), owner)
		}
	}
	f, err := os.OpenFile(m.path(lock), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another one of these is at work (it holds %s): systemctl stop ipdestinationguard-sentinel", lock)
		}
		return fmt.Errorf("%s: %w", lock, err)
	}
	m.lock = f
	return m.recover()
}

// end gives the machine back. The kernel does so too when the process dies.
func (m *machine) end() { m.lock.Close() }
