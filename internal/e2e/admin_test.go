package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Exit codes of guardctl, as its man page has them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNo          = 3
	exitUnreachable = 4
	exitForbidden   = 5
	exitConflict    = 6
)

// socket is a path for an admin socket, and the line of the directive that says so.
func (w *world) socket() (path, option string) {
	w.Helper()
	dir := w.TempDir()
	w.must(os.Chmod(dir, 0o777)) // CoreDNS may run as another user
	w.must(os.Chmod(filepath.Dir(dir), 0o755))
	path = filepath.Join(dir, "admin.sock")
	return path, "admin unix:" + path
}

// guardctl runs the program on the guard, and returns what it has written, and its exit
// code.
func (w *world) guardctl(as netlab.As, socket string, args ...string) (output string, code int) {
	w.Helper()
	c := w.guard.Command(guardctlBinary(w.T), append([]string{"--socket", socket}, args...)...)
	c.As = as
	c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // or the race detector waits for a second at its end
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.Fatal(err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return c.Output(), code
}

// ctl is guardctl as root, and fails the test unless it ends with this code.
func (w *world) ctl(socket string, code int, args ...string) string {
	w.Helper()
	out, got := w.guardctl(netlab.As{}, socket, args...)
	if got != code {
		w.Errorf("guardctl %s ended with %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// asks is a client of the admin socket.
func (w *world) asks(socket string) *admin.Client {
	c := admin.NewClient(socket)
	w.Cleanup(c.Close)
	return c
}

// states are those of the hooks.
func (w *world) states(socket string) string {
	w.Helper()
	c := admin.NewClient(socket)
	defer c.Close() // there are 64 places, and who waits asks often
	s, err := c.Status(context.Background())
	w.must(err)
	var all []string
	for _, h := range s.Hooks {
		all = append(all, h.Name+" "+string(h.State))
	}
	return strings.Join(all, ", ")
}

// The socket is for root, CoreDNS's own user and the group: others find it shut, and are
// refused where it is not.
func TestAdminSocketIsNotForStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	stranger := netlab.As{User: w.user(1000)}
	as := w.asCoreDNS()
	w.startAs(as, corefile(guardBlock("nft-local", option)))
	for _, who := range []netlab.As{{}, {User: as.User}} {
		if out, code := w.guardctl(who, path, "status"); code != exitOK || !strings.Contains(out, "in force") {
			t.Errorf("%v: ended with %d: %s", who, code, out)
		}
	}
	info, err := os.Stat(path)
	w.must(err)
	if info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %v", info.Mode())
	}
	for _, mode := range []os.FileMode{0o660, 0o666} { // as if somebody had opened it to all
		w.must(os.Chmod(path, mode))
		for _, args := range [][]string{{"status"}, {"flush"}, {"disarm"}, {"audit"}} {
			if out, code := w.guardctl(stranger, path, args...); code != exitForbidden {
				t.Errorf("mode %v: %v by a stranger ended with %d: %s", mode, args, code, out)
			}
		}
	}
	if got := w.states(path); got != "output enforced" {
		t.Errorf("the guard is %s", got)
	}
}

// Exit codes are what scripts go by.
func TestGuardctlExitCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	w.ctl(path, exitUnreachable, "status")
	w.start(corefile(guardBlock("nft-both", option)))
	open, shut := w.self().addr4(1), w.self().addr4(2)
	w.lookup(w.guard, "127.0.0.1", open, 60)
	for _, tt := range []struct {
		code int
		args []string
	}{
		{exitOK, []string{"--version"}},
		{exitOK, []string{"help"}},
		{exitOK, []string{"completion", "bash"}},
		{exitOK, []string{"status"}},
		{exitOK, []string{"grants", "--address", open}},
		{exitOK, []string{"explain", open, "--user", "root"}},
		{exitNo, []string{"explain", shut}},
		{exitNo, []string{"explain", "never.test"}},
		{exitUsage, nil},
		{exitUsage, []string{"nonsense"}},
		{exitUsage, []string{"status", "now"}},
		{exitUsage, []string{"explain"}},
		{exitUsage, []string{"explain", open, "--to", "tcp/x"}},
		{exitUsage, []string{"explain", open, "--colour"}},
		{exitUsage, []string{"grants", "--address", "x"}},
		{exitUsage, []string{"revoke"}},
		{exitUsage, []string{"trial", "soon"}},
		{exitUsage, []string{"trial", "-1m"}},
		{exitUsage, []string{"audit", "forward"}},
		{exitConflict, []string{"trial", "1m"}},
		{exitConflict, []string{"confirm"}},
	} {
		w.ctl(path, tt.code, tt.args...)
	}
	if out := w.ctl(path, exitOK, "status"); !strings.Contains(out, "ipdestinationguard "+release+", ") {
		t.Errorf("status does not say which version it is:\n%s", out)
	}
	for _, args := range [][]string{{"status"}, {"grants"}, {"explain", open, "--user", "root"}, {"denied"}, {"flush"}, {"enforce"}} {
		var v map[string]any
		if out := w.ctl(path, exitOK, append(args, "--json")...); json.Unmarshal([]byte(out), &v) != nil {
			t.Errorf("guardctl %v --json is no JSON: %s", args, out)
		}
	}
}

// What is in audit passes; a trial refuses it, ends by itself, also when CoreDNS is killed
// meanwhile, and is kept when it is confirmed.
func TestTrial(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	c := w.start(corefile(guardBlock("nft-both", option, "audit")))
	self, behind := w.self(), w.behind()
	open := func() {
		t.Helper()
		for _, p := range []party{self, behind} {
			w.wantOpen(p.Host, "tcp", p.addr4(1))
			w.wantOpen(p.Host, "udp", p.addr6(1))
		}
	}
	shut := func() {
		t.Helper()
		for _, p := range []party{self, behind} {
			w.wantRefused(p.Host, "tcp", p.addr4(1))
		}
	}
	const short = 5 * time.Second
	shutUntil := func(end time.Time, parties ...party) { // what is found later says nothing
		t.Helper()
		for _, p := range parties {
			if err := w.connect(p.Host, "tcp", p.addr4(1)); err == nil && time.Now().Before(end) {
				t.Errorf("%s: open in a trial", p.Name())
			}
		}
	}
	open()
	if out := w.ctl(path, exitOK, "status"); strings.Count(out, "AUDIT") != 2 {
		t.Errorf("status in audit:\n%s", out)
	}
	// counted waits until metrics say what is in audit, and that there was such a packet.
	counted := func(became string, output, forward float64) {
		t.Helper()
		for hook, audited := range map[string]float64{"output": output, "forward": forward} {
			const variable = "coredns_ipdestinationguard_"
			if got := w.metric(variable + "audit{chain=\"" + hook + "\"}"); got != audited {
				t.Errorf("audit of %s is %v, want %v", hook, got, audited)
			}
			labels := "{became=\"" + became + "\",chain=\"" + hook + "\""
			w.eventually(became+" packets are counted, "+hook, func() bool {
				all, told := w.metric(variable+"denied_all_packets_total"+labels), w.metric(variable+"denied_packets_total"+labels)
				return 0 < told && told <= all
			})
		}
	}
	counted("audit", 1, 1)
	for _, hook := range []string{"output", "forward"} {
		if n := w.metric("coredns_ipdestinationguard_denied_all_packets_total{became=\"refused\",chain=\"" + hook + "\""); n != 0 {
			t.Errorf("%v packets are counted as refused in audit, %s", n, hook)
		}
	}

	end := time.Now().Add(short)
	w.ctl(path, exitOK, "trial", short.String())
	shutUntil(end, self, behind)
	w.eventually("the trial has ended", func() bool { return w.states(path) == "output audit, forward audit" })
	const ended = "The trial has ended, and nobody has confirmed it: AUDIT: what no grant covers passes"
	w.eventually("its end is logged", func() bool { return strings.Contains(c.Output(), ended) })
	open()

	w.ctl(path, exitOK, "trial", "1h")
	shut()
	counted("refused", 0, 0)
	w.ctl(path, exitOK, "confirm")
	shut()
	if got := w.states(path); got != "output enforced, forward enforced" {
		t.Errorf("after confirm: %s", got)
	}
	w.must(c.Signal(syscall.SIGUSR1)) // a reload keeps it
	w.eventually("the reload is over", func() bool { return strings.Count(c.Output(), "In force: ") == 2 })
	shut()
	if got := w.states(path); got != "output enforced, forward enforced" {
		t.Errorf("after a reload: %s", got)
	}
	w.ctl(path, exitOK, "audit", "gateway")
	w.wantRefused(w.guard, "tcp", self.addr4(1))
	w.wantOpen(w.client, "tcp", behind.addr4(1))
	counted("refused", 0, 1)
	w.ctl(path, exitOK, "audit")
	open()
	w.ctl(path, exitOK, "enforce", "local")
	w.wantRefused(w.guard, "tcp", self.addr4(1))
	w.wantOpen(w.client, "tcp", behind.addr4(1))
	w.ctl(path, exitOK, "audit")
	open()

	if n := strings.Count(c.Output(), ended); n != 1 {
		t.Errorf("it is logged %d times that a trial has ended, and one has", n)
	}
	end = time.Now().Add(short)
	w.ctl(path, exitOK, "trial", short.String())
	over := time.Now().Add(short)
	shutUntil(end, self, behind)
	w.must(c.Signal(syscall.SIGKILL))
	_ = c.Wait()
	shutUntil(end, self)
	time.Sleep(time.Until(over) + 200*time.Millisecond)
	open()
}

// Without CoreDNS, guardctl removes the table itself; with it, CoreDNS does and goes on
// answering.
func TestDisarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	c := w.start(corefile(guardBlock("nft-both", option)))
	self, behind := w.self(), w.behind()
	w.must(c.Signal(syscall.SIGKILL))
	_ = c.Wait()
	w.wantRefused(w.guard, "tcp", self.addr4(1))
	if out, code := w.guardctl(netlab.As{User: w.user(1000)}, path, "disarm"); code == exitOK {
		t.Errorf("disarmed by a stranger: %s", out)
	}
	w.wantRefused(w.guard, "tcp", self.addr4(1))
	if out := w.ctl(path, exitOK, "disarm", "--table", "another"); !strings.Contains(out, "no table inet another: nothing was guarded") {
		t.Error(out)
	}
	w.wantRefused(w.guard, "tcp", self.addr4(1))
	if out := w.ctl(path, exitOK, "disarm"); !strings.Contains(out, "is gone") {
		t.Error(out)
	}
	w.wantOpen(w.guard, "tcp", self.addr4(1))
	w.wantOpen(w.client, "tcp", behind.addr4(1))
	if out := w.ctl(path, exitOK, "disarm"); !strings.Contains(out, "nothing was guarded") {
		t.Error(out)
	}

	w.start(corefile(guardBlock("nft-both", option)))
	w.wantRefused(w.guard, "tcp", self.addr4(2))
	if out := w.ctl(path, exitOK, "disarm"); !strings.Contains(out, "until CoreDNS is restarted") {
		t.Error(out)
	}
	w.wantOpen(w.guard, "tcp", self.addr4(2))
	w.wantOpen(w.client, "tcp", behind.addr4(2))
	w.lookup(w.client, gateway4, behind.addr4(3), 60)
	w.ctl(path, exitConflict, "disarm")
}

// A CoreDNS that lives and does not answer: doctor says so, and disarm who has the table, and how to
// end that.
func TestStuck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kernels[0].prepare(w)
	path, option := w.socket()
	c := w.start(corefile(guardBlock("nft-both", option)))
	w.must(c.Signal(syscall.SIGSTOP))
	const silent = "who listens there has not answered for 10s"
	if out := w.ctl(path, exitNo, "doctor"); !strings.Contains(out, "failure  guard: no guard answers: "+path+": "+silent) {
		t.Errorf("doctor:\n%s", out)
	}
	out := w.ctl(path, exitFailed, "disarm")
	for _, want := range []string{"table inet ipdestinationguard cannot be removed: a CoreDNS that does not answer owns it", silent} {
		if !strings.Contains(out, want) {
			t.Errorf("disarm does not say %q:\n%s", want, out)
		}
	}
	found := killing.FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("disarm does not say which process it is:\n%s", out)
	}
	pid, err := strconv.Atoi(found[1])
	w.must(err)
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(name) != "coredns\n" {
		t.Fatalf("process %d is %q, %v", pid, name, err)
	}
	w.wantRefused(w.guard, "tcp", w.self().addr4(1))
	w.must(syscall.Kill(pid, syscall.SIGKILL))
	_ = w.exits(c)
	if out := w.ctl(path, exitOK, "disarm"); !strings.Contains(out, "is gone") {
		t.Error(out)
	}
	w.wantOpen(w.guard, "tcp", w.self().addr4(1))
}

var killing = regexp.MustCompile(`kill -KILL ([0-9]+), `)

// A name, an address or a client can be revoked; live connections go on unless they are
// cut.
func TestRevoke(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	w.start(corefile(guardBlock("nft-both", option)))
	self, behind := w.self(), w.behind()
	time.Sleep(w.arming()) // until then the guard lets connections pass that it has not seen begin
	w.eventually("the arming has ended", func() bool { return w.arming() == 0 })
	for i := 1; i <= 3; i++ {
		w.lookup(w.client, gateway4, behind.addr4(i), 600)
		w.lookup(w.guard, "127.0.0.1", self.addr4(i), 600)
	}
	conn, err := w.dial(w.client, "tcp", behind.addr4(1))
	w.must(err)
	defer conn.Close()
	w.must(echo(conn))
	w.ctl(path, exitOK, "revoke", nameOf(600, behind.addr4(1)))
	w.wantRefused(w.client, "tcp", behind.addr4(1))
	w.must(echo(conn))
	w.ctl(path, exitOK, "revoke", behind.addr4(1), "--cut")
	if err := echo(conn); err == nil {
		t.Error("a connection that was cut goes on")
	}
	w.wantOpen(w.client, "tcp", behind.addr4(2))
	w.ctl(path, exitOK, "revoke", "192.168.50.2")
	w.wantRefused(w.client, "tcp", behind.addr4(2))
	w.wantRefused(w.client, "tcp", behind.addr4(3))
	w.wantOpen(w.guard, "tcp", self.addr4(2))
	w.ctl(path, exitOK, "revoke", self.addr4(2))
	w.wantRefused(w.guard, "tcp", self.addr4(2))
	w.wantOpen(w.guard, "tcp", self.addr4(3))
	w.ctl(path, exitOK, "flush")
	w.wantRefused(w.guard, "tcp", self.addr4(3))
	w.lookup(w.guard, "127.0.0.1", self.addr4(3), 600)
	w.wantOpen(w.guard, "tcp", self.addr4(3))
}

// askName asks the guard for the addresses of a name, IPv4 or IPv6.
func (w *world) askName(from sender, server, name string, addr netip.Addr) (rcode, answers int) {
	w.Helper()
	m, err := w.ask(from, server, name, typeFor(addr.String()))
	w.must(err)
	return m.Rcode, len(m.Answer)
}
