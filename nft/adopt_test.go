package nft

import (
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// restart leaves g's rules and grants behind, and starts anew.
func (g *guarded) restart() *guarded {
	g.Helper()
	if err := g.Close(backend.Keep); err != nil {
		g.Fatal(err)
	}
	return openBackend(g.T)
}

// adopts waits until the table knows what an earlier process has granted.
func (g *guarded) adopts(until time.Time, first, n int) {
	g.Helper()
	backendtest.Eventually(g.T, "the grants of before are known", func() bool {
		for _, a := range backendtest.Addrs(first, n) {
			known, _ := g.inForce.Lookup(backend.KeyOf(a))
			if known.Before(until.Add(-2*tickOfKernel)) || known.After(until.Add(time.Minute)) {
				return false
			}
		}
		return true
	})
}

func TestRestartAdoptsGrants(t *testing.T) {
	const n = 3000
	hour, day := time.Now().Add(time.Hour), time.Now().Add(24*time.Hour)
	g := openBackend(t)
	g.grant(hour, 0, n)
	g.grant(day, n, n)
	before := g.outline()

	g = g.restart()
	if after := g.outline(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	g.adopts(hour, 0, n)
	g.adopts(day, n, n)
	g.accounts()

	// They are relied upon only when somebody has looked at them again.
	if g.relied(0, 2*n) {
		t.Error("an adopted grant is relied upon unseen")
	}
	g.grant(time.Now().Add(time.Minute), 0, 2*n)
	if !g.keeps(hour, 0, n) || !g.keeps(day, n, n) {
		t.Error("a grant got shorter")
	}
	g.accounts()
	if g.count("failed") > 0 {
		t.Error(g.lines)
	}
}

// A grant asked for before it has been adopted does not get shorter either.
func TestGrantBeforeAdoption(t *testing.T) {
	const n = 3000
	hour, day := time.Now().Add(time.Hour), time.Now().Add(24*time.Hour)
	g := openBackend(t)
	g.grant(hour, 0, n)
	g = g.restart()
	g.grant(time.Now().Add(time.Minute), 0, n)
	if !g.keeps(hour, 0, n) {
		t.Error("a grant got shorter")
	}
	g.grant(day, 0, n)
	if !g.keeps(day, 0, n) {
		t.Error("a grant got no longer")
	}
	g.accounts()
}

func TestAdoptedGrantsExpire(t *testing.T) {
	g := openBackend(t)
	g.grant(time.Now().Add(2*time.Second), 0, 100)
	g.grant(time.Now().Add(time.Hour), 100, 2)
	g = g.restart()
	backendtest.Eventually(t, "the grants of before leave the kernel", func() bool { return len(g.inKernel()) == 2 })
	backendtest.Eventually(t, "the grants of before leave the table", func() bool {
		n := 0
		for range g.inForce.All() {
			n++
		}
		return n == 2
	})
	g.accounts()
}

// A process that ends while it still adopts leaves nothing running; the contract
// counts goroutines, this is about what holds it up.
func TestCloseWhileAdopting(t *testing.T) {
	g := openBackend(t)
	g.grant(time.Now().Add(time.Hour), 0, 20000)
	for range 5 {
		g = g.restart()
	}
	if err := g.Close(backend.Remove); err != nil {
		t.Error(err)
	}
	if p, err := readTable(backendtest.Rules().Table); err != nil || p.exists {
		t.Errorf("the table is still there (%v)", err)
	}
}
