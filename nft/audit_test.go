package nft

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// What is in audit passes and is counted; what is not is refused.
func TestAudit(t *testing.T) {
	for name, tt := range map[string]struct{ local, gateway bool }{
		"local": {true, false}, "gateway": {false, true}, "both": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := worldRules(t)
			r.AuditLocal, r.AuditGateway = tt.local, tt.gateway
			r.Upstream, r.Self = upstreams(t, to(3, 443)...), backend.Program{User: 1001}
			n := guardedNetwork(t, r)
			n.open(time.Hour, 1, backend.Scope{Holder: backend.Machine}, n.link("lan0"))
			for from, audited := range map[speaker]bool{n.here: tt.local, n.client: tt.gateway} {
				for _, network := range []string{"tcp", "udp"} {
					n.reaches(from, true, network, to(1, 443)...)
					n.reaches(from, audited, network, to(2, 443)...)
					n.reaches(from, audited, network, to(1, 53)...)
					n.reaches(from, audited, network, to(3, 443)...)
				}
			}
			for h, tally := range n.tallies() {
				audited := map[backend.Hook]bool{backend.Output: tt.local, backend.Forward: tt.gateway}[backend.Hook(h)]
				passed, refused := tally.Audited.Packets >= 12, tally.Refused.Packets >= 12 // a connection each
				if passed != audited || refused == audited || passed && tally.Refused.Packets > 0 || refused && tally.Audited.Packets > 0 {
					t.Errorf("%v: %+v", backend.Hook(h), tally)
				}
			}
			for f := range n.listed() {
				if f.Audited != map[backend.Hook]bool{backend.Output: tt.local, backend.Forward: tt.gateway}[f.Hook] {
					t.Error(f)
				}
			}
		})
	}
}

// try begins a trial, or ends it.
func (n *network) try(life time.Duration) {
	n.Helper()
	if err := n.Trial(n.Context(), time.Now().Add(life)); err != nil {
		n.Fatal(err)
	}
}

// both reports whether what nothing allows passes, or is refused, on both chains.
func (n *network) both(pass bool, number int) bool {
	n.Helper()
	errLocal := reach(n.Context(), n.here, pass, "udp", to(number, 443)[0])
	errGateway := reach(n.Context(), n.client, pass, "udp", to(number, 443)[1])
	return (errLocal == nil) == pass && (errGateway == nil) == pass
}

// passes and refuses, for an address of their own.
func (n *network) passes(number int) bool  { n.Helper(); return n.both(true, number) }
func (n *network) refuses(number int) bool { n.Helper(); return n.both(false, number) }

func auditedRules(t *testing.T) backend.Rules {
	r := worldRules(t)
	r.AuditLocal, r.AuditGateway = true, true
	return r
}

// While a trial lasts, what is in audit is refused, and counted as that.
func TestTrial(t *testing.T) {
	n := guardedNetwork(t, auditedRules(t))
	n.open(time.Hour, 1, backend.Scope{Holder: backend.Machine}, n.link("lan0"))
	count := func() (refused, audited uint64) {
		for _, tally := range n.tallies() {
			refused += tally.Refused.Packets
			audited += tally.Audited.Packets
		}
		return refused, audited
	}
	if !n.passes(2) {
		t.Error("refused before the trial")
	}
	n.try(time.Hour)
	refused, audited := count()
	if !n.refuses(3) {
		t.Error("passed in the trial")
	}
	n.reaches(n.here, true, "tcp", to(1, 443)...)
	n.reaches(n.client, true, "tcp", to(1, 443)...)
	if r, a := count(); a != audited || refused != 0 || r == 0 {
		t.Errorf("%d refused, %d before; %d audited, %d before", r, refused, a, audited)
	}
	n.try(-time.Hour)
	if !n.passes(4) {
		t.Error("refused after the trial")
	}
	began := time.Now()
	n.try(500 * time.Millisecond)
	if !n.refuses(5) && time.Since(began) < 500*time.Millisecond-tickOfKernel {
		t.Error("passed in the second trial")
	}
	backendtest.Eventually(t, "the trial has ended by itself", func() bool { return n.passes(6) })
	if took := time.Since(began); took < 500*time.Millisecond-tickOfKernel {
		t.Errorf("it has ended after %v", took)
	}
}

// trialChild is the environment of the process that begins a trial.
const trialChild = "TRIAL_CHILD"

// The kernel ends a trial also when the process that began it is killed.
func TestTrialEndsAfterKill(t *testing.T) {
	if os.Getenv(trialChild) != "" {
		b := New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{})
		if err := b.Open(auditedRules(t)); err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(2 * time.Second)
		if err := b.Trial(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		fmt.Println("until", end.UnixNano())
		select {}
	}
	n := newNetwork(t)
	t.Cleanup(func() { removeTable(t, backendtest.Rules().Table) })
	child := exec.Command("/proc/self/exe", "-test.run=^TestTrialEndsAfterKill$")
	child.Env = append(os.Environ(), trialChild+"=yes")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var end int64
	for lines := bufio.NewScanner(out); end == 0 && lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "until %d", &end); err != nil {
			t.Log(lines.Text())
		}
	}
	if end == 0 {
		t.Error("the trial has not begun")
	}
	if err := child.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if !n.refuses(1) && time.Now().Before(time.Unix(0, end).Add(-tickOfKernel)) {
		t.Error("passed in the trial")
	}
	backendtest.Eventually(t, "the trial has ended", func() bool { return n.passes(2) })
	// The next process finds audit, and goes on with it.
	n.guard(auditedRules(t))
	if !n.passes(3) {
		t.Error("refused after the trial")
	}
}

// A trial goes on when somebody has flushed the ruleset, also one that an earlier
// process has begun.
func TestTrialStandsFlushes(t *testing.T) {
	n := newNetwork(t)
	n.guarded = open(t, ownerless, auditedRules(t))
	n.try(time.Hour)
	for i := range 2 {
		foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
		backendtest.Eventually(t, "the rules are back", func() bool { return n.count("repaired: rules") == 1 && n.enforcing() })
		if !n.refuses(2 + i) {
			t.Error("the trial is over")
		}
		if i == 0 {
			if err := n.Close(backend.Keep); err != nil {
				t.Fatal(err)
			}
			n.guarded = open(t, ownerless, auditedRules(t))
		}
	}
}

// Connections that began in audit go on when it ends, for good or for a trial: also those
// of UDP where programs are told apart. New ones do not.
func TestLiveConnectionsOutliveAudit(t *testing.T) {
	for name, end := range map[string]func(*network, backend.Rules){
		"enforced": func(n *network, r backend.Rules) {
			r.AuditLocal, r.AuditGateway = false, false
			if err := n.Open(r); err != nil {
				n.Fatal(err)
			}
		},
		"tried": func(n *network, _ backend.Rules) { n.try(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			r := auditedRules(t)
			r.LocalHolders = applicationRules(t).LocalHolders
			n := guardedNetwork(t, r)
			var live []net.Conn
			for _, from := range []speaker{n.here, n.as(1000), n.client} {
				for _, network := range []string{"tcp", "udp"} {
					for i := 0; from != nil && i < 2; i++ {
						conn, err := from.Dial(t.Context(), network, to(1, 443)[i])
						if err != nil {
							t.Fatal(err)
						}
						defer conn.Close()
						if err := echo(conn); err != nil {
							t.Fatal(err)
						}
						live = append(live, conn)
					}
				}
			}
			end(n, r)
			for range 3 {
				for _, conn := range live {
					if err := echo(conn); err != nil {
						t.Errorf("%v to %v: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
					}
				}
			}
			if !n.refuses(2) {
				t.Error("new connections pass")
			}
		})
	}
}
