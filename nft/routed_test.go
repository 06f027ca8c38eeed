package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// The pools of the tests, and what the machine's routes leave with.
var poolsOfTests = []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:2021:1111:8000::/107")}

const (
	whoPort = 700 // its server says who asks, and whom

	egressOne4, egressOne6 = "192.0.2.7", "2001:db8::7"
	egressTwo4, egressTwo6 = "192.0.2.8", "2001:db8::8"
	viaTun4, viaTun6       = "192.0.3.1", "2001:db8:3::1" // this machine's at its second uplink
)

// mappedAddrs are mapped addresses, IPv4 and IPv6.
func mappedAddrs(number int) (ipv4, ipv6 netip.Addr) {
	return netip.AddrFrom4([4]byte{100, 96, byte(number >> 8), byte(number)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:2021:1111:8000::%x", number))
}

// toMapped names a port of those addresses.
func toMapped(number, port int) []string {
	v4, v6 := mappedAddrs(number)
	return []string{netip.AddrPortFrom(v4, uint16(port)).String(), netip.AddrPortFrom(v6, uint16(port)).String()}
}

// routedRules are the world's with four routes: two that leave from addresses of their own,
// one from the interface's, and one as they come.
func routedRules(t *testing.T) backend.Rules {
	r := worldRules(t)
	r.Book, r.MaxMappings = "book", 1<<12
	r.Routes = []backend.Route{
		{Name: "one", Pools: poolsOfTests, Egress: addresses(egressOne4, egressOne6)},
		{Name: "two", Pools: poolsOfTests, Egress: addresses(egressTwo4, egressTwo6)},
		{Name: "masked", Pools: poolsOfTests},
		{Name: "open", Pools: poolsOfTests, Transparent: true},
	}
	return r
}

// routedNetwork is a network with a second uplink to the world, that nothing is routed to.
func routedNetwork(t *testing.T) *network {
	t.Helper()
	n := newNetwork(t)
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(n.lab.Link(n.here, "tun0", n.world, "eth1"))
	for _, cidr := range []string{egressOne4 + "/24", egressOne6 + "/64", egressTwo4 + "/24", egressTwo6 + "/64"} {
		must(n.here.Addr("wan", cidr), second(cidr))
	}
	must(n.here.Addr("tun0", viaTun4+"/24"), n.here.Addr("tun0", viaTun6+"/64"),
		n.world.Addr("eth1", "192.0.3.2/24"), n.world.Addr("eth1", "2001:db8:3::2/64"),
		// What this machine sends has to have a way there before it is translated.
		n.here.Route("0.0.0.0/0", "192.0.2.2"), n.here.Route("::/0", "2001:db8::2"))
	for _, ifname := range []string{"all", "wan", "tun0"} {
		must(n.here.Sysctl("net/ipv4/conf/"+ifname+"/rp_filter", "0"))
	}
	must(netlink.ConntrackTableFlush(netlink.ConntrackTable)) // of an earlier network
	n.who(whoPort)
	return n
}

// second makes an address one that the kernel itself chooses for nothing.
func second(cidr string) error {
	wan, err := netlink.LinkByName("wan")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	addr.ValidLft, addr.PreferedLft = int(^uint32(0)>>1), 0
	return netlink.AddrReplace(wan, addr)
}

// who serves a port of the world that tells over TCP, and over UDP at some addresses, who
// asks.
func (n *network) who(port int) {
	n.Helper()
	tcp, err := n.world.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { tcp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%v to %v", unmapped(c.RemoteAddr()), unmapped(c.LocalAddr()))
			c.Close()
		}
	}()
	for number := 1; number < 4; number++ {
		for _, at := range to(number, port) {
			udp, err := n.world.ListenPacket("udp", at)
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { udp.Close() })
			go func() {
				for {
					_, from, err := udp.ReadFrom(make([]byte, 10))
					if err != nil {
						return
					}
					_, _ = udp.WriteTo(fmt.Appendf(nil, "%v to %v", unmapped(from), unmapped(udp.LocalAddr())), from)
				}
			}()
		}
	}
}

func unmapped(a net.Addr) netip.Addr { return netip.MustParseAddrPort(a.String()).Addr().Unmap() }

// asked returns who has asked whom, as the server has seen it.
func asked(ctx context.Context, from speaker, network, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if network == "udp" {
		if _, err := c.Write([]byte("who")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 100)
	size, err := c.Read(buf)
	return string(buf[:size]), err
}

// seen fails the test unless the server at the real addresses sees who asks as told, IPv4
// and IPv6.
func (n *network) seen(from speaker, mapped, number int, as ...string) {
	n.Helper()
	v4, v6 := addrs(number)
	for i, real := range []netip.Addr{v4, v6} {
		for _, network := range []string{"tcp", "udp"} {
			want := fmt.Sprintf("%s to %v", as[i], real)
			if got, err := asked(n.Context(), from, network, toMapped(mapped, whoPort)[i]); err != nil || got != want {
				n.Errorf("%s to %s over %s: seen as %q (%v), want %q", from.Name(), toMapped(mapped, whoPort)[i], network, got, err, want)
			}
		}
	}
}

// synsRepeated is how often the host has sent a SYN again, having heard nothing.
func (n *network) synsRepeated(h host) (count int) {
	n.Helper()
	if err := h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n") // names, and below them values
		count, err = strconv.Atoi(strings.Fields(lines[1])[slices.Index(strings.Fields(lines[0]), "TCPSynRetrans")])
		return err
	}); err != nil {
		n.Fatal(err)
	}
	return count
}

// A host is a speaker that has a network of its own.
type host interface {
	speaker
	Do(func() error) error
}

// refused fails the test unless the addresses, which have names here, refuse at once.
func (n *network) refused(from host, addrs ...string) {
	n.Helper()
	for _, addr := range addrs {
		for _, network := range []string{"tcp", "udp"} {
			before := n.synsRepeated(from)
			got, err := asked(n.Context(), from, network, addr)
			no := errors.Is(err, syscall.ECONNREFUSED) || network == "udp" && errors.Is(err, syscall.EPERM) // as a sender on this machine hears
			if repeated := n.synsRepeated(from) - before; !no || repeated > 0 {
				n.Errorf("%s to %s over %s: %q, %v, after %d SYNs more, want a refusal at once", from.Name(), addr, network, got, err, repeated)
			}
		}
	}
}

// unreached fails the test unless nothing comes back from the addresses.
func (n *network) unreached(from speaker, addrs ...string) {
	n.Helper()
	for _, addr := range addrs {
		for _, network := range []string{"tcp", "udp"} {
			n.reaches(from, false, network, addr)
		}
	}
}

// mapTo maps both mapped addresses to both real ones.
func (n *network) mapTo(route string, mapped, real int) {
	n.Helper()
	m4, m6 := mappedAddrs(mapped)
	r4, r6 := addrs(real)
	if err := n.Map(n.Context(), []backend.Mapping{{Route: route, Mapped: m4, Real: r4}, {Route: route, Mapped: m6, Real: r6}}, time.Minute); err != nil {
		n.Fatal(err)
	}
}

func (n *network) unmap(mapped int) {
	n.Helper()
	m4, m6 := mappedAddrs(mapped)
	if err := n.Unmap(n.Context(), []netip.Addr{m4, m6}); err != nil {
		n.Fatal(err)
	}
}

// openMapped grants both mapped addresses to each holder that can reach them.
func (n *network) openMapped(number int, holders ...backend.Scope) {
	n.Helper()
	v4, v6 := mappedAddrs(number)
	var grants []backend.Grant
	for _, h := range holders {
		for _, a := range []netip.Addr{v4, v6} {
			if h.CanReach(a) {
				grants = append(grants, backend.Grant{Scope: h, Addr: a, Until: time.Now().Add(time.Hour)})
			}
		}
	}
	if err := n.Grant(n.Context(), grants, time.Minute); err != nil {
		n.Fatal(err)
	}
}

// A sender is one whose traffic goes by a route: the host, the holder of its grants, and the
// addresses that it has for others.
type sender struct {
	*netlab.Host
	holder backend.Scope
	as     [2]string
}

func (n *network) senders() map[string]sender {
	n.Helper()
	return map[string]sender{
		"forwarded": {n.client, n.link("lan0"), [2]string{client4, client6}},
		"local":     {n.here, backend.Scope{Holder: backend.Machine}, [2]string{from4, from6}},
	}
}

// dump is the table, for tests that fail.
func (n *network) dump() {
	if n.T.Failed() {
		n.Log(nft(n.T, "list", "table", "inet", worldRules(n.T).Table))
	}
}

// uplink makes packets with a mark leave by the second uplink.
func (n *network) uplink(mark uint32) {
	n.Helper()
	for family := range uplinks {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table = family, mark, 100
		if err := netlink.RuleAdd(rule); err != nil {
			n.Fatal(err)
		}
		n.Cleanup(func() { _ = netlink.RuleDel(rule) })
	}
	n.uplinkAgain()
}

func (n *network) uplinkAgain() {
	n.Helper()
	for family, via := range uplinks {
		if err := netlink.RouteAdd(tunRoute(n, family, via)); err != nil {
			n.Fatal(err)
		}
	}
}

// uplinks are the world's addresses at the second uplink.
var uplinks = map[int]string{netlink.FAMILY_V4: "192.0.3.2", netlink.FAMILY_V6: "2001:db8:3::2"}

// noUplink takes the second uplink's routes away: the others are taken then.
func (n *network) noUplink() {
	n.Helper()
	for family, via := range uplinks {
		if err := netlink.RouteDel(tunRoute(n, family, via)); err != nil {
			n.Fatal(err)
		}
	}
}

func tunRoute(n *network, family int, via string) *netlink.Route {
	link, err := netlink.LinkByName("tun0")
	if err != nil {
		n.Fatal(err)
	}
	everything := "0.0.0.0/0"
	if family == netlink.FAMILY_V6 {
		everything = "::/0"
	}
	_, dst, _ := net.ParseCIDR(everything)
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(via), Table: 100}
}
