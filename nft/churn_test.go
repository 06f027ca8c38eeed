package nft

import (
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// Under steady writes the kernel's own collector starves, and what has run out
// counts against the size of the set. So a set that has room for what lives, and
// not for all the dead, must never be full.
func TestChurn(t *testing.T) {
	const (
		atOnce, every = 30, 10 * time.Millisecond // 3,000 a second
		life          = time.Second
		lasting       = 5 * time.Second
	)
	rules := backendtest.Rules()
	// Half of them are IPv4, half IPv6, and twice as many have room, since what
	// runs out while this machine is held up is left to the kernel.
	rules.MaxGrants = int(life/every) * atOnce
	g := open(t, observed, rules)
	tick := time.NewTicker(every)
	defer tick.Stop()
	made := 0
	var ends []time.Time // of the batches
	for end := time.Now().Add(lasting); time.Now().Before(end); <-tick.C {
		ends = append(ends, time.Now().Add(life))
		g.grant(ends[len(ends)-1], made, atOnce)
		made += atOnce
	}
	live := 0
	for _, end := range ends {
		if time.Now().Before(end) {
			live += atOnce
		}
	}
	listed := len(g.inKernel())
	t.Logf("%d made, %d live, %d listed", made, live, listed)
	if listed > live*11/10+10*atOnce {
		t.Errorf("%d grants are listed, of which %d live", listed, live)
	}
	backendtest.Eventually(t, "the sets are empty", func() bool { return len(g.inKernel()) == 0 })
	g.accounts()
	if n := g.count(""); n > 1 {
		t.Errorf("there was trouble: %v", g.lines)
	}
}

// The same addresses again and again, as many clients ask for them: re-adding
// what has run out but was not collected ends in EBUSY.
func TestRenewalsOfWhatRunsOut(t *testing.T) {
	g := openBackend(t)
	const n = 50
	for i, end := 0, time.Now().Add(3*time.Second); time.Now().Before(end); i++ {
		g.grant(time.Now().Add(30*time.Millisecond), 0, n)     // runs out before it is removed
		g.grant(time.Now().Add(300*time.Millisecond), n, n)    // is removed shortly after
		g.grant(time.Now().Add(2*time.Second), 2*n, n)         // gets longer each time
		g.grant(time.Now().Add(30*time.Millisecond), 3*n+i, 1) // and some that nobody asks for again
		time.Sleep(7 * time.Millisecond)
	}
	if g.count("failed") > 0 {
		t.Errorf("there was trouble: %v", g.lines)
	}
	backendtest.Eventually(t, "the sets are empty", func() bool { return len(g.inKernel()) == 0 })
	g.accounts()
}
