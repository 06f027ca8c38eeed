package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// A test of a kill runs this binary once more, with a folder for a machine, and has it end at a certain step.
const (
	envRoot = "SENTINEL_TEST_ROOT"
	envVerb = "SENTINEL_TEST_VERB"
	envStep = "SENTINEL_TEST_STEP" // 0 is never
	envMeet = "SENTINEL_TEST_MEET" // what somebody else writes into resolv.conf just before it is exchanged
)

func TestMain(m *testing.M) {
	if root := os.Getenv(envRoot); root != "" {
		os.Exit(killed(root))
	}
	os.Exit(m.Run())
}

// killed does what it is told and dies at the step that it is told.
func killed(root string) int {
	at, _ := strconv.Atoi(os.Getenv(envStep))
	m, n := fakeMachine(root), 0
	m.between = func(step string) {
		if meet := os.Getenv(envMeet); meet != "" && step == "exchange" {
			_ = dhcp(root, meet)
			_ = os.WriteFile(filepath.Join(root, "met"), nil, 0o644)
		}
		if n++; n == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	var err error
	switch os.Getenv(envVerb) {
	case "up":
		err = m.up(context.Background(), 0)
	case "down":
		err = m.down()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// noAddresses is lo without root.
type noAddresses struct{}

func (noAddresses) add() error                  { return nil }
func (noAddresses) remove() error               { return nil }
func (noAddresses) have() ([]netip.Addr, error) { return nil, nil }

// fakeMachine is one in a folder, whose CoreDNS stands before two nameservers unless there is a file "dead" in it, and
// whose systemd-resolved does as it is told.
func fakeMachine(root string) *machine {
	m := newMachine(root, func(string, ...any) {})
	m.addresses = noAddresses{}
	m.answers = func([]netip.Addr) bool { return true }
	m.ask = func() ([]sentinel, error) {
		if _, err := os.Stat(filepath.Join(root, "dead")); err == nil {
			return nil, errors.New("nothing answers")
		}
		all := hostdns.Addresses(hostdns.IPv4)
		return []sentinel{{all[0], true, "dns://10.0.0.1:53"}, {all[1], true, "dns://10.0.0.2:53"}}, nil
	}
	m.reload = func() error {
		text, err := os.ReadFile(m.path(dropIn))
		if errors.Is(err, fs.ErrNotExist) {
			return os.WriteFile(m.path(uplinks), []byte("nameserver 10.0.0.1\n"), 0o644)
		}
		_, servers, _ := strings.Cut(string(text), "DNS=\nDNS=")
		servers, _, _ = strings.Cut(servers, "\n")
		list := "nameserver " + strings.ReplaceAll(servers, " ", "\nnameserver ") + "\nnameserver 10.0.0.1\n"
		return errors.Join(err, os.WriteFile(m.path(uplinks), []byte(list), 0o644))
	}
	return m
}

// dhcp writes a resolv.conf as a DHCP client does.
func dhcp(root, text string) error {
	beside := filepath.Join(root, "etc/resolv.conf.dhclient-new")
	if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
		return err
	}
	past := time.Now().Add(-time.Minute) // or it would be left alone for a moment
	return errors.Join(os.Chtimes(beside, past, past), os.Rename(beside, filepath.Join(root, "etc/resolv.conf")))
}

const (
	lease  = "# lease\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch lan\noptions edns0\n"
	lease2 = "# another lease\nnameserver 10.9.9.9\nsearch elsewhere\n"
)

// A box is a folder that is a machine.
type box struct {
	*testing.T
	root string
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{t, t.TempDir()}
	for _, dir := range []string{"etc", "var/lib", "run/systemd/resolve", "run/NetworkManager"} {
		b.must(os.MkdirAll(filepath.Join(b.root, dir), 0o755))
	}
	b.must(os.Chmod(filepath.Join(b.root, "etc"), 0o755))
	return b
}

func (b *box) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *box) path(name string) string { return filepath.Join(b.root, name) }

func (b *box) save(name, text string) {
	b.Helper()
	past := time.Now().Add(-time.Minute)
	b.must(os.WriteFile(b.path(name), []byte(text), 0o644))
	b.must(os.Chtimes(b.path(name), past, past))
}

// is says what a file is.
func (b *box) is(name string) string {
	b.Helper()
	c, err := fakeMachine(b.root).read(name)
	b.must(err)
	switch {
	case c == nil:
		return "none"
	case c.link:
		return "-> " + c.text
	}
	return fmt.Sprintf("%v %s", c.mode, c.text)
}

// do runs a verb in a process of its own and reports whether it was killed.
func (b *box) do(verb string, step int, meet string) bool {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envRoot+"="+b.root, envVerb+"="+verb, envStep+"="+strconv.Itoa(step), envMeet+"="+meet, "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		b.Fatalf("%s: %v\n%s", verb, err, out)
	}
	return false
}

// wantResolver checks that whoever reads resolv.conf now finds nameservers, and wholly one file or another.
func (b *box) wantResolver(texts ...string) {
	b.Helper()
	m := fakeMachine(b.root)
	now, err := m.read(resolv)
	b.must(err)
	if now.ours() {
		if f := hostdns.Parse(now.text); text(f.Sentinels) != "100.100.111.1 100.100.111.2" {
			b.Errorf("it names %v:\n%s", f.Sentinels, now.text)
		}
		return
	}
	is := b.is(resolv)
	for _, text := range texts {
		if strings.HasSuffix(is, " "+text) {
			return
		}
	}
	b.Errorf("resolv.conf is %s", is)
}
