package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What guardctl learns in audit is a block with which all of it passes when it is
// enforced, and nothing else. Names of a stranger's making say nothing in it.
func TestLearn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	const routed = "route **.routed.test {\n\t\tslots 2\n\t}"
	c := w.start(strings.Replace(corefile(guardBlock("nft-both", option, "audit", "interfaces lan0", routed)), examples, "private **.test 198.18.0.0/15 2001:db8:18::/48", 1))
	self, behind := w.self(), w.behind()
	named := nameOf(60, behind.addr4(1))
	w.lookup(w.client, gateway4, behind.addr4(1), 60)
	w.wantOpen(w.client, "tcp", behind.addr4(1))
	w.wantOpen(w.client, "tcp", behind.addr4(2)) // without a name
	w.wantOpen(w.guard, "tcp", self.addr6(2))
	nas := "a-192-0-2-2.nas.test."
	if _, n := w.askName(w.client, gateway4, nas, mustAddr("192.0.2.2")); n > 0 {
		t.Error("it was not taken out")
	}
	w.wantOpen(w.client, "tcp", "192.0.2.2")
	for _, label := range []string{`\}`, `x\010import\ /etc/passwd`, `{$HOME}`, `\#`, `\"`, `private`, `a\;b`, `import`} {
		if _, err := w.ask(w.client, gateway4, label+".a-198-18-9-9.test.", dns.TypeA); err != nil {
			t.Error(err)
		}
	}

	var block string
	w.eventually("all has been denied", func() bool {
		block = w.ctl(path, exitOK, "learn")
		return strings.Contains(block, "private a-192-0-2-2.nas.test 192.0.2.2") && strings.Contains(block, "allowedGatewayIPs "+behind.addr4(2)) &&
			strings.Contains(block, "allowedLocalIPs "+self.addr6(2))
	})
	for _, want := range []string{"names " + strings.TrimSuffix(named, "."), "Left out: 6 names with unusual characters", "names import.a-198-18-9-9.test\n"} {
		if !strings.Contains(block, want) {
			t.Errorf("not learned: %s", want)
		}
	}
	for _, bad := range []string{"passwd", "HOME", "\n}\n}"} {
		if strings.Contains(block, bad) {
			t.Errorf("learned: %q", bad)
		}
	}
	if t.Failed() {
		t.Fatalf("it was:\n%s", block)
	}
	w.must(c.Stop())

	// It stands in the place of the other as it is, but for the end of audit.
	if strings.Count(block, "    audit\n") != 1 {
		t.Errorf("it is not in audit as before:\n%s", block)
	}
	w.start(strings.Replace(corefile("X"), "X", strings.Replace(block, "    audit\n", "", 1), 1))
	w.ctl(path, exitOK, "status")
	w.lookup(w.client, gateway4, behind.addr4(1), 60)
	w.wantOpen(w.client, "tcp", behind.addr4(1))
	w.wantOpen(w.client, "tcp", behind.addr4(2))
	w.wantOpen(w.guard, "tcp", self.addr6(2))
	if _, n := w.askName(w.client, gateway4, nas, mustAddr("192.0.2.2")); n != 1 {
		t.Error("it is taken out")
	}
	w.wantOpen(w.client, "tcp", "192.0.2.2")
	w.wantRefused(w.client, "tcp", behind.addr4(3))
	w.askName(w.client, gateway4, nameOf(60, behind.addr4(4)), mustAddr(behind.addr4(4)))
	w.wantRefused(w.client, "tcp", behind.addr4(4)) // a name that was not learned
}

// The screen shows who is denied most, and does without a terminal.
func TestWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	w.start(corefile(guardBlock("nft-both", option)))
	watch := w.guard.Command(guardctlBinary(t), "--socket", path, "watch", "--interval", "500ms", "--times", "4")
	w.must(watch.Start())
	ended := make(chan error)
	go func() { ended <- watch.Wait() }()
	for watching := true; watching; {
		conn, err := w.dial(w.client, "udp", w.behind().addr4(5))
		w.must(err)
		_, _ = conn.Write([]byte("x"))
		conn.Close()
		select {
		case err := <-ended:
			watching = false
			w.must(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	out := watch.Output()
	screens := strings.Split(out, "guard in force: ")
	last := screens[len(screens)-1]
	if len(screens) != 5 || !strings.Contains(last, w.behind().addr4(5)) || !strings.Contains(last, "never resolved here") || strings.Contains(last, "refused 0.0/s, audit 0.0/s\nforward  what no grant covers is refused; refused 0.0/s") {
		t.Errorf("%d screens, the last one:\n%s", len(screens)-1, last)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("it steers a terminal that is none")
	}
}
