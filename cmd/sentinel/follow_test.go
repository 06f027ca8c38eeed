package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// begun is a machine that this process has taken.
func (b *box) begun() *machine {
	b.Helper()
	m := fakeMachine(b.root)
	b.must(m.begin())
	b.Cleanup(m.end)
	return m
}

// wantKept checks what CoreDNS is to ask, and what resolv.conf names.
func (b *box) want(nameservers, resolver string) {
	b.Helper()
	if f, err := hostdns.Read(b.path(list)); err != nil && nameservers != "" || err == nil && text(f.Nameservers) != nameservers {
		b.Errorf("for CoreDNS: %v, %v, want %s", f, err, nameservers)
	}
	for _, name := range []string{list, resolv} {
		if info, err := os.Lstat(b.path(name)); err == nil && info.Mode().IsRegular() && info.Mode() != 0o644 {
			b.Errorf("%s: %v, but everybody has to read it", name, info.Mode())
		}
	}
	text, err := os.ReadFile(b.path(resolv))
	b.must(err)
	if got := strings.TrimPrefix(string(text), mark); got != resolver {
		b.Errorf("resolv.conf is %q, want %q", text, resolver)
	}
}

const pointed = "nameserver 100.100.111.1\nnameserver 100.100.111.2\n"

// CoreDNS may be away for a moment; then the machine has its nameservers back, until CoreDNS is.
func TestStepsWithAndWithoutCoreDNS(t *testing.T) {
	b := newBox(t)
	b.save(resolv, lease)
	m, p, now := b.begun(), progress{}, time.Now()
	step := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		b.must(m.step(&p, now))
	}
	const servers = "10.0.0.1 10.0.0.2"
	step(0)
	b.want(servers, pointed+"search lan\noptions edns0\n")
	b.save("dead", "")
	step(askEvery)
	b.want(servers, pointed+"search lan\noptions edns0\n")
	b.must(dhcp(b.root, lease2)) // while it is away
	step(askEvery)
	b.want("10.9.9.9", pointed+"search elsewhere\n")
	step(forgive)
	b.want("10.9.9.9", lease2)
	step(time.Hour)
	b.want("10.9.9.9", lease2)
	b.must(os.Remove(b.path("dead")))
	step(askEvery)
	b.want("10.9.9.9", pointed+"search elsewhere\n")
	b.must(m.undo())
	b.want("", lease2)
}

// What resolv.conf leads to is followed, and comes back as a link.
func TestStepsOverALink(t *testing.T) {
	for _, link := range []string{"../run/NetworkManager/resolv.conf", "/run/NetworkManager/resolv.conf", "other"} {
		t.Run(link, func(t *testing.T) {
			b := newBox(t)
			b.save("run/NetworkManager/resolv.conf", "nameserver 10.0.0.1\nsearch a\n")
			b.must(os.Symlink("/etc/../run/NetworkManager/resolv.conf", b.path("etc/other"))) // a link to a link, as seen by the machine
			b.must(os.Symlink(link, b.path(resolv)))
			m, p := b.begun(), progress{}
			b.must(m.step(&p, time.Now()))
			b.want("10.0.0.1", pointed+"search a\n")
			b.save("run/NetworkManager/resolv.conf", "nameserver 10.0.0.7\nsearch b\n")
			b.must(m.step(&p, time.Now()))
			b.want("10.0.0.7", pointed+"search b\n")
			b.save("run/NetworkManager/resolv.conf", "# the network is gone\n")
			b.must(m.step(&p, time.Now()))
			b.want("10.0.0.7", pointed)
			b.must(m.undo())
			if is := b.is(resolv); is != "-> "+link {
				t.Errorf("resolv.conf is %s", is)
			}
		})
	}
}

// Who writes in place is not interrupted.
func TestStepsLeaveAFileAloneThatIsWritten(t *testing.T) {
	b := newBox(t)
	b.save(resolv, lease)
	m, p, now := b.begun(), progress{}, time.Now()
	b.must(os.Chtimes(b.path(resolv), now, now))
	b.must(m.step(&p, now.Add(settle/2)))
	b.want("", lease)
	b.must(m.step(&p, now.Add(settle)))
	b.want("10.0.0.1 10.0.0.2", pointed+"search lan\noptions edns0\n")
}

// Somebody has deleted what was kept: the machine still gets nameservers.
func TestKeptIsLost(t *testing.T) {
	b := newBox(t)
	b.save(resolv, lease)
	m, p := b.begun(), progress{}
	b.must(m.step(&p, time.Now()))
	b.must(os.Remove(b.path(kept)))
	b.must(m.step(&p, time.Now()))
	b.must(m.undo())
	if got := b.is(resolv); !strings.Contains(got, "nameserver 10.0.0.1\nnameserver 10.0.0.2\n") {
		t.Errorf("resolv.conf is %s", got)
	}

	b.must(m.step(&p, time.Now().Add(time.Second)))
	b.must(os.RemoveAll(b.path("var/lib/ipdestinationguard-sentinel")))
	b.must(os.MkdirAll(b.path("var/lib/ipdestinationguard-sentinel"), 0o755))
	if err := m.undo(); err == nil || !strings.Contains(err.Error(), "write /etc/resolv.conf anew") {
		t.Errorf("error %v", err)
	}
	b.wantResolver()
}

// What hostile networks and neighbours put at the places of files.
func TestHostileFiles(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*box)
		err     string
	}{
		{"a resolv.conf without end", func(b *box) { b.save(resolv, strings.Repeat("nameserver 10.0.0.1\n", 1<<16)) }, "which is no resolv.conf"},
		{"a pipe", func(b *box) { b.must(syscall.Mkfifo(b.path(resolv), 0o644)) }, "is no file"},
		{"a folder", func(b *box) { b.must(os.Mkdir(b.path(resolv), 0o755)) }, "is no file"},
		{"none", func(b *box) {}, "there is no /etc/resolv.conf"},
		{"a state folder that is a link", func(b *box) {
			b.save(resolv, lease)
			b.must(os.MkdirAll(b.path("tmp"), 0o755))
			b.must(os.Symlink(b.path("tmp"), b.path("var/lib/ipdestinationguard-sentinel")))
		}, "has to be a folder"},
		{"a state folder of everybody", func(b *box) {
			b.save(resolv, lease)
			b.must(os.MkdirAll(b.path("var/lib/ipdestinationguard-sentinel"), 0o755))
			b.must(os.Chmod(b.path("var/lib/ipdestinationguard-sentinel"), 0o777))
		}, "nobody else may write to it"},
		{"a lock that is a link", func(b *box) {
			b.save(resolv, lease)
			b.must(os.MkdirAll(b.path("var/lib/ipdestinationguard-sentinel"), 0o755))
			b.must(os.Symlink(b.path("etc/precious"), b.path(lock)))
		}, "too many levels of symbolic links"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			c.prepare(b)
			before := b.is2(resolv)
			err := fakeMachine(b.root).up(context.Background(), 0)
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want one with %q", err, c.err)
			}
			if after := b.is2(resolv); after != before {
				t.Errorf("resolv.conf is changed: %s, it was %s", after, before)
			}
			if _, err := os.Lstat(b.path("etc/precious")); err == nil {
				t.Error("a file is made through a link")
			}
		})
	}

	// What stands where files are made is replaced and not written to.
	b := newBox(t)
	b.save(resolv, lease)
	b.save("etc/precious", "precious")
	for _, name := range []string{fresh, part(fresh)} {
		b.must(os.Symlink("precious", b.path(name)))
	}
	b.must(fakeMachine(b.root).up(context.Background(), 0))
	b.want("10.0.0.1 10.0.0.2", pointed+"search lan\noptions edns0\n")
	if is := b.is("etc/precious"); !strings.HasSuffix(is, " precious") {
		t.Errorf("precious is %s", is)
	}

	// A lease names sentinels, and lines that a terminal would obey.
	b = newBox(t)
	b.save(resolv, "nameserver 100.100.111.7\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nsearch \x1b]0;x\x07lan\noptions ndots:1\n")
	b.must(fakeMachine(b.root).up(context.Background(), 0))
	b.want("10.0.0.1", pointed+"options ndots:1\n")
}

// is2 is like is, for what is no file too.
func (b *box) is2(name string) string {
	info, err := os.Lstat(b.path(name))
	if err != nil {
		return "none"
	}
	return info.Mode().String() + " " + info.ModTime().String()
}

func TestOnlyOneAtWork(t *testing.T) {
	b := newBox(t)
	b.save(resolv, lease)
	b.begun()
	for _, verb := range []func(*machine) error{
		func(m *machine) error { return m.up(context.Background(), 0) },
		func(m *machine) error { return m.down() },
		func(m *machine) error { return m.run(context.Background()) },
	} {
		if err := verb(fakeMachine(b.root)); err == nil || !strings.Contains(err.Error(), "systemctl stop ipdestinationguard-sentinel") {
			t.Errorf("error %v", err)
		}
	}
	b.want("", lease)
}

func TestRunEnds(t *testing.T) {
	b := newBox(t)
	b.save(resolv, lease)
	ctx, cancel := context.WithCancel(context.Background())
	m := fakeMachine(b.root)
	m.log = func(format string, _ ...any) {
		if strings.HasPrefix(format, "The machine asks") {
			cancel()
		}
	}
	b.must(m.run(ctx))
	b.want("", lease)
}

// Whose own nameservers do not answer hears what that can be, once.
func TestOwnNameserversDoNotAnswer(t *testing.T) {
	const unheard = "None of them answers"
	for _, answers := range []bool{true, false} {
		b := newBox(t)
		b.save(resolv, lease)
		m, p, now := b.begun(), progress{}, time.Now()
		told := map[string]int{}
		m.log = func(format string, _ ...any) { told[format[:20]]++ }
		m.answers = func(servers []netip.Addr) bool { return answers && text(servers) == "10.0.0.1 10.0.0.2" }
		b.must(m.undo()) // of nothing
		b.must(m.step(&p, now))
		b.save("dead", "")
		for range 3 {
			now = now.Add(forgive)
			b.must(m.step(&p, now))
		}
		b.must(m.undo())
		want := map[string]int{"The machine asks the": 1, "The machine has its ": 1}
		if !answers {
			want[unheard] = 1
		}
		if !maps.Equal(told, want) {
			t.Errorf("own nameservers answer: %v; it tells %v, want %v", answers, told, want)
		}
	}
}

func TestStatus(t *testing.T) {
	b := newBox(t)
	b.save(resolv, lease)
	m := fakeMachine(b.root)
	var out bytes.Buffer
	if err := m.status(&out); err != errNotPointed || !strings.Contains(out.String(), "which names its own nameservers") || !strings.Contains(out.String(), "10.0.0.1 10.0.0.2") {
		t.Errorf("%v\n%s", err, &out)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"sideways"}, {"up", "down"}, {"up", "up"}, {"-x", "up"}, {"up", "-x"}} {
		var errs bytes.Buffer
		if err := command(context.Background(), args, io.Discard, &errs); !errors.Is(err, errUsage) || !strings.Contains(errs.String(), "usage: ") {
			t.Errorf("%q: %v\n%s", args, err, &errs)
		}
	}
	b := newBox(t)
	b.save(resolv, lease)
	for _, args := range [][]string{{"-root", b.root, "status"}, {"status", "-root", b.root}} {
		var out, errs bytes.Buffer
		if err := command(context.Background(), args, &out, &errs); !errors.Is(err, errNotPointed) || !strings.Contains(out.String(), "10.0.0.1 10.0.0.2") {
			t.Errorf("%q: %v\n%s%s", args, err, &out, &errs)
		}
	}
}
