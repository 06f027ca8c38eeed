package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// wantPort checks one port, where something echoes.
func (w *world) wantPort(from sender, network, addr string, port int, open bool) {
	w.Helper()
	patience := 300 * time.Millisecond
	if open {
		patience = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := from.Dial(ctx, network, net.JoinHostPort(addr, strconv.Itoa(port)))
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err = conn.Write([]byte("ping")); err == nil {
			_, err = conn.Read(make([]byte, 4))
		}
	}
	if (err == nil) != open || err != nil && !refused(err) {
		w.Errorf("%s: %s to %s, port %d: %v, open should be %v", from.Name(), network, addr, port, err, open)
	}
}

// Grants of a block with ports open these and no others, not even for ping.
func TestPorts(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for _, port := range []int{443, 444, 7999, 8000, 8010, 8011} {
				w.must(w.world.Echo(port))
			}
			w.letPing()
			w.start(guardedBlock(".", guardBlock(m.name), "forward . "+resolver4) +
				guardedBlock("web.test", "ipdestinationguard {\n\tports tcp/443 udp/8000-8010\n}", "forward . "+resolver4))
			guarded, _ := m.parties(w)
			for _, p := range guarded {
				for _, addr := range []string{p.addr4(1), p.addr6(1)} {
					w.lookupIn(p.Host, p.resolver(addr), addr, "web.test.")
					want := map[string]bool{"tcp/443": true, "udp/8000": true, "udp/8010": true}
					for _, network := range networks {
						for _, port := range []int{443, 444, 7999, 8000, 8010, 8011, echoPort} {
							w.wantPort(p.Host, network, addr, port, want[fmt.Sprintf("%s/%d", network, port)])
						}
					}
					if err := ping(p.Host, netip.MustParseAddr(addr), 300*time.Millisecond); err == nil {
						t.Errorf("%s: a ping to %s was answered", p.Name(), addr)
					}
					// By another name it is open on every port.
					w.lookup(p.Host, p.resolver(addr), addr, 60)
					w.wantPort(p.Host, "tcp", addr, 444, true)
					if err := ping(p.Host, netip.MustParseAddr(addr), 5*time.Second); err != nil {
						t.Errorf("%s: a ping to %s: %v", p.Name(), addr, err)
					}
				}
			}
		})
	}
}

// lookupIn is lookup for the address's name in a zone.
func (w *world) lookupIn(from sender, server, addr, zone string) {
	w.Helper()
	m, err := w.askIn(from, server, addr, zone)
	if err != nil || m.Rcode != dns.RcodeSuccess || len(addresses(m)) != 1 {
		w.Fatalf("no address: %v %v", m, err)
	}
}

func (w *world) askIn(from sender, server, addr, zone string) (*dns.Msg, error) {
	return w.ask(from, server, strings.Replace(nameOf(60, addr), "test.", zone, 1), typeFor(addr))
}

// Grants of a block with users hold for what these send, whoever asks.
func TestUsers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.users(1001, 65534, 1003) // 65534 is nobody
	w.start(guardedBlock(".", guardBlock("nft-both"), "forward . "+resolver4) +
		guardedBlock("db.test", "ipdestinationguard {\n\tusers 1001\n\tusers nobody\n}", "forward . "+resolver4))
	for _, asker := range apps {
		for _, addr := range []string{asker.addr4(1), asker.addr6(1)} {
			w.lookupIn(asker, party{resolver4: "127.0.0.1", resolver6: "::1"}.resolver(addr), addr, "db.test.")
			for j, a := range apps {
				if j == 2 {
					w.wantShut(a, addr)
				} else {
					w.wantOpen(a, "tcp", addr)
					w.wantOpen(a, "udp", addr)
				}
			}
			w.wantShut(w.guard, addr) // root
			w.wantShut(w.client, addr)
		}
	}
	w.wantNotForClients("db.test.")
}

// wantNotForClients checks that a zone for programs of the machine gives its clients
// nothing, and says why.
func (w *world) wantNotForClients(zone string) {
	w.Helper()
	p := w.behind()
	for _, addr := range []string{p.addr4(99), p.addr6(99)} {
		m, err := w.askIn(p.Host, p.resolver(addr), addr, zone)
		w.must(err)
		w.wantWithheld(m)
		w.wantShut(p.Host, addr)
	}
}

// Grants of a block with units hold for what these send and all below them, whoever
// asks; and also when a unit has not run yet, or is restarted.
func TestUnits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("a.service", "b.service", "web.slice/c.service", "web.slice/d.service")
	a, b, c, d := apps[0], apps[1], apps[2], apps[3]
	top := strings.TrimSuffix(a.As().Cgroup.Path(), "a.service")
	w.start(guardedBlock(".", guardBlock("nft-both"), "forward . "+resolver4) +
		guardedBlock("db.test", fmt.Sprintf("ipdestinationguard {\n\tunits %[1]sa.service %[1]sweb.slice\n\tunits %[1]slater.service\n}", top), "forward . "+resolver4))
	addrs := []string{b.addr4(1), b.addr6(1)}
	for _, addr := range addrs {
		w.lookupIn(b, "127.0.0.1", addr, "db.test.") // who gets the answer, and no way
		for _, p := range []app{a, c, d} {
			w.wantOpen(p, "tcp", addr)
			w.wantOpen(p, "udp", addr)
		}
		w.wantShut(b, addr)
		w.wantShut(w.guard, addr)
		w.wantShut(w.client, addr)
	}
	w.wantNotForClients("db.test.")

	restarted := func(name string) *netlab.Program { return w.program(netlab.As{Cgroup: w.cgroup(name)}) }
	w.must(a.As().Cgroup.Close())
	for _, name := range []string{"a.service", "later.service"} {
		p := restarted(name)
		w.eventually(name+" is known", func() bool { return w.connect(p, "tcp", addrs[0]) == nil })
		w.wantOpen(p, "tcp", addrs[1])
	}
	w.wantShut(restarted("e.service"), addrs[0])
}

// Ports and units together, with applications told apart besides.
func TestUnitsAndPortsOfApplications(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.world.Echo(443))
	apps := w.units("a.service", "b.service")
	a, b := apps[0], apps[1]
	w.start(guardedBlock(".", guardBlock("nft-local", application), "forward . "+resolver4) +
		guardedBlock("db.test", "ipdestinationguard {\n\tports tcp/443\n\tunits "+a.As().Cgroup.Path()+"\n}", "forward . "+resolver4))
	for _, addr := range []string{a.addr4(1), a.addr6(1)} {
		w.lookupIn(a, "127.0.0.1", addr, "db.test.")
		w.lookupIn(b, "127.0.0.1", addr, "db.test.") // b is not one of them, and a's grant is not b's
		w.wantPort(a, "tcp", addr, 443, true)
		w.wantShut(a, addr)
		w.wantShut(b, addr)
		w.wantPort(b, "tcp", addr, 443, false)
		// By another name b has it, and a no more than before.
		w.lookup(b, "127.0.0.1", addr, 60)
		w.wantOpen(b, "tcp", addr)
		w.wantShut(a, addr)
	}
}
