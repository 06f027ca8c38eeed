package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// resolvedBinary is systemd-resolved, which does not have to be installed: SYSTEMD_RESOLVED says where it is.
func (w *world) resolvedBinary() string {
	w.Helper()
	for _, path := range []string{os.Getenv("SYSTEMD_RESOLVED"), "/usr/lib/systemd/systemd-resolved", "/lib/systemd/systemd-resolved"} {
		if path != "" && exec.Command(path, "--version").Run() == nil { // it needs a library of systemd's
			return path
		}
	}
	w.Skip("there is no systemd-resolved that runs (.ci/run says where to take it from)")
	return ""
}

// resolved is systemd-resolved on the machine, started anew whenever systemctl is told to.
type resolved struct {
	*office
	cmd  *netlab.Cmd
	done chan struct{}
	stop chan struct{}
}

func (o *office) resolved(binary string) *resolved {
	o.Helper()
	r := &resolved{office: o, done: make(chan struct{}), stop: make(chan struct{})}
	o.must(os.MkdirAll(filepath.Join(o.files, "run/systemd/resolve"), 0o755))
	wanted := filepath.Join(o.files, "run/reload")
	o.must(os.MkdirAll(filepath.Join(o.files, "run/bin"), 0o755))
	o.must(os.WriteFile(filepath.Join(o.files, "run/bin/systemctl"),
		[]byte("#!/bin/sh\n[ \"$*\" = 'try-reload-or-restart systemd-resolved.service' ] || exit 1\ntouch /run/reload\nwhile [ -e /run/reload ]; do sleep 0.02; done\n"), 0o755))
	r.start(binary)
	go func() {
		defer close(r.done)
		for {
			select {
			case <-r.stop:
				_ = r.cmd.Signal(syscall.SIGKILL)
				return
			case <-time.After(5 * time.Millisecond):
			}
			if _, err := os.Stat(wanted); err == nil {
				_ = r.cmd.Signal(syscall.SIGKILL)
				_ = r.cmd.Wait() // says that it was killed
				r.start(binary)
				_ = os.Remove(wanted)
			}
		}
	}()
	o.Cleanup(func() {
		close(r.stop)
		<-r.done
		if o.Failed() {
			o.Logf("systemd-resolved wrote:\n%s", r.cmd.Output())
		}
	})
	return r
}

// start returns when it listens, or has ended.
func (r *resolved) start(binary string) {
	r.cmd = r.command(binary)
	r.cmd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=info", "SYSTEMD_LOG_TARGET=console")
	if err := r.cmd.Start(); err != nil {
		r.Error(err)
		return
	}
	for range 500 {
		var sockets []byte
		if err := r.guard.Do(func() (err error) {
			sockets, err = os.ReadFile("/proc/thread-self/net/udp")
			return err
		}); err != nil {
			r.Error(err)
			return
		}
		if bytes.Contains(sockets, []byte("3500007F:0035")) { // 127.0.0.53, port 53
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.Errorf("systemd-resolved does not listen:\n%s", r.cmd.Output())
}

// The real systemd-resolved is told by a drop-in file, and its resolv.conf left alone.
func TestSentinelsBehindResolved(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	binary := o.resolvedBinary()
	first := o.nameserver(1)
	o.nameserver(2)
	o.nameserver(3)
	o.etc("passwd", "root:x:0:0:root:/:/bin/sh\nsystemd-resolve:x:0:0::/:/bin/sh\n")
	o.must(os.MkdirAll(filepath.Join(o.files, "etc/systemd"), 0o755))
	const settings = "[Resolve]\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\nCache=no\nDNS="
	o.etc("systemd/resolved.conf", settings+"198.18.53.1 198.18.53.2\n")
	const link = "../run/systemd/resolve/stub-resolv.conf"
	o.must(os.Symlink(link, filepath.Join(o.files, "etc/resolv.conf")))
	o.resolved(binary)
	o.wantResolvedBy(1)

	run := o.command(sentinelBinary(t), "run")
	run.Env = append(os.Environ(), "PATH=/run/bin:"+os.Getenv("PATH"))
	o.must(run.Start())
	o.Cleanup(func() {
		if t.Failed() {
			t.Logf("run wrote:\n%s", run.Output())
		}
	})
	o.runCoreDNSWhenItCan(guardedSentinels)
	uplinks := filepath.Join(o.files, "run/systemd/resolve/resolv.conf")
	lists := func(want ...string) func() bool {
		return func() bool {
			text, _ := os.ReadFile(uplinks)
			n := strings.Count(string(text), "nameserver ")
			for _, w := range want {
				if !strings.Contains(string(text), "nameserver "+w+"\n") {
					return false
				}
			}
			return n == len(want)
		}
	}
	o.eventually("systemd-resolved asks the sentinels", lists(sentinel1, sentinel2))
	o.wantResolvedBy(1)
	o.wantOpen(o.guard, "tcp", "198.18.1.1")

	// It goes on to the second as one of its nameservers dies.
	o.must(first.Signal(syscall.SIGSTOP))
	o.wantResolvedBy(2)
	o.must(first.Signal(syscall.SIGKILL))
	_ = first.Wait() // says that it was killed

	// Somebody configures others.
	o.etc("systemd/resolved.conf", settings+"198.18.53.3\n")
	o.eventually("systemd-resolved asks one sentinel", lists(sentinel1))
	o.wantResolvedBy(3)
	o.wantOpen(o.guard, "tcp", "198.18.1.3")

	// A kill leaves it as it is; an end undoes it.
	o.must(run.Signal(syscall.SIGKILL))
	_ = run.Wait() // says that it was killed
	o.wantResolvedBy(3)
	down := o.command(sentinelBinary(t), "down")
	down.Env = append(os.Environ(), "PATH=/run/bin:"+os.Getenv("PATH"))
	if err := down.Run(); err != nil {
		t.Errorf("down: %v, %s", err, down.Output())
	}
	o.eventually("systemd-resolved asks what it asked before", lists("198.18.53.3"))
	if to, err := os.Readlink(filepath.Join(o.files, "etc/resolv.conf")); err != nil || to != link {
		t.Errorf("resolv.conf: %q, %v", to, err)
	}
}

func (o *office) wantResolvedBy(n int) {
	o.Helper()
	o.eventually("the nameserver answers through systemd-resolved", func() bool {
		addr, _ := o.getent("www.example.test")
		return addr == "198.18.1."+string(rune('0'+n))
	})
}
