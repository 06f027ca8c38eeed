package nft

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A client is its Ethernet address at one interface: another with the same one,
// elsewhere, is another.
func TestLinkIsBoundToItsInterface(t *testing.T) {
	n := guardedNetwork(t, worldRules(t))
	n.open(time.Hour, 1, n.link("lan0"))
	n.reaches(n.client, true, "tcp", to(1, 443)...)
	n.reaches(n.client, true, "udp", to(1, 443)...)
	n.reaches(n.client, false, "tcp", to(2, 443)...)
	n.reaches(n.other, false, "tcp", to(1, 443)...)
	n.reaches(n.here, false, "tcp", to(1, 443)...)
	n.reaches(n.client, false, "tcp", to(1, 53)...)
	n.open(time.Hour, 2, n.link("lan1"))
	n.reaches(n.other, true, "tcp", to(2, 443)...)
	n.reaches(n.client, false, "tcp", to(2, 443)...)
}

func applicationRules(t *testing.T) backend.Rules {
	r := worldRules(t)
	r.LocalHolders = []backend.Holder{backend.Everyone, backend.User, backend.Unit}
	return r
}

func TestUsersHoldGrants(t *testing.T) {
	n := guardedNetwork(t, applicationRules(t))
	n.open(time.Hour, 1, backend.UserScope(1000))
	n.open(time.Hour, 2, backend.UserScope(0))
	n.reaches(n.as(1000), true, "tcp", to(1, 443)...)
	n.reaches(n.as(1000), true, "udp", to(1, 443)...)
	n.reaches(n.as(1000), false, "tcp", to(2, 443)...)
	n.reaches(n.as(1001), false, "tcp", to(1, 443)...)
	n.reaches(n.here, false, "tcp", to(1, 443)...)
	n.reaches(n.here, true, "tcp", to(2, 443)...)
}

// A cgroup's grants are for its programs and those of the cgroups below it, also
// where these lie deeper than the rules can look.
func TestUnitsHoldGrants(t *testing.T) {
	n := newNetwork(t)
	above, service, beside := n.unit("above"), n.unit("above/service"), n.unit("above/beside")
	deepest := n.unit("above/service/4/5/6/7/8")
	below := n.unit("above/service/4/5/6/7/8/9/10")
	if above.runs == nil {
		t.Skip("cgroups cannot be made")
	}
	if deepest.Level != backend.MaxLevel {
		t.Fatalf("level %d", deepest.Level)
	}
	n.guard(applicationRules(t))
	for i, u := range []unit{service, deepest, beside, above} {
		n.open(time.Hour, i+1, backend.UnitScope(u.ID))
	}
	for _, tt := range []struct {
		from speaker
		open []int
	}{
		{n.as(0, service), []int{1, 4}}, {n.as(0, below), []int{1, 2, 4}}, {n.as(1000, deepest), []int{1, 2, 4}},
		{n.as(0, beside), []int{3, 4}}, {n.as(0, above), []int{4}}, {n.here, nil},
	} {
		for i := 1; i <= 4; i++ {
			n.reaches(tt.from, slices.Contains(tt.open, i), "tcp", to(i, 443)...)
		}
	}
}

func ports(t *testing.T, texts ...string) (all []backend.Ports) {
	for _, s := range texts {
		a := netip.MustParseAddrPort("[::]:" + s[4:])
		all = append(all, backend.Ports{Protocol: backend.Protocols[s[:3]], First: a.Port(), Last: a.Port()})
	}
	return all
}

// The grants of a class open nothing but the packets that its predicates are for.
func TestClassesAreForTheirPackets(t *testing.T) {
	n := newNetwork(t)
	u, beside, again := n.unit("unit"), n.unit("beside"), n.unit("again")
	nowhere := backend.Cgroup{Path: "/none", Level: 1}
	r := worldRules(t)
	r.LocalHolders = []backend.Holder{backend.Machine, backend.User}
	r.Classes = map[backend.Class]backend.Predicates{
		1: {Ports: []backend.Ports{{Protocol: 6, First: 443, Last: 443}, {Protocol: 6, First: 50, Last: 60}, {Protocol: 17, First: 8000, Last: 8010}}},
		2: {Users: []uint32{1000, 1001}},
		3: {Units: []backend.Cgroup{u.Cgroup, nowhere}},
		4: {Ports: ports(t, "tcp/443"), Users: []uint32{1000}, Units: []backend.Cgroup{u.Cgroup}},
	}
	n.guard(r)
	machine := backend.Scope{Holder: backend.Machine}
	for c := range backend.Class(5) {
		n.open(time.Hour, int(c), inClass(machine, c))
	}
	n.open(time.Hour, 5, inClass(n.link("lan0"), 1),
		inClass(backend.ClientScope(netip.MustParseAddr(other4)), 1), inClass(backend.ClientScope(netip.MustParseAddr(other6)), 1))
	n.open(time.Hour, 6, inClass(backend.UserScope(1000), 1))

	for _, tt := range []struct {
		network string
		port    int
		want    bool
	}{{"tcp", 443, true}, {"tcp", 22, false}, {"tcp", 8005, false}, {"tcp", 53, false}, {"udp", 443, false}, {"udp", 8005, true}} {
		n.reaches(n.here, tt.want, tt.network, to(1, tt.port)...)
		n.reaches(n.client, tt.want, tt.network, to(5, tt.port)...)
		n.reaches(n.other, tt.want, tt.network, to(5, tt.port)...)
		n.reaches(n.as(1000), tt.want, tt.network, to(6, tt.port)...)
	}
	n.reaches(n.here, true, "tcp", to(0, 22)...)
	n.reaches(n.client, false, "tcp", append(to(1, 443), to(6, 443)...)...)
	n.reaches(n.here, false, "tcp", append(to(5, 443), to(6, 443)...)...)

	for _, tt := range []struct {
		from        speaker
		class, port int
		want        bool
	}{
		{n.as(1000), 2, 22, true}, {n.as(1001), 2, 443, true}, {n.here, 2, 443, false}, {n.as(1002), 2, 443, false},
		{n.as(0, u), 3, 22, true}, {n.as(1000, u), 3, 443, true}, {n.as(0, beside), 3, 443, false}, {n.here, 3, 443, false},
		{n.as(1000, u), 4, 443, true}, {n.as(1000, u), 4, 22, false}, {n.as(0, u), 4, 443, false}, {n.as(1000, beside), 4, 443, false},
	} {
		n.reaches(tt.from, tt.want, "tcp", to(tt.class, tt.port)...)
	}

	// The unit is restarted: it has another cgroup.
	r.Classes = maps.Clone(r.Classes)
	r.Classes[3] = backend.Predicates{Units: []backend.Cgroup{{Path: u.Path, ID: again.ID, Level: u.Level}, nowhere}}
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	n.reaches(n.as(0, again), true, "tcp", to(3, 22)...)
	n.reaches(n.as(0, u), false, "tcp", to(3, 22)...)
	n.reaches(n.as(1000, u), true, "tcp", to(4, 443)...)
}
