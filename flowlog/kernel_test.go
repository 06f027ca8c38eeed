package flowlog

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
	"github.com/destination-guard/coredns-ip-destination-guard/nft"
)

const testGroup = 5300

// guarded is this machine between a client and the world, all of whose packets are
// refused, and a log of that.
type guarded struct {
	*testing.T
	*Log
	*diary
	enforcer     *nft.Backend
	lab          *netlab.Lab
	here, client *netlab.Host
	lan          uint32 // index
	clientEther  string
}

func guard(t *testing.T, rules backend.Rules) *guarded {
	t.Helper()
	g := &guarded{T: t, diary: &diary{}, clientEther: "02:00:00:00:00:07"}
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	var err error
	g.lab, err = netlab.New()
	must(err)
	t.Cleanup(func() { must(g.lab.Close()) })
	g.here, err = g.lab.Here()
	must(err)
	world, err := g.lab.Host("world")
	must(err)
	g.client, err = g.lab.Host("client")
	must(err)
	must(g.lab.Link(g.here, "wan", world, "eth0"), g.lab.Link(g.here, "lan0", g.client, "eth0"))
	must(g.client.Ether("eth0", g.clientEther))
	must(g.here.Addr("wan", "192.0.2.1/24"), world.Addr("eth0", "192.0.2.2/24"))
	must(g.here.Addr("lan0", "10.0.0.1/24"), g.client.Addr("eth0", "10.0.0.2/24"))
	must(g.here.Route("198.18.0.0/15", "192.0.2.2"), g.client.Route("0.0.0.0/0", "10.0.0.1"), world.Route("0.0.0.0/0", "192.0.2.1"))
	must(world.Local("198.18.0.0/15"), g.here.Forward())
	g.lan = index(t, "lan0")

	g.enforcer = nft.New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{})
	t.Cleanup(func() { must(g.enforcer.Close(backend.Remove)) })
	rules.Table, rules.LogGroup = "flowlogtest", testGroup
	rules.Local, rules.Gateway = true, true
	rules.LocalHolders, rules.GatewayHolders = []backend.Holder{backend.Machine}, []backend.Holder{backend.Client}
	must(g.enforcer.Open(rules))
	g.Log = newLog(g.enforcer, g.diary, time.Now) // which does not look by itself
	t.Cleanup(func() { must(g.Log.Close()) })
	return g
}

func index(t *testing.T, ifname string) uint32 {
	t.Helper()
	all, err := netInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	return all[ifname]
}

// says sends something to an address over UDP.
func (g *guarded) says(from *netlab.Host, local, to string, times int) {
	g.Helper()
	conn, err := from.ListenPacket("udp", local)
	if err != nil {
		g.Fatal(err)
	}
	defer conn.Close()
	for range times {
		_, _ = conn.WriteTo([]byte("x"), udpAddr(to)) // it is refused
	}
}

// Flows are told of at once, with what their packets say, on both chains; then the kernel
// counts.
func TestFlowsAreToldOfAtOnce(t *testing.T) {
	for name, rules := range map[string]backend.Rules{"refused": {}, "audited": {AuditLocal: true, AuditGateway: true}} {
		t.Run(name, func(t *testing.T) {
			g := guard(t, rules)
			if err := g.Listen(testGroup); err != nil {
				t.Fatal(err)
			}
			audited := rules.AuditLocal
			local := to("198.18.0.1", unix.IPPROTO_UDP, 443)
			local.Audited = audited
			forwarded := local
			forwarded.Hook, forwarded.Interface, forwarded.Client = backend.Forward, g.lan, netip.MustParseAddr("10.0.0.2")

			g.says(g.here, "192.0.2.1:4000", "198.18.0.1:443", 1)
			g.says(g.client, "10.0.0.2:4001", "198.18.0.1:443", 1)
			backendtest.Eventually(t, "both flows are told of", func() bool { return len(g.of(local))+len(g.of(forwarded)) == 2 })
			for flow, source := range map[backend.Flow]string{local: "192.0.2.1:4000", forwarded: "10.0.0.2:4001"} {
				e := g.of(flow)[0]
				if !e.Begins || e.New != (backend.Count{Packets: 1, Bytes: 29}) || e.Packet.Source.String() != source || e.Packet.SourceRouted {
					t.Errorf("%v: %+v, %+v", e, e.New, e.Packet)
				}
				if ether := e.Packet.Ether.String(); flow.Hook == backend.Forward && ether != g.clientEther {
					t.Errorf("%v: from %s", e, ether)
				}
			}
			more := 7
			if audited {
				more = 0 // they are of live connections
			}
			g.says(g.client, "10.0.0.2:4002", "198.18.0.1:443", more)
			if err := g.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, f := range g.Flows() {
				if f.Flow == forwarded && f.Packets != uint64(1+more) {
					t.Errorf("%+v", f)
				}
			}
			if len(g.of(forwarded)) != 1 {
				t.Error("it is told of twice in a minute")
			}
			if errs := g.failures(); len(errs) > 0 {
				t.Error(errs)
			}
		})
	}
}

// A packet that says by which way it wants to go says so in the log. It goes nowhere,
// whatever is open.
func TestSourceRoutesAreShown(t *testing.T) {
	g := guard(t, backend.Rules{Allowed: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}})
	if err := g.Listen(testGroup); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	packet := make([]byte, 28+8)
	packet[0], packet[8], packet[9] = 0x47, 64, unix.IPPROTO_UDP
	copy(packet[12:], []byte{192, 0, 2, 1, 198, 18, 0, 1})
	copy(packet[20:], []byte{131, 7, 4, 198, 18, 0, 9, 0})
	binary.BigEndian.PutUint16(packet[28:], 4000)
	binary.BigEndian.PutUint16(packet[30:], 443)
	binary.BigEndian.PutUint16(packet[32:], 8)
	if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte{198, 18, 0, 1}}); err != nil && err != unix.EPERM {
		t.Fatal(err)
	}
	flow := to("198.18.0.1", unix.IPPROTO_UDP, 443)
	backendtest.Eventually(t, "it is told of", func() bool { return len(g.of(flow)) == 1 })
	if e := g.of(flow)[0]; !e.Packet.SourceRouted || e.Packet.Source.Port() != 4000 || e.Packet.Length != len(packet) {
		t.Errorf("%+v", e)
	}
}

// Without a group, flows are told of after a look, and nothing is lost.
func TestWithoutGroup(t *testing.T) {
	g := guard(t, backend.Rules{})
	g.follow()
	time.Sleep(500 * time.Millisecond) // or it may be taken for older than the log: the kernel tells times by its ticks, and lists take theirs
	flow := to("198.18.0.1", unix.IPPROTO_UDP, 443)
	g.says(g.here, "192.0.2.1:4000", "198.18.0.1:443", 5)
	backendtest.Eventually(t, "it is told of", func() bool { return len(g.of(flow)) > 0 })
	backendtest.Eventually(t, "all is counted", func() bool {
		f := g.Flows()
		return len(f) == 1 && f[0].Packets == 5 && f[0].Bytes == 5*29
	})
	if e := g.of(flow)[0]; !e.Begins || e.Packet.Source.IsValid() {
		t.Errorf("%+v", e)
	}
}

// A group that another program listens to is said to be taken, and one can be exchanged
// for another.
func TestGroups(t *testing.T) {
	g := guard(t, backend.Rules{})
	other, err := openGroup(7)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	for range 2 {
		if err := g.Listen(7); err == nil || !strings.Contains(err.Error(), "NFLOG group 7: another program listens to it") {
			t.Errorf("a group that is taken: %v", err)
		}
	}
	for _, number := range []uint16{8, testGroup, 0, 0, testGroup, testGroup} {
		if err := g.Listen(number); err != nil {
			t.Errorf("group %d: %v", number, err)
		}
	}
	for i := range 300 { // the kernel shows so many at once that the socket has no room
		g.says(g.here, fmt.Sprint("192.0.2.1:", 4000+i), fmt.Sprint("198.18.0.1:", 1+i), 1)
	}
	backendtest.Eventually(t, "some are shown", func() bool {
		shown := 0
		for _, f := range g.Flows() {
			if f.Packet.Source.IsValid() {
				shown++
			}
		}
		return shown >= 200
	})
}
