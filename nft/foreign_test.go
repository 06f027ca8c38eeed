package nft

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

func named(set string, table *nftables.Table) *nftables.Set {
	return &nftables.Set{Name: set, Table: table}
}

func outputChain(table *nftables.Table) *nftables.Chain {
	return &nftables.Chain{Name: chainOutput, Table: table}
}

// acceptAll is the rule that opens everything.
func acceptAll(table *nftables.Table) *nftables.Rule {
	return &nftables.Rule{Table: table, Chain: outputChain(table), Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

// putToSleep makes the table dormant, which the library cannot.
func putToSleep(_ *nftables.Conn, table *nftables.Table) {
	s, err := openSocket()
	if err != nil {
		panic(err)
	}
	defer s.close()
	var b batch
	b.begin(0)
	b.add([]netlink.Message{newTable(table.Name, unix.NFT_TABLE_F_DORMANT)})
	_ = s.transact(&b)
}

// foreignChanges is what somebody may do to our table.
var foreignChanges = []struct {
	name, repaired string
	change         func(*nftables.Conn, *nftables.Table)
}{
	{"the table is deleted", "rules", func(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) }},
	{"the ruleset is flushed", "rules", func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() }},
	{"the table's rules are flushed", "rules", func(c *nftables.Conn, table *nftables.Table) { c.FlushTable(table) }},
	{"a chain is flushed", "rules", func(c *nftables.Conn, table *nftables.Table) { c.FlushChain(outputChain(table)) }},
	{"a chain is deleted", "rules", func(c *nftables.Conn, table *nftables.Table) {
		c.FlushChain(outputChain(table))
		c.DelChain(outputChain(table))
	}},
	{"a chain is added", "rules", func(c *nftables.Conn, table *nftables.Table) {
		c.AddChain(&nftables.Chain{Name: "theirs", Table: table})
	}},
	{"a rule is inserted", "rules", func(c *nftables.Conn, table *nftables.Table) { c.InsertRule(acceptAll(table)) }},
	{"a rule is appended", "rules", func(c *nftables.Conn, table *nftables.Table) { c.AddRule(acceptAll(table)) }},
	{"a set is added", "rules", func(c *nftables.Conn, table *nftables.Table) {
		_ = c.AddSet(&nftables.Set{Name: "theirs", Table: table, KeyType: nftables.TypeIPAddr}, nil)
	}},
	{"the table is put to sleep", "rules", putToSleep},
	{"everything is allowed", "rules", func(c *nftables.Conn, table *nftables.Table) {
		_ = c.SetAddElements(&nftables.Set{Name: "allowed4", Table: table, Interval: true, KeyType: nftables.TypeIPAddr},
			[]nftables.SetElement{{Key: []byte{0, 0, 0, 0}}})
	}},
	{"the grants are flushed", "grants", func(c *nftables.Conn, table *nftables.Table) {
		c.FlushSet(named(forVersion(setGranted, true), table))
		c.FlushSet(named(forVersion(setGranted, false), table))
	}},
	{"the table is made anew, of other things", "rules", func(c *nftables.Conn, table *nftables.Table) {
		c.DelTable(table)
		theirs(c, c.AddTable(table))
	}},
}

// Whatever somebody does to a table that has no owner is undone, and the grants
// come back.
func TestForeignChangesAreRepaired(t *testing.T) {
	for _, tt := range foreignChanges {
		t.Run(tt.name, func(t *testing.T) {
			g := openOwnerless(t)
			until := time.Now().Add(time.Hour)
			g.grant(until, 0, 2500)
			before := g.outline()
			foreign(t, tt.change)
			backendtest.Eventually(t, "it is repaired", func() bool { return g.count("repaired: "+tt.repaired) > 0 })
			backendtest.Eventually(t, "the grants are back", func() bool { return g.keeps(until, 0, 2500) })
			backendtest.Eventually(t, "the rules are back:\n"+before, func() bool { return g.outline() == before })
			g.grant(until, 10000, 10)
			if !g.keeps(until, 10000, 10) || !g.enforcing() || g.count("enforcing: false") == 0 {
				t.Errorf("not in force, or never said to be out of it: %v", g.lines)
			}
			g.accounts()
			if n := g.count("repaired"); n > 2 {
				t.Errorf("repaired %d times", n)
			}
		})
	}
}

// A rule of ours that somebody deletes, by its handle, comes back.
func TestForeignDeletionOfARuleIsRepaired(t *testing.T) {
	openOwnerless(t)
	before, err := readTable(backendtest.Rules().Table)
	if err != nil {
		t.Fatal(err)
	}
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		handles := before.rules[chainForward]
		if err := c.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: chainForward, Table: table}, Handle: handles[len(handles)-1]}); err != nil {
			t.Fatal(err)
		}
	})
	backendtest.Eventually(t, "it is repaired", func() bool {
		after, err := readTable(backendtest.Rules().Table)
		return err == nil && len(after.rules[chainForward]) == len(before.rules[chainForward])
	})
}

// A single grant that somebody takes away is no longer relied upon, and the next
// answer brings it back.
func TestForeignDeletionOfAGrant(t *testing.T) {
	g := openOwnerless(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 100)
	addr := backendtest.Addrs(0, 1)[0]
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		set := &nftables.Set{Name: forVersion(setGranted, true), Table: table, KeyType: nftables.TypeIPAddr, HasTimeout: true}
		if err := c.SetDeleteElements(set, []nftables.SetElement{{Key: addr.AsSlice()}}); err != nil {
			t.Fatal(err)
		}
	})
	backendtest.Eventually(t, "nothing is relied upon", func() bool { return !g.relied(0, 100) })
	g.grant(until, 0, 100)
	if !g.keeps(until, 0, 100) {
		t.Error("not all of them are back")
	}
	g.accounts()
}

// Somebody's permanent element among the grants ends with the next answer for it.
func TestForeignPermanentGrant(t *testing.T) {
	g := openOwnerless(t)
	addr := backendtest.Addrs(0, 1)[0]
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		set := &nftables.Set{Name: forVersion(setGranted, true), Table: table, KeyType: nftables.TypeIPAddr, HasTimeout: true}
		if err := c.SetAddElements(set, []nftables.SetElement{{Key: addr.AsSlice()}}); err != nil {
			t.Fatal(err)
		}
	})
	g.grant(time.Now().Add(time.Second), 0, 1)
	backendtest.Eventually(t, "the grant ends", func() bool { return len(g.inKernel()) == 0 })
}

// Others may do what they like elsewhere. A table without an owner is looked at
// anew before anything in it is relied upon.
func TestForeignTablesAreTheirs(t *testing.T) {
	g := openOwnerless(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 10)
	for _, change := range []func(*nftables.Conn, *nftables.Table){
		func(c *nftables.Conn, table *nftables.Table) { theirs(c, c.AddTable(table)) },
		func(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) },
	} {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
			table := &nftables.Table{Name: "theirs", Family: family}
			if family != nftables.TableFamilyINet {
				table.Name = backendtest.Rules().Table // another family, another table
			}
			foreign(t, func(c *nftables.Conn, _ *nftables.Table) { change(c, table) })
			backendtest.Eventually(t, "nothing is relied upon", func() bool { return !g.relied(0, 10) })
			g.grant(until, 0, 10)
			if !g.keeps(until, 0, 10) {
				t.Error("a grant was lost")
			}
		}
	}
	if g.count("repaired")+g.count("failed") > 0 || !g.enforcing() {
		t.Error(g.lines)
	}
}

// theirs fills a table with things that have the names of ours.
func theirs(c *nftables.Conn, table *nftables.Table) {
	extra := c.AddChain(&nftables.Chain{Name: "extra", Table: table})
	_ = c.AddSet(&nftables.Set{
		Name: forVersion(setGranted, true), Table: table, IsMap: true,
		KeyType: nftables.TypeIPAddr, DataType: nftables.TypeIPAddr,
	}, []nftables.SetElement{{Key: []byte{192, 0, 2, 1}, Val: []byte{192, 0, 2, 2}}})
	_ = c.AddSet(&nftables.Set{
		Name: "jumps", Table: table, IsMap: true,
		KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict,
	}, []nftables.SetElement{{Key: []byte{192, 0, 2, 1}, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: extra.Name}}})
	c.AddChain(&nftables.Chain{
		Name: chainOutput, Table: table, Type: nftables.ChainTypeRoute,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityMangle,
	})
}

// A table of our name that is not ours is replaced, however much is in it.
func TestForeignTableOfOurNameIsReplaced(t *testing.T) {
	g := openBackend(t)
	want := g.outline()
	for name, fill := range map[string]func(*nftables.Conn, *nftables.Table){
		"nothing":               func(*nftables.Conn, *nftables.Table) {},
		"things with our names": theirs,
		"a chain that something jumps to": func(c *nftables.Conn, table *nftables.Table) {
			extra := c.AddChain(&nftables.Chain{Name: "extra", Table: table})
			_ = c.AddSet(&nftables.Set{
				Name: "jumps", Table: table, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict,
			}, []nftables.SetElement{{Key: []byte{192, 0, 2, 1}, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: extra.Name}}})
		},
		"grants of another size": func(c *nftables.Conn, table *nftables.Table) {
			_ = c.AddSet(&nftables.Set{
				Name: forVersion(setGranted, true), Table: table, KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: 5,
			}, nil)
		},
		"grants of another type": func(c *nftables.Conn, table *nftables.Table) {
			_ = c.AddSet(&nftables.Set{
				Name: forVersion(setGranted, false), Table: table, KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: 1 << 16,
			}, nil)
		},
		"a chain without a hook": func(c *nftables.Conn, table *nftables.Table) { c.AddChain(outputChain(table)) },
		"a rule that uses a set": func(c *nftables.Conn, table *nftables.Table) {
			set := &nftables.Set{Name: "theirs", Table: table, KeyType: nftables.TypeNFProto}
			_ = c.AddSet(set, nil)
			chain := c.AddChain(&nftables.Chain{Name: "theirs", Table: table})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				load(expr.MetaKeyNFPROTO), &expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID},
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := g.Close(backend.Remove); err != nil {
				t.Fatal(err)
			}
			foreign(t, func(c *nftables.Conn, table *nftables.Table) { fill(c, c.AddTable(table)) })
			g = openBackend(t)
			if got := g.outline(); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			until := time.Now().Add(time.Hour)
			g.grant(until, 0, 10)
			if !g.keeps(until, 0, 10) {
				t.Error("the grants are not in force")
			}
		})
	}
}

// A backend that was never opened leaves a table of its name alone.
func TestCloseBeforeOpenRemovesNothing(t *testing.T) {
	g := openOwnerless(t)
	other := ownerless(t, backendtest.Quiet{})
	if err := other.Check(backendtest.Rules()); err != nil {
		t.Error(err)
	}
	if err := other.Close(backend.Remove); err != nil {
		t.Error(err)
	}
	g.grant(time.Now().Add(time.Hour), 0, 1)
	if g.count("repaired") > 0 {
		t.Error(g.lines)
	}
}

func TestCloseAfterTheTableWasDeleted(t *testing.T) {
	g := openOwnerless(t)
	removeTable(t, backendtest.Rules().Table)
	if err := g.Close(backend.Remove); err != nil {
		t.Error(err)
	}
	if p, err := readTable(backendtest.Rules().Table); err != nil || p.exists {
		t.Errorf("the table is still there (%v)", err)
	}
}

// Answers in flight while others flush and the backend is closed: all return.
func TestCloseWhileOthersFlush(t *testing.T) {
	b := New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{})
	if err := b.Open(backendtest.Rules()); err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for caller := range 16 {
		callers.Go(func() {
			for i := 0; ; i++ {
				grants := backendtest.Grants(time.Now().Add(time.Hour), backendtest.Addrs(caller*10000+i, 2)...)
				if err := b.Grant(context.Background(), grants, 300*time.Millisecond); errors.Is(err, backend.ErrClosed) {
					return
				}
			}
		})
	}
	for range 5 {
		time.Sleep(60 * time.Millisecond)
		foreign(t, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	}
	if err := b.Close(backend.Remove); err != nil {
		t.Error(err)
	}
	callers.Wait() // for ever, if one is forgotten
}

// The connection breaks in the middle of a batch and cannot be opened again: the
// rest of the batch is refused.
func TestNoConnectionInTheMiddleOfABatch(t *testing.T) {
	b := newBackend(t)
	rules := backendtest.Rules()
	if err := b.Open(rules); err != nil {
		t.Fatal(err)
	}
	b.turn.Lock()
	defer b.endTurn()
	b.writer.broken = errors.New("no connection")
	connection := b.writer.socket
	b.writer.socket = nil
	defer func() { b.writer.socket, b.writer.retryAt = connection, time.Time{} }()
	var reqs []*request
	for i := range 4 {
		reqs = append(reqs, &request{grants: backendtest.Grants(time.Now().Add(time.Hour), backendtest.Addrs(i, 1)...), done: make(chan error, 1)})
	}
	b.writer.commit(reqs)
	for _, r := range reqs {
		if err := <-r.done; err != b.writer.broken {
			t.Errorf("got %v", err)
		}
	}
}

// What is read back of an earlier process, after its set has gone, is not taken in.
func TestAdoptionAfterTheSetIsGone(t *testing.T) {
	g := openOwnerless(t) // for everyone only
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 100)
	var stale []element
	for _, a := range backendtest.Addrs(1000, 500) {
		stale = append(stale, element{backend.Scope{Holder: backend.Machine}.Key(a), time.Hour})
	}
	_ = g.do(func(w *writer) error { w.adoptPart(stale, time.Now(), false); return nil })
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		for _, ipv4 := range []bool{true, false} {
			c.FlushSet(named(forVersion(setGranted, ipv4), table))
		}
	})
	backendtest.Eventually(t, "the grants are back", func() bool { return g.keeps(until, 0, 100) })
}

// While very many grants are put back, somebody flushes a chain: its rules do not
// wait for the grants.
func TestRulesComeBackBeforeManyGrants(t *testing.T) {
	rules := backendtest.Rules()
	rules.MaxGrants = 1 << 20
	g := open(t, ownerless, rules)
	const n = 200_000
	for i := 0; i < n; i += 4000 {
		g.grant(time.Now().Add(time.Hour), i, 4000)
	}
	foreign(t, func(c *nftables.Conn, table *nftables.Table) {
		for _, ipv4 := range []bool{true, false} {
			c.FlushSet(named(forVersion(setGranted, ipv4), table))
		}
	})
	backendtest.Eventually(t, "it is noticed", func() bool { return g.count("repaired: grants") > 0 })
	foreign(t, func(c *nftables.Conn, table *nftables.Table) { c.FlushChain(outputChain(table)) })
	backendtest.Eventually(t, "the rules are back", func() bool { return g.count("repaired: rules") > 0 })
	left := 0
	_ = g.do(func(w *writer) error { left = len(w.restore); return nil })
	t.Logf("%d grants are still to come", left)
}
