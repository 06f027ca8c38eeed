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
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m.Run) }

func TestContract(t *testing.T) {
	for name, make := range map[string]func(*testing.T, backend.Observer) *Backend{
		"with an owner": observed, "without an owner": ownerless,
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) (backend.Backend, *backend.InForce) {
				t.Cleanup(func() { removeTable(t, backendtest.Rules().Table) })
				b := make(t, backendtest.Quiet{})
				return b, b.inForce
			})
		})
	}
}

func newBackend(t *testing.T) *Backend { return observed(t, backendtest.Quiet{}) }

// ownerless makes a backend as on a kernel before 6.9, where a table that has an
// owner cannot outlive it: with a flag that this kernel does not know.
func ownerless(t *testing.T, events backend.Observer) *Backend {
	b := observed(t, events)
	if err := b.do(func(w *writer) error { w.ownership = unix.NFT_TABLE_F_MASK + 1; return nil }); err != nil {
		t.Fatal(err)
	}
	return b
}

func observed(t *testing.T, events backend.Observer) *Backend {
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
func (d *diary) Withstood()                  { d.add("withstood") }
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
func openBackend(t *testing.T) *guarded { return open(t, observed, backendtest.Rules()) }

// openOwnerless opens one whose table others can change.
func openOwnerless(t *testing.T) *guarded { return open(t, ownerless, backendtest.Rules()) }

func open(t *testing.T, make func(*testing.T, backend.Observer) *Backend, rules backend.Rules) *guarded {
	t.Helper()
	d := &diary{}
	g := &guarded{t, make(t, d), d}
	if err := g.Open(rules); err != nil {
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
	if err := tryForeign(t, change); err != nil {
		t.Fatal(err)
	}
}

func tryForeign(t testing.TB, change func(*nftables.Conn, *nftables.Table)) error {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	change(c, &nftables.Table{Name: backendtest.Rules().Table, Family: nftables.TableFamilyINet})
	return c.Flush()
}

func addTable(c *nftables.Conn, name string) *nftables.Table {
	return c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
}

// removeTable removes the table if it is there.
func removeTable(t testing.TB, name string) {
	t.Helper()
	foreign(t, func(c *nftables.Conn, _ *nftables.Table) {
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			if table.Name == name {
				c.DelTable(table)
			}
		}
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
