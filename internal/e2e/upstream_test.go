package e2e

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// upstreams is a Corefile that asks over IPv4, and for v6.test over IPv6. Nothing but
// the option lets it.
func upstreams(mode string, options ...string) string {
	return guardedBlock(".", "ipdestinationguard {\n\tmode "+mode+"\n\t"+strings.Join(options, "\n\t")+"\n}", "forward . "+resolver4) +
		guardedBlock("v6.test", "", "forward . "+resolver6)
}

const upstreamOption = "upstream " + resolver4 + " [" + resolver6 + "]:53"

// wantUpstreamShut checks that others cannot ask the upstream, and reach no other port
// of it.
func (w *world) wantUpstreamShut(others ...sender) {
	w.Helper()
	var checks []func()
	for _, from := range others {
		for _, server := range []string{resolver4, resolver6} {
			for _, network := range networks {
				checks = append(checks,
					func() { w.Helper(); w.wantDNS(from, network, server, 53, false) },
					func() { w.Helper(); w.wantPort(from, network, server, 853, false) },
					func() { w.Helper(); w.wantPort(from, network, server, 443, false) },
					func() { w.Helper(); w.wantPort(from, network, server, echoPort, false) })
			}
		}
	}
	together(checks, func(check func()) { w.Helper(); check() })
}

// wantResolved checks that CoreDNS asks its upstream over both IP versions.
func (w *world) wantResolved(n int) {
	w.Helper()
	p := w.self()
	w.lookup(w.guard, "127.0.0.1", p.addr4(n), 60)
	w.lookupIn(w.guard, "127.0.0.1", p.addr6(n), "v6.test.")
	w.wantOpen(w.guard, "tcp", p.addr4(n))
	w.wantOpen(w.guard, "tcp", p.addr6(n))
}

// The upstream is for CoreDNS only, where that has a cgroup of its own.
func TestUpstreamByCgroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	group := w.cgroup("coredns.service")
	others := []sender{w.guard, w.client, w.program(netlab.As{Cgroup: w.cgroup("a.service")}), w.program(netlab.As{User: w.user(1001)})}
	file := upstreams("nft-both", upstreamOption, "admin off") // or it warns that another test's has the socket
	c := w.startAs(netlab.As{Cgroup: group}, file)
	if strings.Contains(c.Output(), "WARNING") {
		t.Errorf("it warns:\n%s", c.Output())
	}
	w.wantResolved(1)
	w.wantUpstreamShut(others...)
	w.mustReload(c, upstreams("nft-both", upstreamOption, "admin off", "hold 2s"))
	w.wantResolved(2)
	w.wantUpstreamShut(w.guard)

	// While it does not run the door is shut; when it is started anew, in a cgroup that
	// is another to the kernel, it gets through.
	w.kill(c)
	w.must(group.Close())
	w.wantUpstreamShut(others...)
	c = w.startAs(netlab.As{Cgroup: w.cgroup("coredns.service")}, file)
	w.wantResolved(3)
	w.wantUpstreamShut(others...)
	w.must(c.Stop())
	w.wantUpstreamShut(w.guard)
}

// Or a user of its own.
func TestUpstreamByUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	others := []sender{w.guard, w.client, w.program(netlab.As{User: w.user(1001)})}
	c := w.startAs(w.asCoreDNS(), upstreams("nft-both", upstreamOption, "admin off")) // which nobody has made a directory for
	if strings.Contains(c.Output(), "WARNING") {
		t.Errorf("it warns:\n%s", c.Output())
	}
	w.wantResolved(1)
	w.wantUpstreamShut(others...)
	w.wantDNS(w.program(netlab.As{User: 53}), "udp", resolver4, 53, true) // nothing tells it from CoreDNS
}

// As root, beside others, it cannot be told from them, and says so.
func TestUpstreamOfRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.start(upstreams("nft-local", upstreamOption))
	w.wantResolved(1)
	if !strings.Contains(c.Output(), "upstream is open to every program of root") {
		t.Errorf("it does not warn:\n%s", c.Output())
	}
	w.wantDNS(w.guard, "udp", resolver4, 53, true)
	w.wantUpstreamShut(w.program(netlab.As{User: w.user(1001)}))
	w.wantPort(w.guard, "tcp", resolver4, 853, false)
	w.wantShut(w.guard, resolver4)
}

// Only the port that is told, or that forward uses.
func TestUpstreamPort(t *testing.T) {
	t.Parallel()
	for _, upstream := range []string{resolver4 + ":5353", resolver4} {
		t.Run(upstream, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.must(w.world.ServeDNS(5353, netlab.Zone()))
			w.startAs(netlab.As{Cgroup: w.cgroup("coredns.service")},
				guardedBlock(".", "ipdestinationguard {\n\tmode nft-local\n\tupstream "+upstream+"\n}", "forward . "+resolver4+":5353")+
					guardedBlock("other.test", "", "forward . "+resolver4))
			w.lookup(w.guard, "127.0.0.1", w.self().addr4(1), 60)
			m, err := w.askIn(w.guard, "127.0.0.1", w.self().addr4(2), "other.test.")
			w.must(err)
			if told := upstream != resolver4; (m.Rcode == dns.RcodeServerFailure) != told {
				t.Errorf("port 53: %v", m)
			}
		})
	}
}

// A forwarder that the guard refuses is told of at the start, with what to do.
func TestForwardWithoutUpstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.start(upstreams("nft-local", "upstream "+resolver6))
	if want := "the line: upstream " + resolver4; !strings.Contains(c.Output(), want) || !strings.Contains(c.Output(), "WARNING") {
		t.Errorf("it does not say %q:\n%s", want, c.Output())
	}
	if strings.Contains(c.Output(), "the line: upstream "+resolver6) {
		t.Errorf("it warns of what is open:\n%s", c.Output())
	}
}

// wantDNS checks whether a resolver can be asked.
func (w *world) wantDNS(from sender, network, server string, port int, open bool) {
	w.Helper()
	patience := 300 * time.Millisecond
	if open {
		patience = 5 * time.Second
	}
	_, err := exchangeAt(from, network, net.JoinHostPort(server, strconv.Itoa(port)), new(dns.Msg).SetQuestion("a-198-18-1-1.test.", dns.TypeA), patience)
	if (err == nil) != open || err != nil && !refused(err) {
		w.Errorf("%s: asking %s over %s at port %d: %v, open should be %v", from.Name(), server, network, port, err, open)
	}
}
