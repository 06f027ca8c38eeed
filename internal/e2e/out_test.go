package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// secondUplink is another link between the guard and the world, wan7 here and eth7 there.
// Nothing leads there yet.
func (w *world) secondUplink() {
	w.Helper()
	w.must(w.lab.Link(w.guard, "wan7", w.world, "eth7"))
	w.addrs(w.guard, "wan7", "198.51.100.7/24", "2001:db8:100::7/64")
	w.addrs(w.world, "eth7", "198.51.100.1/24", "2001:db8:100::1/64")
}

// What leads to the second uplink, and no more when $1 is del.
var waysToSecondUplink = []string{
	"ip route $1 198.18.31.0/24 via 198.51.100.1 dev wan7; ip -6 route $1 2001:db8:18:31::/64 via 2001:db8:100::1 dev wan7",
	"ip rule $1 to 198.18.31.0/24 lookup 107; ip -6 rule $1 to 2001:db8:18:31::/64 lookup 107",
}

// An outName has a real address of each version. Those that have sources, too, leave with these by
// the second uplink, or not at all.
type outName struct{ name, real4, real6, source4, source6 string }

var outNames = []outName{
	{"bare.test.", "198.18.31.1", "2001:db8:18:31::1", "198.51.100.7", "2001:db8:100::7"},
	{"fixed.test.", "198.18.31.2", "2001:db8:18:31::2", "198.51.100.8", "2001:db8:100::8"},
	{"free.test.", "198.18.31.3", "2001:db8:18:31::3", "", ""},
	{"unrouted.test.", "198.18.31.4", "2001:db8:18:31::4", "", ""},
}

// A route with `out` and no mark goes where the machine's own routing leads, by that interface.
// When it leads elsewhere, nothing goes there: live connections wait, new ones fail, and it is
// said why, also before.
func TestRouteOut(t *testing.T) {
	eachMode(t, func(w *world, mode mode) {
		w.mirror(w.world)
		w.secondUplink()
		w.shell(w.guard, `ip address add 198.51.100.8/32 dev wan7
			ip -6 address add 2001:db8:100::8/128 dev wan7 preferred_lft 0
			ip route add default via 198.51.100.1 dev wan7 table 107
			ip -6 route add default via 2001:db8:100::1 dev wan7 table 107`)
		m := &mappedWorld{w, w.atlas()}
		names := slices.Clone(outNames)
		if !mode.behind { // on a server, a route without egress leaves with the address as ever
			names[0].source4, names[0].source6 = "192.0.2.1", "2001:db8::1"
		}
		for _, n := range names {
			m.atlas.addrs(n.name, 3600, n.real4, n.real6)
		}
		x := m.tap() // of the first uplink
		path, admin := m.socket()
		m.start(m.corefile(mode.name, admin,
			m.route("bare.test", "out wan7"),
			m.route("fixed.test", "out wan7", "egress 198.51.100.8 2001:db8:100::8"),
			m.route("free.test")))
		guarded, _ := mode.parties(w)
		for _, p := range guarded {
			for _, way := range waysToSecondUplink {
				m.losesItsWay(p, names, x, way, path)
			}
		}
	})
}

func (m *mappedWorld) losesItsWay(p party, names []outName, first *wire, way, socket string) {
	m.Helper()
	m.shell(m.guard, way, "add")
	type target struct{ name, addr, real, source string }
	var bound, others []target
	for _, n := range names {
		for _, t := range []target{{name: n.name, real: n.real4, source: n.source4}, {name: n.name, real: n.real6, source: n.source6}} {
			answer, err := m.ask(p.Host, p.resolver(t.real), n.name, typeFor(t.real))
			m.must(err)
			if t.addr = addresses(answer)[0]; t.source != "" {
				bound = append(bound, t)
			} else {
				others = append(others, t)
			}
		}
	}
	byFirst := func(t target) int {
		return first.seen(func(p packet) bool { return p.destination == netip.MustParseAddr(t.real) })
	}
	goes := func(when string) (live []net.Conn) {
		m.Helper()
		for _, t := range bound {
			m.saysWay(p, socket, t.addr, true, "")
			s, conn := m.watch(p.Host, t.addr)
			if want := (sight{t.real, t.source}); s != want {
				m.Errorf("%s, %s, %s: the server sees %v, want %v", p.Name(), way, when, s, want)
			}
			datagrams, err := m.dial(p.Host, "udp", t.addr)
			m.must(err)
			m.Cleanup(func() { datagrams.Close() })
			m.must(echo(datagrams))
			live = append(live, conn, datagrams)
		}
		return live
	}
	live := goes("with a way")

	m.shell(m.guard, way, "del")
	var wg sync.WaitGroup
	for _, conn := range live {
		wg.Go(func() {
			if err := say(conn); err == nil {
				m.Errorf("%s, %s: without a way %v still talks to %v", p.Name(), way, conn.LocalAddr(), conn.RemoteAddr())
			}
		})
	}
	for _, t := range bound {
		for _, network := range networks {
			wg.Go(func() {
				if err := talkTo(p.Host, network, net.JoinHostPort(t.addr, strconv.Itoa(echoPort))); err == nil {
					m.Errorf("%s, %s: without a way there is one over %s to %s", p.Name(), way, network, t.addr)
				}
			})
		}
	}
	wg.Wait()
	for _, t := range bound {
		m.saysWay(p, socket, t.addr, false, t.name)
	}
	for _, t := range others {
		before := byFirst(t)
		for _, network := range networks {
			m.wantOpen(p.Host, network, t.addr)
		}
		if byFirst(t) == before {
			m.Errorf("%s, %s: without a way to the second uplink, %s is not reached by the first", p.Name(), way, t.addr)
		}
	}

	m.shell(m.guard, way, "add")
	for _, conn := range live {
		m.eventually("a live connection goes on", func() bool { return echo(conn) == nil })
	}
	goes("with a way again")
	for _, t := range bound {
		if n := byFirst(t); n > 0 {
			m.Errorf("%s, %s: %d packets for %s have left by the first uplink", p.Name(), way, n, t.real)
		}
	}
	m.shell(m.guard, way, "del")
}

// saysWay fails the test unless it is said that an address has a way out, or that it has none and
// is denied therefore, as the name's.
func (m *mappedWorld) saysWay(p party, socket, addr string, has bool, name string) {
	m.Helper()
	c, hook := m.asks(socket), "output"
	q := admin.ExplainQuery{Address: mustAddr(addr)}
	if p.Host == m.client {
		if hook, q.Client = "forward", mustAddr("192.168.50.2"); !q.Address.Is4() {
			q.Client = mustAddr("fd50::2")
		}
	}
	e, err := c.Explain(m.Context(), q)
	m.must(err)
	const text = "its route leaves by wan7 only, and the kernel's way is by wan0: wan7 is down, or no ip rule leads there"
	for _, v := range e.Addresses[0].Verdicts {
		if v.Hook == hook && (v.Passes != has || (v.Reason == "no_way") == has || !has && !strings.HasSuffix(v.Text, text)) {
			m.Errorf("%s to %s, which has a way: %v: %+v", p.Name(), addr, has, v)
		}
	}
	if has {
		return
	}
	var got []admin.Denied
	m.eventually(fmt.Sprintf("it is told that %s to %s has no way, new or live, over TCP and UDP", p.Name(), addr), func() bool {
		list, err := c.Denied(m.Context(), admin.DeniedQuery{})
		m.must(err)
		got = slices.DeleteFunc(list.Flows, func(d admin.Denied) bool {
			return d.Address.String() != addr || d.Hook != hook || d.Reason != "no_way"
		})
		return len(got) >= 2
	})
	for _, d := range got {
		if d.Name != strings.TrimSuffix(name, ".") || d.Packets == 0 || d.Audit || !strings.Contains(d.Text, "wan7 is down") {
			m.Errorf("%s to %s: %+v", p.Name(), addr, d)
		}
	}
}
