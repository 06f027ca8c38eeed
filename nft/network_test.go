package nft

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A network is this machine between two clients, each on a wire of its own and with
// the same Ethernet address, and the world.
type network struct {
	*guarded
	lab                        *netlab.Lab
	here, world, client, other *netlab.Host
	programs                   map[runner]*netlab.Program
}

// A runner is who runs a program.
type runner struct {
	user uint32
	in   *netlab.Cgroup
}

const (
	gateway4, gateway6 = "10.0.0.1", "fd00::1"
	client4, client6   = "10.0.0.2", "fd00::2"
	other4, other6     = "10.0.1.2", "fd00:1::2"
	sameEther          = "02:00:00:00:00:07"
	sinkPort           = 9 // hears all and says nothing
)

var echoPorts = []int{22, 53, 443, 853, 8005}

// newNetwork makes one where the world echoes on those ports, or on all of echoPorts.
// Nothing is guarded yet.
func newNetwork(t *testing.T, ports ...int) *network {
	t.Helper()
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &network{guarded: &guarded{T: t}, lab: lab, programs: map[runner]*netlab.Program{}}
	if n.here, err = lab.Here(); err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]**netlab.Host{"world": &n.world, "client": &n.client, "other": &n.other} {
		if *h, err = lab.Host(name); err != nil {
			t.Fatal(err)
		}
	}
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	must(lab.Link(n.here, "wan", n.world, "eth0"), lab.Link(n.here, "lan0", n.client, "eth0"), lab.Link(n.here, "lan1", n.other, "eth0"))
	must(n.client.Ether("eth0", sameEther), n.other.Ether("eth0", sameEther))
	for _, a := range []struct {
		host         *netlab.Host
		ifname, cidr string
	}{
		{n.here, "wan", "192.0.2.1/24"}, {n.here, "wan", "2001:db8::1/64"},
		{n.world, "eth0", "192.0.2.2/24"}, {n.world, "eth0", "2001:db8::2/64"},
		{n.here, "lan0", gateway4 + "/24"}, {n.here, "lan0", gateway6 + "/64"},
		{n.client, "eth0", client4 + "/24"}, {n.client, "eth0", client6 + "/64"},
		{n.here, "lan1", "10.0.1.1/24"}, {n.here, "lan1", "fd00:1::1/64"},
		{n.other, "eth0", other4 + "/24"}, {n.other, "eth0", other6 + "/64"},
	} {
		must(a.host.Addr(a.ifname, a.cidr))
	}
	for _, r := range []struct {
		host      *netlab.Host
		cidr, via string
	}{
		{n.here, "198.18.0.0/15", "192.0.2.2"}, {n.here, "2001:db8:f::/48", "2001:db8::2"},
		{n.world, "0.0.0.0/0", "192.0.2.1"}, {n.world, "::/0", "2001:db8::1"},
		{n.client, "0.0.0.0/0", gateway4}, {n.client, "::/0", gateway6},
		{n.other, "0.0.0.0/0", "10.0.1.1"}, {n.other, "::/0", "fd00:1::1"},
	} {
		must(r.host.Route(r.cidr, r.via))
	}
	must(n.here.Sysctl("net/ipv4/icmp_ratelimit", "0"), n.here.Sysctl("net/ipv6/icmp/ratelimit", "0"))
	must(n.world.Local("198.18.0.0/15"), n.world.Local("2001:db8:f::/48"), n.here.Forward())
	if len(ports) == 0 {
		ports = echoPorts
	}
	for _, port := range ports {
		must(n.world.Echo(port))
	}
	sink, err := n.world.ListenPacket("udp", ":"+strconv.Itoa(sinkPort))
	must(err)
	t.Cleanup(func() { sink.Close() })
	return n
}

// guardedNetwork makes one with these rules.
func guardedNetwork(t *testing.T, rules backend.Rules) *network {
	t.Helper()
	n := newNetwork(t)
	n.guard(rules)
	return n
}

// guard puts the first rules in force.
func (n *network) guard(rules backend.Rules) {
	n.Helper()
	n.guarded = open(n.T, observed, rules)
}

// A unit is a cgroup as rules name it, and as programs run in it: nil where none can
// be made.
type unit struct {
	backend.Cgroup
	runs *netlab.Cgroup
}

// unit makes a cgroup. An ordinary user's tests do without.
func (n *network) unit(name string) unit {
	n.Helper()
	c, err := n.lab.Cgroup(name)
	if err != nil {
		n.Log(err)
		return unit{Cgroup: backend.Cgroup{Path: "/" + name, ID: 1 << 40, Level: 1 + strings.Count(name, "/")}}
	}
	id, err := c.ID()
	if err != nil {
		n.Fatal(err)
	}
	return unit{backend.Cgroup{Path: c.Path(), ID: id, Level: strings.Count(c.Path(), "/")}, c}
}

// A speaker connects to others: a host, or a program.
type speaker interface {
	Name() string
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// as returns a program of this machine that runs as a user and, if it is said, in a
// unit; or nil, where there cannot be one.
func (n *network) as(uid uint32, in ...unit) speaker {
	n.Helper()
	r := runner{user: uid}
	if len(in) > 0 {
		if r.in = in[0].runs; r.in == nil {
			return nil
		}
	}
	if err := netlab.Users(uid); err != nil {
		n.Log(err)
		return nil
	}
	if n.programs[r] == nil {
		p, err := n.here.Program(netlab.As{User: uid, Cgroup: r.in})
		if err != nil {
			n.Fatal(err)
		}
		n.programs[r] = p
	}
	return n.programs[r]
}

// worldRules guard this machine and the network behind it.
func worldRules(t *testing.T) backend.Rules {
	return backend.Rules{
		Table: backendtest.Rules().Table, Local: true, Gateway: true, MaxGrants: 1 << 10,
		LocalHolders: []backend.Holder{backend.Machine}, GatewayHolders: []backend.Holder{backend.Client, backend.Link},
		OnLink: prefixes(t, "10.0.0.0/24", "fd00::/64", "10.0.1.0/24", "fd00:1::/64"),
	}
}

// addrs are addresses in the world, IPv4 and IPv6.
func addrs(n int) (ipv4, ipv6 netip.Addr) {
	return netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), netip.MustParseAddr("2001:db8:f::" + strconv.FormatInt(int64(n), 16))
}

// to names a port of those addresses.
func to(n, port int) []string {
	v4, v6 := addrs(n)
	return []string{netip.AddrPortFrom(v4, uint16(port)).String(), netip.AddrPortFrom(v6, uint16(port)).String()}
}

// open grants both addresses to each holder that can reach them.
func (n *network) open(life time.Duration, number int, holders ...backend.Scope) {
	n.Helper()
	v4, v6 := addrs(number)
	var grants []backend.Grant
	for _, h := range holders {
		for _, a := range []netip.Addr{v4, v6} {
			if h.CanReach(a) {
				grants = append(grants, backend.Grant{Scope: h, Addr: a, Until: time.Now().Add(life)})
			}
		}
	}
	if err := n.Grant(n.Context(), grants, time.Minute); err != nil {
		n.Fatal(err)
	}
}

// reaches fails the test unless the speaker, if there is one, reaches all addresses, or none.
func (n *network) reaches(from speaker, want bool, network string, addrs ...string) {
	n.Helper()
	if from == nil {
		return
	}
	for _, addr := range addrs {
		if err := reach(n.Context(), from, want, network, addr); (err == nil) != want {
			n.Errorf("%s to %s over %s: %v", from.Name(), addr, network, err)
		}
	}
}

// reach says something to an echo server and hears it again. It soon knows that it does
// not, where that is wanted: TCP over IPv6 looks at a refusal after a second only.
func reach(ctx context.Context, from speaker, want bool, network, addr string) error {
	patience := 200 * time.Millisecond
	if want {
		patience = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := from.Dial(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn)
}

func echo(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// link is the scope of who has the clients' Ethernet address at one of our interfaces.
func (n *network) link(ifname string) backend.Scope {
	n.Helper()
	i, err := net.InterfaceByName(ifname)
	if err != nil {
		n.Fatal(err)
	}
	hw, _ := net.ParseMAC(sameEther)
	return backend.LinkScope(uint32(i.Index), [6]byte(hw))
}

func inClass(s backend.Scope, c backend.Class) backend.Scope {
	s.Class = c
	return s
}
