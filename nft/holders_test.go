package nft

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A client is its Ethernet address at one interface: another with the same one,
// elsewhere, is another.
func TestLinkIsBoundToItsInterface(t *testing.T) {
	n := newNetwork(t, worldRules(t))
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
	if !isUser(1000) {
		t.Skip("there is no other user in this namespace")
	}
	n := newNetwork(t, applicationRules(t))
	n.open(time.Hour, 1, backend.UserScope(1000))
	n.open(time.Hour, 2, backend.UserScope(0))
	runner{uid: 1000}.reaches(t, true, "tcp", to(1, 443)...)
	runner{uid: 1000}.reaches(t, true, "udp", to(1, 443)...)
	runner{uid: 1000}.reaches(t, false, "tcp", to(2, 443)...)
	for _, uid := range []uint32{0, 1001} {
		runner{uid: uid}.reaches(t, false, "tcp", to(1, 443)...)
	}
	runner{}.reaches(t, true, "tcp", to(2, 443)...)
}

// A cgroup's grants are for its programs and those of the cgroups below it, also
// where these lie deeper than the rules can look.
func TestUnitsHoldGrants(t *testing.T) {
	service, c := cgroup(t, "service")
	if service == noCgroup {
		t.Skip("cgroups cannot be made")
	}
	n := newNetwork(t, applicationRules(t))
	below, _ := cgroup(t, "service/3/4/5/6/7/8/9/10")
	deepest, d := cgroup(t, "service/3/4/5/6/7/8")
	beside, b := cgroup(t, "beside")
	above, a := cgroup(t, "")
	if d.Level != backend.MaxLevel {
		t.Fatalf("level %d", d.Level)
	}
	for i, u := range []backend.Cgroup{c, d, b, a} {
		n.open(time.Hour, i+1, backend.UnitScope(u.ID))
	}
	for _, tt := range []struct {
		dir  string
		open []int
	}{
		{service, []int{1, 4}}, {below, []int{1, 2, 4}}, {deepest, []int{1, 2, 4}}, {beside, []int{3, 4}}, {above, []int{4}}, {"", nil},
	} {
		open := map[int]bool{}
		for _, i := range tt.open {
			open[i] = true
		}
		for i := 1; i <= 4; i++ {
			runner{cgroup: tt.dir}.reaches(t, open[i], "tcp", to(i, 443)...)
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
	dir, unit := cgroup(t, "unit")
	beside, _ := cgroup(t, "beside")
	r := worldRules(t)
	r.LocalHolders = []backend.Holder{backend.Machine, backend.User}
	r.Classes = map[backend.Class]backend.Predicates{
		1: {Ports: []backend.Ports{{Protocol: 6, First: 443, Last: 443}, {Protocol: 6, First: 50, Last: 60}, {Protocol: 17, First: 8000, Last: 8010}}},
		2: {Users: []uint32{1000, 1001}},
		3: {Units: []backend.Cgroup{unit, {Path: "/none", Level: 1}}},
		4: {Ports: ports(t, "tcp/443"), Users: []uint32{1000}, Units: []backend.Cgroup{unit}},
	}
	n := newNetwork(t, r)
	machine := backend.Scope{Holder: backend.Machine}
	for c := range backend.Class(5) {
		n.open(time.Hour, int(c), inClass(machine, c))
	}
	n.open(time.Hour, 5, inClass(n.link("lan0"), 1), inClass(backend.ClientScope(netip.MustParseAddr(other4)), 1), inClass(backend.ClientScope(netip.MustParseAddr(other6)), 1))
	n.open(time.Hour, 6, inClass(backend.UserScope(1000), 1))

	// Ports.
	for _, tt := range []struct {
		network string
		port    int
		want    bool
	}{{"tcp", 443, true}, {"tcp", 22, false}, {"tcp", 8005, false}, {"tcp", 53, false}, {"udp", 443, false}, {"udp", 8005, true}} {
		n.reaches(n.here, tt.want, tt.network, to(1, tt.port)...)
		n.reaches(n.client, tt.want, tt.network, to(5, tt.port)...)
		n.reaches(n.other, tt.want, tt.network, to(5, tt.port)...)
		runner{uid: 1000}.reaches(t, tt.want, tt.network, to(6, tt.port)...)
	}
	n.reaches(n.here, true, "tcp", to(0, 22)...)
	n.reaches(n.client, false, "tcp", append(to(1, 443), to(6, 443)...)...)
	n.reaches(n.here, false, "tcp", append(to(5, 443), to(6, 443)...)...)

	// Users and units.
	for _, tt := range []struct {
		runner
		class, port int
		want        bool
	}{
		{runner{uid: 1000}, 2, 22, true}, {runner{uid: 1001}, 2, 443, true}, {runner{}, 2, 443, false}, {runner{uid: 1002}, 2, 443, false},
		{runner{cgroup: dir}, 3, 22, true}, {runner{1000, dir}, 3, 443, true}, {runner{cgroup: beside}, 3, 443, false}, {runner{}, 3, 443, false},
		{runner{1000, dir}, 4, 443, true}, {runner{1000, dir}, 4, 22, false}, {runner{cgroup: dir}, 4, 443, false}, {runner{1000, beside}, 4, 443, false},
	} {
		tt.reaches(t, tt.want, "tcp", to(tt.class, tt.port)...)
	}

	// The unit is restarted: it has another cgroup.
	again, unitAgain := cgroup(t, "again")
	unitAgain.Path = unit.Path
	r.Classes = maps.Clone(r.Classes)
	r.Classes[3] = backend.Predicates{Units: []backend.Cgroup{unitAgain, {Path: "/none", Level: 1}}}
	if err := n.Open(r); err != nil {
		t.Fatal(err)
	}
	runner{cgroup: again}.reaches(t, true, "tcp", to(3, 22)...)
	runner{cgroup: dir}.reaches(t, false, "tcp", to(3, 22)...)
	runner{1000, dir}.reaches(t, true, "tcp", to(4, 443)...)
}
