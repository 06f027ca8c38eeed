package nft

import (
	"maps"
	"net/netip"
	"strings"
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
		return classesOf(backend.Rules{Classes: map[backend.Class]backend.Predicates{n: p, 3: {Users: []uint32{n32(n)}}}})[1].suffix
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

func n32(n backend.Class) uint32 { return uint32(n) }

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
	dir, unit := cgroup(t, "unit")
	_, second := cgroup(t, "second")
	r := worldRules(t)
	r.LocalHolders = append(r.LocalHolders, backend.Unit)
	machine := backend.Scope{Holder: backend.Machine}
	ranges := []backend.Ports{{Protocol: 17, First: 1, Last: 100}, {Protocol: 6, First: 443, Last: 443}}
	constant := map[backend.Class]backend.Predicates{
		1: {Ports: ranges},
		2: {Ports: ranges, Units: []backend.Cgroup{unit}, Users: []uint32{0, 1000}},
	}
	r.Classes = constant
	_, sink6 := addrs(1)
	r.Upstream, r.Self = upstreams(t, netip.AddrPortFrom(sink6, sinkPort).String()), backend.Program{User: 1001}
	n := newNetwork(t, r)
	n.open(time.Hour, 11, inClass(machine, 1))
	n.open(time.Hour, 12, inClass(machine, 2))
	n.open(time.Hour, 13, backend.UnitScope(unit.ID))

	var reloads []backend.Rules
	for i := range 4 {
		next := r
		next.Classes = maps.Clone(constant)
		next.Classes[2] = backend.Predicates{Ports: ranges, Users: []uint32{0, 1000}, Units: [][]backend.Cgroup{
			{unit}, {{Path: unit.Path, ID: second.ID, Level: 2}, {Path: unit.Path, ID: unit.ID, Level: 2}},
		}[i%2]}
		if i%2 == 1 {
			next.Classes[77] = backend.Predicates{Ports: ports(t, "udp/443")}
			next.Upstream = append(upstreams(t, "198.18.7.7:53"), r.Upstream...)
			next.Capture = 53
		}
		if i/2 == 1 {
			next.Linger = time.Hour
			next.Interfaces = []string{"lan0"}
			next.Allowed = prefixes(t, "203.0.113.0/24")
		}
		reloads = append(reloads, next)
	}
	reload := func() {
		for i := range 24 {
			if err := n.Open(reloads[i%len(reloads)]); err != nil {
				t.Error(err)
			}
		}
	}
	for _, tt := range []struct {
		runner
		number int
	}{{runner{}, 11}, {runner{0, dir}, 12}, {runner{0, dir}, 13}, {runner{uid: 1001}, 1}} {
		addr := to(tt.number, sinkPort)[1]
		tt.whileSending(t, addr, reload)
	}
	if g := n.inKernel(); len(g) != 6 {
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
