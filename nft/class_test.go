package nft

import (
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// Classes are called by what they say, whatever their numbers and wherever their
// units are.
func TestNamesOfClasses(t *testing.T) {
	a := backend.Predicates{Ports: ports(t, "tcp/443"), Units: []backend.Cgroup{{Path: "/a", ID: 1, Level: 1}}}
	moved := backend.Predicates{Ports: ports(t, "tcp/443"), Units: []backend.Cgroup{{Path: "/a", Level: 1}}}
	both := backend.Predicates{Ports: ports(t, "tcp/443"), Units: append(a.Units, backend.Cgroup{Path: "/a", ID: 2, Level: 1})}
	other := backend.Predicates{Ports: ports(t, "tcp/443"), Units: []backend.Cgroup{{Path: "/b", ID: 1, Level: 1}}}
	suffix := func(n backend.Class, p backend.Predicates) string {
		return classesOf(backend.Rules{Classes: map[backend.Class]backend.Predicates{n: p, 255: {}}})[1].suffix
	}
	want := suffix(1, a)
	if len(want) != len(".12345678") {
		t.Errorf("%q", want)
	}
	for name, got := range map[string]string{"moved": suffix(2, moved), "both": suffix(1, both)} {
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if suffix(1, other) == want {
		t.Error("another unit, and the same name")
	}
}

// A process that starts takes over the grants of classes by what they are for.
func TestRestartAdoptsClasses(t *testing.T) {
	rules := backendtest.ScopedRules()
	until := time.Now().Add(time.Hour)
	g := open(t, observed, rules)
	all := backendtest.ScopedGrants(until, backendtest.Addrs(0, 4)...)
	if err := g.Grant(t.Context(), all, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}

	// The classes have other numbers now, and one is gone.
	numbers := map[backend.Class]backend.Class{0: 0}
	rules.Classes = map[backend.Class]backend.Predicates{9: {Users: []uint32{7}}}
	for n, p := range backendtest.Classes() {
		if n == 1 {
			numbers[n] = 200
			rules.Classes[200] = p
		}
	}
	g = open(t, observed, rules)
	for _, want := range all {
		class, kept := numbers[want.Class]
		want.Class = class
		if !kept {
			continue
		}
		backendtest.Eventually(t, want.String()+" is known", func() bool {
			known, _ := g.inForce.Lookup(want.Key())
			return !known.Before(until.Add(-2 * tickOfKernel))
		})
	}
	listed, err := g.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range listed {
		if l.Class != 0 && l.Class != 200 {
			t.Errorf("%v", l)
		}
	}
	renewed := backendtest.Grants(time.Now().Add(2*time.Hour), backendtest.Addrs(0, 4)...)
	for i := range renewed {
		renewed[i].Scope = inClass(backend.UserScope(0), 200)
	}
	if err := g.Grant(t.Context(), renewed, time.Minute); err != nil {
		t.Fatal(err)
	}
	if g.count("failed")+g.count("repaired") > 0 {
		t.Error(g.lines)
	}
}

// While rules come and go in which a packet is allowed, none is refused: not while
// its class's unit gets a second cgroup, nor while classes, resolvers and lingering
// come and go beside it.
func TestReloadRefusesNobody(t *testing.T) {
	n := newNetwork(t)
	u, second := n.unit("unit"), n.unit("second")
	r := worldRules(t)
	r.LocalHolders = append(r.LocalHolders, backend.Unit)
	ranges := []backend.Ports{{Protocol: 17, First: 1, Last: 100}, {Protocol: 6, First: 443, Last: 443}}
	inUnits := func(ids ...uint64) backend.Predicates {
		p := backend.Predicates{Ports: ranges, Users: []uint32{0, 1000}}
		for _, id := range ids {
			p.Units = append(p.Units, backend.Cgroup{Path: u.Path, ID: id, Level: u.Level})
		}
		return p
	}
	r.Classes = map[backend.Class]backend.Predicates{1: {Ports: ranges}, 2: inUnits(u.ID)}
	r.Upstream, r.Self = upstreams(t, to(1, sinkPort)...), backend.Program{User: 1001}
	n.guard(r)
	n.open(time.Hour, 11, inClass(backend.Scope{Holder: backend.Machine}, 1))
	n.open(time.Hour, 12, inClass(backend.Scope{Holder: backend.Machine}, 2))
	n.open(time.Hour, 13, backend.UnitScope(u.ID))
	n.open(time.Hour, 14, backend.Scope{Holder: backend.Machine})

	more := r
	more.Classes = maps.Clone(r.Classes)
	more.Classes[2] = inUnits(second.ID, u.ID)
	more.Classes[77] = backend.Predicates{Ports: ports(t, "udp/443")}
	more.Upstream = append(upstreams(t, "198.18.7.7:53"), r.Upstream...)
	more.Capture = 53
	lingering := r
	lingering.Linger, lingering.Interfaces = time.Hour, []string{"lan0"}
	lingering.Allowed = prefixes(t, "203.0.113.0/24")
	// What everybody reaches is a resolver now and then, and allowed for it.
	resolver := r
	resolver.Upstream = append(upstreams(t, to(14, sinkPort)...), r.Upstream...)
	resolver.Allowed = allow(14)
	without := r
	without.Upstream = nil
	without.Allowed = allow(1) // which the program reaches in any case
	audited := r
	audited.AuditLocal, audited.AuditGateway, audited.LogGroup = true, true, 5300

	stop := make(chan struct{})
	var sending sync.WaitGroup
	for from, number := range map[speaker]int{n.here: 11, n.as(0, u): 12, n.as(1000, u): 13, n.as(1001): 1, n.as(1002): 14} {
		if from == nil {
			continue
		}
		conn, err := from.Dial(t.Context(), "udp", to(number, sinkPort)[1])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sending.Go(func() {
			sent, refused := 0, 0
			for ; ; sent++ {
				select {
				case <-stop:
					t.Logf("%s has sent %d packets", from.Name(), sent)
					if refused > 0 {
						t.Errorf("%d of them were refused", refused)
					}
					return
				default:
				}
				if _, err := conn.Write([]byte("x")); err != nil {
					t.Logf("%s: %v", from.Name(), err)
					refused++
				}
			}
		})
	}
	for range 20 {
		for _, next := range []backend.Rules{more, r, lingering, audited, resolver, without, resolver} {
			if err := n.Open(next); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	sending.Wait()
	if g := n.inKernel(); len(g) != 8 {
		t.Errorf("%d grants", len(g))
	}
}

// What stands in the kernel as it should is not touched.
func TestWhatIsThereIsLeftAlone(t *testing.T) {
	for name, rules := range goldenRules(t) {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t)
			if err := b.Open(rules); err != nil {
				t.Fatal(err)
			}
			p, err := readTable(rules.Table)
			if err != nil {
				t.Fatal(err)
			}
			msgs, err := newRuleset(rules).compile(p, true, tableOwned, false)
			if err != nil {
				t.Fatal(err)
			}
			for i := range msgs {
				switch set := blame(&msgs[i]); msgs[i].Header.Type & 0xff {
				case unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
					t.Errorf("%x: %s", msgs[i].Header.Type, msgs[i].Data)
				case unix.NFT_MSG_NEWSETELEM:
					if !strings.HasPrefix(set, "set __set") {
						t.Errorf("elements for %s", set)
					}
				}
			}
		})
	}
}
