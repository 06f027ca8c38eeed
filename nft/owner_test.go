package nft

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// openOwned opens a backend whose table belongs to it.
func openOwned(t *testing.T) *guarded {
	t.Helper()
	if !netlab.Kernel(6, 9) {
		t.Skip("tables that outlive their owner need Linux 6.9")
	}
	return openBackend(t)
}

// flags are those of the table in the kernel.
func (g *guarded) flags() uint32 {
	g.Helper()
	p, err := readTable(backendtest.Rules().Table)
	if err != nil || !p.exists {
		g.Fatalf("the table is not there (%v)", err)
	}
	return p.flags
}

// Whatever somebody does to a table that has an owner, again and again, has no
// effect, and answers do not even wait.
func TestForeignChangesHaveNoEffect(t *testing.T) {
	g := openOwned(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 100)
	before, err := readTable(backendtest.Rules().Table)
	if err != nil {
		t.Fatal(err)
	}
	changes := foreignChanges
	changes = append(changes[:len(changes):len(changes)], struct {
		name, repaired string
		change         func(*nftables.Conn, *nftables.Table)
	}{name: "a grant is added", change: func(c *nftables.Conn, table *nftables.Table) {
		set := &nftables.Set{Name: forVersion(setGranted, true), Table: table, KeyType: nftables.TypeIPAddr, HasTimeout: true}
		_ = c.SetAddElements(set, []nftables.SetElement{{Key: []byte{203, 0, 113, 1}, Timeout: time.Hour}})
	}})
	for i := range 100 {
		tt := changes[i%len(changes)]
		err := tryForeign(t, tt.change)
		if err == nil && tt.name != "the ruleset is flushed" && tt.name != "the table is put to sleep" {
			t.Errorf("%s: the kernel has let it happen", tt.name)
		}
		after, err := readTable(backendtest.Rules().Table)
		if err != nil || !after.same(before) {
			t.Fatalf("%s: the table is another (%v)", tt.name, err)
		}
		if !g.relied(0, 100) || len(g.inKernel()) != 100 || !g.keeps(until, 0, 100) {
			t.Fatalf("%s: the grants are others", tt.name)
		}
		g.grant(until, 0, 100)
	}
	time.Sleep(2 * watchInterval)
	if g.count("repaired")+g.count("failed") > 0 || g.count("enforcing: false") > 0 || !g.enforcing() {
		t.Error(g.lines)
	}
	if tt := changes[0]; !errors.Is(tryForeign(t, tt.change), unix.EPERM) {
		t.Errorf("%s: not EPERM", tt.name)
	}
}

// A flush of the ruleset that our table has stood is told of.
func TestFlushIsWithstood(t *testing.T) {
	g := openOwned(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 10)
	for n, change := range []func(*nftables.Conn){
		func(c *nftables.Conn) { c.FlushRuleset() },
		func(c *nftables.Conn) { c.FlushRuleset(); addTable(c, "theirs") }, // as `systemctl reload nftables` does
	} {
		foreign(t, func(c *nftables.Conn, _ *nftables.Table) { addTable(c, "theirs"); addTable(c, "others") })
		g.seesOthers(2)
		removeTable(t, "others")
		g.seesOthers(1)
		if got := g.count("withstood"); got != n {
			t.Errorf("withstood %d times, want %d", got, n)
		}
		foreign(t, func(c *nftables.Conn, _ *nftables.Table) { change(c) })
		backendtest.Eventually(t, "it is told", func() bool { return g.count("withstood") == n+1 })
	}
	removeTable(t, "theirs")
	if !g.relied(0, 10) || !g.keeps(until, 0, 10) || g.count("enforcing: false")+g.count("repaired")+g.count("failed") > 0 {
		t.Error(g.lines)
	}
}

// seesOthers waits until so many tables without an owner have been noticed.
func (g *guarded) seesOthers(n int) {
	g.Helper()
	backendtest.Eventually(g.T, fmt.Sprint(n, " other tables are noticed"), func() bool {
		seen := 0
		err := g.do(func(w *writer) error { seen = len(w.free); return nil })
		return err == nil && seen == n
	})
}

// A process that ends, or crashes, leaves a table that anybody may delete and
// that the next process makes its own again, with all grants.
func TestOrphanIsClaimed(t *testing.T) {
	for name, rules := range map[string]backend.Rules{
		"the same rules": backendtest.Rules(),
		"fewer chains":   {Table: backendtest.Rules().Table, Local: true, LocalHolders: everyone, MaxGrants: backendtest.Rules().MaxGrants},
	} {
		t.Run(name, func(t *testing.T) {
			until := time.Now().Add(time.Hour)
			g := openOwned(t)
			g.grant(until, 0, 100)
			if g.flags() != tableOwned {
				t.Errorf("flags %d", g.flags())
			}
			if err := g.Close(backend.Keep); err != nil {
				t.Fatal(err)
			}
			next := newBackend(t)
			if err := next.Check(rules); err != nil {
				t.Error(err)
			}
			if g.flags() != tablePersist { // a dry run does not claim it
				t.Errorf("flags %d when nobody runs", g.flags())
			}
			g = open(t, observed, rules)
			if g.flags() != tableOwned || !g.keeps(until, 0, 100) {
				t.Errorf("flags %d, or a grant is lost", g.flags())
			}
			g.adopts(until, 0, 100)
		})
	}
}

// An orphan that somebody has put to sleep wakes up again.
func TestOrphanIsWokenUp(t *testing.T) {
	g := openOwned(t)
	if err := g.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	s, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	var b batch
	b.begin(0)
	b.add([]netlink.Message{newTable(backendtest.Rules().Table, tablePersist|unix.NFT_TABLE_F_DORMANT)})
	if err := s.transact(&b); err != nil {
		t.Fatal(err)
	}
	s.close()
	if g = openBackend(t); g.flags() != tableOwned {
		t.Errorf("flags %d", g.flags())
	}
}

func TestOrphanCanBeDeletedByHand(t *testing.T) {
	g := openOwned(t)
	if err := g.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	nft(t, "delete", "table", "inet", backendtest.Rules().Table)
}

// A table with grants that never had an owner is kept as it is, so that none is
// lost. When it has to be made anew, it gets one.
func TestTableWithoutOwnerIsKept(t *testing.T) {
	until := time.Now().Add(time.Hour)
	g := openOwnerless(t)
	g.grant(until, 0, 100)
	g = g.restart()
	if g.flags() != 0 || !g.keeps(until, 0, 100) {
		t.Errorf("flags %d, or a grant is lost", g.flags())
	}
	if err := g.Open(backendtest.Rules()); err != nil || g.flags() != 0 || !g.keeps(until, 0, 100) {
		t.Errorf("flags %d, or a grant is lost, after a reload (%v)", g.flags(), err)
	}
	g.adopts(until, 0, 100)
	foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	backendtest.Eventually(t, "it is repaired", func() bool { return g.count("repaired: rules") == 1 && g.enforcing() })
	if netlab.Kernel(6, 9) != (g.flags() == tableOwned) || !g.keeps(until, 0, 100) || g.count("withstood") > 0 {
		t.Errorf("flags %d, or a grant is lost: %v", g.flags(), g.lines)
	}
}

// The second of two processes with the same table is told why it cannot start,
// and does not disturb the first. It can when the first has gone.
func TestSecondProcess(t *testing.T) {
	g := openOwned(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 10)
	second := newBackend(t)
	for name, err := range map[string]error{"check": second.Check(backendtest.Rules()), "open": second.Open(backendtest.Rules())} {
		const want = "table inet backendtest: the transaction was refused: the table belongs to another process, most likely a second CoreDNS"
		if err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	time.Sleep(2 * watchInterval)
	if !g.relied(0, 10) || g.count("repaired")+g.count("failed") > 0 {
		t.Error(g.lines)
	}
	if err := g.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	if err := second.Open(backendtest.Rules()); err != nil {
		t.Error(err)
	}
	if g.Backend = second; !g.keeps(until, 0, 10) {
		t.Error("a grant is lost")
	}
}

// What a kernel does not know is tried once.
func TestKernelWithoutOwners(t *testing.T) {
	g := openOwnerless(t)
	if err := g.do(func(w *writer) error {
		if w.ownership != 0 || w.owned {
			return fmt.Errorf("flags %d, owned: %v", w.ownership, w.owned)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if g.flags() != 0 || g.count("failed") > 0 {
		t.Errorf("flags %d: %v", g.flags(), g.lines)
	}
	table, set := newTable("x", 0), netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSET}}
	for _, tt := range []struct {
		errno unix.Errno
		about *netlink.Message
		want  bool
	}{
		{unix.EOPNOTSUPP, &table, true}, {unix.EINVAL, &table, true},
		{unix.EOPNOTSUPP, &set, false}, {unix.EOPNOTSUPP, nil, false}, {unix.EPERM, &table, false},
	} {
		if got := knowsNoOwners(&kernelError{errno: tt.errno}, tt.about); got != tt.want {
			t.Errorf("%v: %v", tt, got)
		}
	}
}

// A process with another mode adds chains to the table of the one before, with all grants.
func TestOrphanGetsMoreChains(t *testing.T) {
	rules := backendtest.Rules()
	rules.Gateway = false
	until := time.Now().Add(time.Hour)
	g := open(t, observed, rules)
	if g.flags() != tableOwned {
		t.Skip("tables that outlive their owner need Linux 6.9")
	}
	g.grant(until, 0, 10)
	if err := g.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	if err := newBackend(t).Check(backendtest.Rules()); err != nil {
		t.Error(err)
	}
	g = open(t, observed, backendtest.Rules())
	if g.flags() != tableOwned || !g.keeps(until, 0, 10) || !strings.Contains(g.outline(), "chain forward") {
		t.Errorf("flags %d, %s", g.flags(), g.outline())
	}
}
