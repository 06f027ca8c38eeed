package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// An office is a machine, with files of its own, and a net in which nameservers and others are:
//
//	guard --- world
//
// Nameserver n is at 198.18.53.n. It answers every name with 198.18.1.n, so that an answer shows who gave it.
type office struct {
	*world
	files string         // has etc, run and var/lib of the machine
	unit  *netlab.Cgroup // of CoreDNS
	as    []string       // what starts CoreDNS as somebody else

	running *coredns // the one that is to end before the next
}

// Sentinels, as everybody has them.
const (
	sentinel1, sentinel2 = "100.100.111.1", "100.100.111.2"
	sentinel6            = "fd00:2021:1111:8000:100:100:111:1"
)

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{world: emptyWorld(t), files: t.TempDir()}
	outside := o.host("world")
	o.guard, o.world.world = o.host("guard"), outside
	o.must(o.lab.Link(o.guard, "wan0", outside, "eth0"))
	o.addrs(o.guard, "wan0", "192.0.2.1/24", "2001:db8::1/64")
	o.addrs(outside, "eth0", "192.0.2.2/24", "2001:db8::2/64")
	o.must(o.guard.Route("0.0.0.0/0", "192.0.2.2"))
	o.must(o.guard.Route("::/0", "2001:db8::2"))
	o.must(outside.Local("198.18.0.0/15"))
	o.must(outside.Echo(echoPort))
	for _, dir := range []string{"etc", "run", "var/lib"} {
		o.must(os.MkdirAll(filepath.Join(o.files, dir), 0o755))
	}
	o.etc("nsswitch.conf", "hosts: files dns\npasswd: files\ngroup: files\n")
	o.etc("hosts", "127.0.0.1 localhost\n")
	o.etc("passwd", "root:x:0:0:root:/:/bin/sh\n")
	o.etc("group", "root:x:0:\n")
	return o
}

// etc writes a file as a DHCP client does: in one step.
func (o *office) etc(name, text string) {
	o.Helper()
	path := filepath.Join(o.files, "etc", name)
	o.save(path+".new", text)
	o.must(os.Rename(path+".new", path))
}

func (o *office) resolvConf() string {
	o.Helper()
	text, err := os.ReadFile(filepath.Join(o.files, "etc/resolv.conf"))
	o.must(err)
	return string(text)
}

// command is a program on the machine, which sees its files.
func (o *office) command(name string, args ...string) *netlab.Cmd {
	const script = `for d in etc run var/lib; do mount --bind "$0/$d" /$d || exit 99; done; exec "$@"`
	return o.guard.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", script, o.files, name}, args...)...)
}

// follow starts the command that follows the machine's nameservers.
func (o *office) follow() *netlab.Cmd {
	o.Helper()
	run := o.command(sentinelBinary(o.T), "run")
	o.must(run.Start())
	return run
}

// sentinel runs the command to its end.
func (o *office) sentinel(args ...string) (string, error) {
	o.Helper()
	cmd := o.command(sentinelBinary(o.T), args...)
	err := cmd.Run()
	return cmd.Output(), err
}

// nameserver starts one.
func (o *office) nameserver(n int, more ...string) *netlab.Cmd {
	o.Helper()
	const block = `%s {
	bind 198.18.53.%d
	%s
	template IN A {
		answer "{{ .Name }} 5 IN A 198.18.1.%d"
	}
	template IN ANY {
		rcode NOERROR
	}
}
`
	text := fmt.Sprintf(block, ".", n, "", n)
	for _, m := range more {
		scheme, rest, _ := strings.Cut(m, " ")
		text += fmt.Sprintf(block, scheme, n, rest, n)
	}
	path := filepath.Join(o.TempDir(), "Corefile")
	o.save(path, text)
	cmd := o.world.world.Command(binary(o.T), "-conf", path)
	o.must(cmd.Start())
	o.eventually("nameserver runs", func() bool { return strings.Contains(cmd.Output(), "CoreDNS-") })
	return cmd
}

// coredns starts the one before which the machine is.
func (o *office) coredns(corefile string) *coredns {
	o.Helper()
	dir := o.TempDir()
	path := filepath.Join(dir, "Corefile")
	o.save(path, corefile)
	o.must(os.Chmod(filepath.Dir(dir), 0o755)) // others have to read it as well
	line := append(slices.Clone(o.as), binary(o.T), "-conf", path)
	c := &coredns{Cmd: o.command(line[0], line[1:]...), corefile: path}
	if o.unit == nil {
		o.unit = o.cgroup("coredns.service")
	}
	c.As = netlab.As{Cgroup: o.unit}
	o.must(c.Start())
	o.Cleanup(func() {
		if o.Failed() {
			o.Logf("CoreDNS wrote:\n%s", c.Output())
		}
	})
	return c
}

const (
	plainSentinels   = ".:53 {\n\terrors\n\tsentinel\n}\n"
	guardedSentinels = ".:53 {\n\terrors\n\tipdestinationguard nft-local {\n\t\tupstream sentinel\n\t\t" + examples + "\n\t}\n\tsentinel\n}\n"
)

// runCoreDNS is coredns when it has started.
func (o *office) runCoreDNS(corefile string) *coredns {
	o.Helper()
	c := o.coredns(corefile)
	started := "CoreDNS-"
	if strings.Contains(corefile, "ipdestinationguard") {
		started = "In force: "
	}
	o.eventually("CoreDNS runs", func() bool { return strings.Contains(c.Output(), started) })
	return c
}

// getent has glibc look a name up, and returns the address and how long it took.
func (o *office) getent(name string, env ...string) (string, time.Duration) {
	o.Helper()
	cmd := o.command("getent", "ahostsv4", name)
	cmd.Env = append(os.Environ(), env...)
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	addr, _, _ := strings.Cut(strings.TrimSpace(cmd.Output()), " ")
	if err != nil {
		addr = "none"
	}
	return addr, took
}

// glibc is told how long to wait for a nameserver: how long a question takes, says how many it has asked in vain.
const (
	toldToWait = "RES_OPTIONS=timeout:10"
	atOnce     = 10 * time.Second
	afterOne   = 2 * atOnce
)

// wantAnswerBy checks who has answered glibc.
func (o *office) wantAnswerBy(n int, within time.Duration) {
	o.Helper()
	addr, took := o.getent("www.example.test", toldToWait)
	if want := fmt.Sprintf("198.18.1.%d", n); addr != want || took >= within {
		o.Errorf("getent says %s after %v, want %s within %v; resolv.conf:\n%s", addr, took, want, within, o.resolvConf())
	}
}

func (o *office) wantPointed(pointed bool) {
	o.Helper()
	is := false
	o.eventually(fmt.Sprintf("resolv.conf names sentinels: %v", pointed), func() bool {
		is = strings.Contains(o.resolvConf(), "nameserver "+sentinel1+"\n")
		return is == pointed
	})
}

// The whole way, under the guard: glibc goes on to the next nameserver when one dies, and what it gets is open.
func TestSentinelsOfAGuardedMachine(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	const lease = "# lease\nnameserver 198.18.53.1\nnameserver 198.18.53.2\nsearch example.test\n"
	o.etc("resolv.conf", lease)
	time.Sleep(400 * time.Millisecond) // or it would be left alone for a moment
	first := o.nameserver(1)
	o.nameserver(2)
	o.wantAnswerBy(1, atOnce)

	// Nobody answers at the sentinels: the machine keeps what it has.
	if out, err := o.sentinel("-wait", "0s", "up"); err == nil || !strings.Contains(out, "start CoreDNS") || o.resolvConf() != lease {
		t.Errorf("up without CoreDNS: %v, %s; resolv.conf:\n%s", err, out, o.resolvConf())
	}
	c := o.runCoreDNS(guardedSentinels)
	if strings.Contains(c.Output(), "WARNING") {
		t.Errorf("it warns:\n%s", c.Output())
	}
	o.wantRefused(o.guard, "tcp", "198.18.1.1")
	out, err := o.sentinel("up")
	if err != nil {
		t.Fatalf("up: %v, %s", err, out)
	}
	if want := "nameserver " + sentinel1 + "\nnameserver " + sentinel2 + "\nsearch example.test\n"; !strings.HasSuffix(o.resolvConf(), want) {
		t.Errorf("resolv.conf:\n%s", o.resolvConf())
	}
	o.wantAnswerBy(1, atOnce)
	o.wantOpen(o.guard, "tcp", "198.18.1.1")
	o.wantRefused(o.guard, "tcp", "198.18.1.2")
	o.wantUpstreamShutAt("198.18.53.1")
	if addr, _ := o.getent("www"); addr != "198.18.1.1" {
		t.Errorf("the search list is lost: %s", addr)
	}

	// It dies without a word, then it is gone.
	o.must(first.Signal(syscall.SIGSTOP))
	o.wantAnswerBy(2, afterOne)
	o.wantOpen(o.guard, "tcp", "198.18.1.2")
	o.must(first.Signal(syscall.SIGKILL))
	_ = first.Wait() // says that it was killed
	o.wantAnswerBy(2, afterOne)
	o.eventually("status tells of it", func() bool {
		out, err := o.sentinel("status")
		return err == nil && strings.Contains(out, "is dead") && strings.Contains(out, `"dns://198.18.53.2:53", which answers`)
	})

	o.wantUpstream(map[string]bool{"sentinel: dns://198.18.53.1:53 (" + sentinel1 + ")": false, "sentinel: dns://198.18.53.2:53 (" + sentinel2 + ")": true})

	// It comes back by itself.
	o.nameserver(1)
	o.eventually("the first nameserver is asked again", func() bool {
		addr, _ := o.getent("again.example.test")
		return addr == "198.18.1.1"
	})

	// The guard goes on: the machine's own nameservers are not open to it.
	if out, err := o.sentinel("down"); err != nil || o.resolvConf() != lease || !strings.Contains(out, "guardctl disarm") {
		t.Errorf("down: %v, %s; resolv.conf:\n%s", err, out, o.resolvConf())
	}
	if addr, _ := o.getent("www.example.test"); addr != "none" {
		t.Errorf("after down beside a guard, getent says %s", addr)
	}
}

// wantUpstream compares with what the guard tells of its nameservers, by whether they answer.
func (o *office) wantUpstream(want map[string]bool) {
	o.Helper()
	list, err := o.asks(filepath.Join(o.files, "run/ipdestinationguard/admin.sock")).Blocks(context.Background())
	o.must(err)
	got := map[string]bool{}
	for _, b := range list.Blocks {
		for _, f := range b.Forwards {
			got[f.Line] = f.Answer != ""
		}
	}
	if !maps.Equal(got, want) {
		o.Errorf("nameservers that answer: %v, want %v", got, want)
	}
}

// wantUpstreamShutAt checks that a nameserver is open to CoreDNS only.
func (o *office) wantUpstreamShutAt(server string) {
	o.Helper()
	for _, network := range networks {
		o.wantDNS(o.guard, network, server, 53, false)
	}
}

// The service: DHCP is followed through the guard, and a kill costs nothing.
func TestSentinelsFollowDHCP(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	for n := 1; n <= 3; n++ {
		o.nameserver(n)
	}
	o.etc("resolv.conf", "nameserver 198.18.53.1\n")
	run := o.follow()
	o.runCoreDNSWhenItCan(guardedSentinels)
	o.wantPointed(true)
	o.wantAnswerBy(1, atOnce)

	// Another network.
	const lease2 = "# another\nnameserver 198.18.53.3\noptions timeout:2\n"
	o.etc("resolv.conf", lease2)
	o.eventually("the new nameserver is asked", func() bool {
		addr, _ := o.getent("www.example.test")
		return addr == "198.18.1.3" && strings.Contains(o.resolvConf(), sentinel1)
	})
	o.wantOpen(o.guard, "tcp", "198.18.1.3")
	o.wantUpstreamShutAt("198.18.53.3")
	o.wantDNS(o.guard, "udp", "198.18.53.1", 53, false)
	if !strings.Contains(o.resolvConf(), "options timeout:2") || strings.Contains(o.resolvConf(), sentinel2) {
		t.Errorf("resolv.conf:\n%s", o.resolvConf())
	}

	// Nobody follows any more. It goes on.
	o.must(run.Signal(syscall.SIGKILL))
	_ = run.Wait() // says that it was killed
	o.wantAnswerBy(3, atOnce)
	run = o.follow()
	o.wantAnswerBy(3, atOnce)
	o.etc("resolv.conf", "nameserver 198.18.53.2\nnameserver 198.18.53.1\n")
	o.eventually("the next new nameserver is asked", func() bool {
		addr, _ := o.getent("www.example.test")
		return addr == "198.18.1.2" && strings.Contains(o.resolvConf(), sentinel2)
	})
	if out, err := o.sentinel("down"); err == nil || !strings.Contains(out, "another one of these is at work") {
		t.Errorf("down beside run: %v, %s", err, out)
	}
	o.must(run.Stop())
	if got := o.resolvConf(); got != "nameserver 198.18.53.2\nnameserver 198.18.53.1\n" {
		t.Errorf("resolv.conf:\n%s", got)
	}
}

// runCoreDNSWhenItCan starts it until it has the addresses, as systemd would.
func (o *office) runCoreDNSWhenItCan(corefile string) *coredns {
	o.Helper()
	o.eventually("lo has the sentinels", func() bool {
		return strings.Contains(o.addresses(), sentinel1+"/32") && strings.Contains(o.addresses(), sentinel6+"/128")
	})
	return o.runCoreDNS(corefile)
}

// addresses are those of the machine.
func (o *office) addresses() string {
	o.Helper()
	var all []net.Addr
	o.must(o.guard.Do(func() (err error) {
		all, err = net.InterfaceAddrs()
		return err
	}))
	return fmt.Sprint(all)
}

// Without CoreDNS, killed perhaps, the machine has its own nameservers back, and CoreDNS when that is back.
func TestSentinelsWithoutCoreDNS(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.nameserver(1)
	const lease = "nameserver 198.18.53.1\n"
	o.etc("resolv.conf", lease)
	run := o.follow()
	c := o.runCoreDNSWhenItCan(plainSentinels)
	o.wantPointed(true)
	o.wantAnswerBy(1, atOnce)
	o.kill(c)
	o.wantPointed(false)
	if o.resolvConf() != lease {
		t.Errorf("resolv.conf:\n%s", o.resolvConf())
	}
	o.wantAnswerBy(1, atOnce)
	o.runCoreDNS(plainSentinels)
	o.wantPointed(true)
	o.wantAnswerBy(1, atOnce)
	o.must(run.Stop())
	if o.resolvConf() != lease {
		t.Errorf("resolv.conf:\n%s", o.resolvConf())
	}
	if all := o.addresses(); strings.Contains(all, "100.100.111.") || strings.Contains(all, "fd00:") {
		t.Errorf("addresses stay: %s", all)
	}
}

// With IPv6 it goes over TCP.
func TestSentinelsOverIPv6(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	first := o.nameserver(1)
	o.nameserver(2)
	o.etc("resolv.conf", "nameserver 198.18.53.1\nnameserver 198.18.53.2\noptions timeout:2\n")
	run := o.follow()
	o.runCoreDNSWhenItCan(strings.Replace(guardedSentinels, "\tsentinel\n", "\tsentinel ipv6\n", 1))
	o.eventually("resolv.conf names sentinels", func() bool { return strings.Contains(o.resolvConf(), "nameserver "+sentinel6+"\n") })
	o.wantAnswerBy(1, atOnce)
	o.wantOpen(o.guard, "tcp", "198.18.1.1")
	o.wantUpstream(map[string]bool{"sentinel ipv6: dns://198.18.53.1:53 (" + sentinel6 + ")": true, "sentinel ipv6: dns://198.18.53.2:53 (" + strings.TrimSuffix(sentinel6, "1") + "2)": true})
	o.must(first.Signal(syscall.SIGSTOP))
	o.wantAnswerBy(2, afterOne)
	o.must(first.Signal(syscall.SIGKILL))
	_ = first.Wait() // says that it was killed
	o.must(run.Stop())
}

// The plugin says what is missing.
func TestSentinelsWithoutAddresses(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.etc("resolv.conf", "nameserver 198.18.53.1\n")
	c := o.coredns(plainSentinels)
	if err := c.Wait(); err == nil || !strings.Contains(c.Output(), "does not have the address 100.100.111.1") || !strings.Contains(c.Output(), "ipdestinationguard-sentinel up") {
		t.Errorf("%v: %s", err, c.Output())
	}
}

// Killed again and again at any moment, in either direction: at no moment is there no resolver.
func TestSentinelsKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.nameserver(1)
	const lease = "nameserver 198.18.53.1\n"
	o.etc("resolv.conf", lease)
	keeper := o.command(sentinelBinary(t), "-wait", "0s", "up")
	_ = keeper.Run() // for the addresses: CoreDNS does not answer yet
	o.runCoreDNS(plainSentinels)
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	looks := 0
	watching.Go(func() {
		for ctx.Err() == nil {
			text, err := os.ReadFile(filepath.Join(o.files, "etc/resolv.conf"))
			if looks++; err != nil || string(text) != lease && !strings.HasSuffix(string(text), "\nnameserver "+sentinel1+"\n") {
				t.Errorf("resolv.conf: %v, %q", err, text)
				return
			}
		}
	})
	for i := range 60 {
		cmd := o.follow()
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		if i%3 == 0 {
			_ = cmd.Signal(syscall.SIGTERM) // its way back is killed as well
			time.Sleep(time.Duration(i/3) * time.Millisecond / 2)
		}
		_ = cmd.Signal(syscall.SIGKILL)
		_ = cmd.Wait() // says that it was killed
		if i%3 == 0 {
			o.wantAnswerBy(1, atOnce)
		}
	}
	cancel()
	watching.Wait()
	if out, err := o.sentinel("down"); err != nil || o.resolvConf() != lease {
		t.Errorf("down: %v, %s; resolv.conf:\n%s", err, out, o.resolvConf())
	}
	if looks < 1000 {
		t.Errorf("it was looked at %d times only", looks)
	}
}
