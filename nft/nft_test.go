package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m.Run) }

func TestContract(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) (backend.Backend, *backend.InForce) {
		t.Cleanup(func() { removeTable(t, backendtest.Rules().Table) })
		b := newBackend(t)
		return b, b.inForce
	})
}

func newBackend(t testing.TB) *Backend { return observed(t, backendtest.Quiet{}) }

func observed(t testing.TB, events backend.Observer) *Backend {
	b := New(expiry.NewTable[backend.Key](time.Now()), events)
	t.Cleanup(func() {
		if err := b.Close(backend.Remove); err != nil {
			t.Error(err)
		}
	})
	return b
}

// diary is an observer that writes down what it hears.
type diary struct {
	backendtest.Quiet
	mu         sync.Mutex
	lines      []string
	ipv4, ipv6 int // live
}

func (d *diary) Failed(op string, err error) { d.add(fmt.Sprintf("failed: %s: %v", op, err)) }
func (d *diary) Repaired(what string)        { d.add("repaired: " + what) }
func (d *diary) Enforcing(on bool)           { d.add(fmt.Sprint("enforcing: ", on)) }

func (d *diary) add(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) Live(ipv4, ipv6 int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ipv4, d.ipv6 = ipv4, ipv6
}

// count returns how many lines begin so.
func (d *diary) count(begin string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.lines {
		if strings.HasPrefix(l, begin) {
			n++
		}
	}
	return n
}

// enforcing reports what was heard last of it.
func (d *diary) enforcing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range slices.Backward(d.lines) {
		if on, ok := strings.CutPrefix(l, "enforcing: "); ok {
			return on == "true"
		}
	}
	return false
}

// guarded is a backend at work in the kernel, and what is known of it.
type guarded struct {
	*testing.T
	*Backend
	*diary
}

// openBackend opens a backend with the contract's rules.
func openBackend(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{t, nil, &diary{}}
	g.Backend = observed(t, g.diary)
	if err := g.Open(backendtest.Rules()); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *guarded) grant(until time.Time, first, n int) {
	g.Helper()
	if err := g.Grant(g.Context(), backendtest.Grants(until, backendtest.Addrs(first, n)...), time.Minute); err != nil {
		g.Fatal(err)
	}
}

// inKernel returns until when the kernel has the contract's addresses.
func (g *guarded) inKernel() map[backend.Key]time.Time {
	g.Helper()
	list, err := g.List()
	if err != nil {
		g.Fatal(err)
	}
	have := make(map[backend.Key]time.Time, len(list))
	for _, grant := range list {
		have[backend.KeyOf(grant.Addr)] = grant.Until
	}
	return have
}

// accounts fails the test unless as many grants are said to live as there are.
func (g *guarded) accounts() {
	g.Helper()
	backendtest.Eventually(g.T, "as many grants live as are listed", func() bool {
		have := g.inKernel()
		ipv4 := 0
		for k := range have {
			if k.Is4() {
				ipv4++
			}
		}
		g.diary.mu.Lock()
		defer g.diary.mu.Unlock()
		return g.ipv4 == ipv4 && g.ipv6 == len(have)-ipv4
	})
}

// outline is what stands in the kernel under our table's name.
func (g *guarded) outline() string {
	g.Helper()
	p, err := readTable(backendtest.Rules().Table)
	if err != nil {
		g.Fatal(err)
	}
	var lines []string
	for name, c := range p.chains {
		lines = append(lines, fmt.Sprintf("chain %s: hook %v, %d rules", name, c.Hooknum != nil, len(p.rules[name])))
	}
	for name, s := range p.sets {
		if !s.Anonymous {
			lines = append(lines, fmt.Sprint("set ", name, " ", p.fixed[name]))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// keeps reports whether the kernel has so many of the contract's addresses until
// then.
func (g *guarded) keeps(until time.Time, first, n int) bool {
	g.Helper()
	have := g.inKernel()
	for _, a := range backendtest.Addrs(first, n) {
		if have[backend.KeyOf(a)].Before(until.Add(-2 * tickOfKernel)) {
			return false
		}
	}
	return true
}

// relied reports whether the table says that any of the addresses is in force.
func (g *guarded) relied(first, n int) bool {
	for _, a := range backendtest.Addrs(first, n) {
		if g.inForce.Covers(backend.KeyOf(a), time.Now()) {
			return true
		}
	}
	return false
}

// foreign does something to the ruleset as somebody else would.
func foreign(t testing.TB, change func(*nftables.Conn, *nftables.Table)) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	change(c, &nftables.Table{Name: backendtest.Rules().Table, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// removeTable removes the table if it is there.
func removeTable(t testing.TB, name string) {
	t.Helper()
	foreign(t, func(c *nftables.Conn, _ *nftables.Table) {
		table := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		c.DelTable(table)
	})
}

// While the kernel is busy with one transaction for long, the answers behind it
// give up in time, and are granted all the same.
func TestLateBehindABusyKernel(t *testing.T) {
	g := openBackend(t)
	g.turn.Lock()
	until := time.Now().Add(time.Hour)
	for _, ctx := range []context.Context{context.Background(), t.Context()} {
		if err := g.Grant(ctx, backendtest.Grants(until, backendtest.Addrs(0, 2)...), 10*time.Millisecond); err != backend.ErrLate {
			t.Errorf("got %v, want ErrLate", err)
		}
	}
	g.endTurn()
	backendtest.Eventually(t, "they are in force", func() bool { return len(g.inKernel()) == 2 })
}
