package e2e

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

const application = "scope application"

// An app is a program of the guard's machine; the world has addresses for it alone.
type app struct {
	*netlab.Program
	n int
}

func (a app) addr4(n int) string { return party{net: 100 + a.n}.addr4(n) }
func (a app) addr6(n int) string { return party{net: 100 + a.n}.addr6(n) }

// units are programs in cgroups.
func (w *world) units(names ...string) (apps []app) {
	w.Helper()
	for i, name := range names {
		apps = append(apps, app{w.program(netlab.As{Cgroup: w.cgroup(name)}), i})
	}
	return apps
}

// users are programs of users.
func (w *world) users(uids ...uint32) (apps []app) {
	w.Helper()
	for i, uid := range uids {
		apps = append(apps, app{w.program(netlab.As{User: w.user(uid)}), i})
	}
	return apps
}

// wantApart has each of some programs ask, and checks that what it was told is open to
// it alone.
func (w *world) wantApart(apps []app, resolver4, resolver6 string) {
	w.Helper()
	for i, asker := range apps {
		w.lookup(asker, resolver4, asker.addr4(1), 60)
		w.lookup(asker, resolver6, asker.addr6(1), 60)
		for j, other := range apps {
			for _, addr := range []string{asker.addr4(1), asker.addr6(1)} {
				if i == j {
					w.wantOpen(other, "tcp", addr)
					w.wantOpen(other, "udp", addr)
				} else {
					w.wantShut(other, addr)
				}
			}
		}
	}
}

// What one application has asked for is open to that application and to no other.
func TestApplicationScope(t *testing.T) {
	for _, m := range modes {
		if !m.self {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			apps := w.units("a.service", "b.service")
			own := w.program(netlab.As{}) // in the test's own cgroup, which may be the root
			w.start(corefile(guardBlock(m.name, application)))
			w.wantApart(apps, "127.0.0.1", "::1")
			w.wantApart(apps, guard4, guard6) // by an address of the machine
			a, b := apps[0], apps[1]
			w.wantShut(own, a.addr4(1))
			w.wantShut(w.guard, a.addr6(1))

			// Over TCP, with and without a connection, and IPv4 by an IPv6 socket.
			m, err := exchange(a, "tcp", "127.0.0.1", new(dns.Msg).SetQuestion(nameOf(60, a.addr4(2)), dns.TypeA))
			w.must(err)
			if len(m.Answer) != 1 {
				t.Errorf("over TCP: %v", m)
			}
			for i, at := range []string{"127.0.0.1:0", ":0"} {
				conn, err := a.ListenPacket("udp", at)
				w.must(err)
				defer conn.Close()
				w.askFrom(conn, "127.0.0.1", a.addr4(3+i))
			}
			for i := range 3 {
				w.wantOpen(a, "tcp", a.addr4(2+i))
				w.wantShut(b, a.addr4(2+i))
			}

			// Others of the unit are the unit, also those in a cgroup below.
			second := w.program(a.As())
			below := w.program(netlab.As{Cgroup: w.cgroup("a.service/below")})
			for _, p := range []*netlab.Program{second, below} {
				w.wantOpen(p, "tcp", a.addr4(1))
				w.wantOpen(p, "udp", a.addr6(1))
			}
			w.lookup(below, "127.0.0.1", a.addr4(9), 60)
			w.wantOpen(a, "tcp", a.addr4(9))
			w.wantShut(b, a.addr4(9))

			// The answer is in the cache, and opens for whoever gets it.
			w.lookup(b, "127.0.0.1", a.addr4(1), 60)
			w.wantOpen(b, "tcp", a.addr4(1))
			w.wantShut(own, a.addr4(1))
		})
	}
}

// askFrom asks over a socket that is not connected.
func (w *world) askFrom(conn net.PacketConn, server, addr string) {
	w.Helper()
	question, err := new(dns.Msg).SetQuestion(nameOf(60, addr), dns.TypeA).Pack()
	w.must(err)
	w.must(conn.SetDeadline(time.Now().Add(5 * time.Second)))
	_, err = conn.WriteTo(question, &net.UDPAddr{IP: net.ParseIP(server), Port: 53})
	w.must(err)
	b := make([]byte, 512)
	n, _, err := conn.ReadFrom(b)
	w.must(err)
	m := new(dns.Msg)
	w.must(m.Unpack(b[:n]))
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		w.Errorf("no address: %v", m)
	}
}

// Where there are no cgroups to tell programs by, or by choice, users are told apart.
func TestApplicationScopeByUser(t *testing.T) {
	for _, scope := range []string{"scope application uid", "scope application"} {
		t.Run(scope, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			apps := w.users(1001, 1002)
			if own, err := os.ReadFile("/proc/self/cgroup"); scope == application && (err != nil || !strings.Contains(string(own), "0::/\n")) {
				t.Skipf("the tests have a cgroup of their own, and so have programs of users: %s", own)
			}
			w.start(corefile(guardBlock("nft-local", scope)))
			w.wantApart(apps, "127.0.0.1", "::1")
			w.wantShut(w.guard, apps[0].addr4(1)) // root
			w.wantOpen(w.program(netlab.As{User: 1001}), "tcp", apps[0].addr4(1))
			unit := w.program(netlab.As{User: 1001, Cgroup: w.cgroup("a.service")})
			w.wantOpen(unit, "tcp", apps[0].addr6(1)) // what a user has, the user has everywhere
		})
	}
}

// Who cannot be found gets no address, and hears why.
func TestAskerCannotBeFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(corefile(guardBlock("nft-local", application)))
	lo, err := w.guard.Sniff("lo")
	w.must(err)
	for i, addr := range []string{w.self().addr4(1), w.self().addr6(1)} {
		// Nobody has this port.
		source, qtype := "127.0.0.1", dns.TypeA
		if !is4(addr) {
			source, qtype = "::1", dns.TypeAAAA
		}
		port := uint16(1000 + i)
		m := new(dns.Msg).SetQuestion(nameOf(60, addr), qtype).SetEdns0(1232, false)
		question, err := m.Pack()
		w.must(err)
		w.must(send(w.guard, "lo", newUDP(source, source, port, 53, question...)))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for {
			frame, err := lo.Next(ctx)
			w.must(err)
			p, ok := readPacket(frame)
			if !ok || p.protocol != unix.IPPROTO_UDP || p.payload[0] != 0 || p.payload[1] != 53 {
				continue
			}
			answer := new(dns.Msg)
			w.must(answer.Unpack(p.payload[8:]))
			w.wantWithheld(answer)
			if !strings.Contains(answer.String(), "who asks cannot be found") {
				t.Errorf("the reason is not told: %v", answer)
			}
			break
		}
		w.wantShut(w.guard, addr)
	}
	if granted := w.grants(); len(granted) > 0 {
		t.Errorf("granted: %v", granted)
	}
}

// Who asks for all opens to all.
func TestSharedResolver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("resolved.service", "a.service", "b.service")
	byUser := app{w.program(netlab.As{User: w.user(1003), Cgroup: w.cgroup("nscd.service")}), 3}
	resolved, a, b := apps[0], apps[1], apps[2]
	path := resolved.As().Cgroup.Path()
	w.start(corefile(guardBlock("nft-both", application, "shared_resolver "+path+" 1003")))
	for _, shared := range []app{resolved, byUser} {
		w.lookup(shared, "127.0.0.1", shared.addr4(1), 60)
		w.lookup(shared, "::1", shared.addr6(1), 60)
		for _, p := range []sender{resolved, a, b, byUser, w.guard} {
			w.wantOpen(p, "tcp", shared.addr4(1))
			w.wantOpen(p, "tcp", shared.addr6(1))
		}
		w.wantShut(w.client, shared.addr4(1)) // the machine's, not its clients'
	}
	w.wantApart([]app{a, b}, "127.0.0.1", "::1")
	w.wantShut(resolved, a.addr4(1))
}

// A gateway whose services are told apart: its clients are told apart as before, and
// none is taken for the other.
func TestApplicationsAndClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.units("a.service")[0]
	w.start(corefile(guardBlock("nft-both", application)))
	client := w.behind()
	for _, addr := range []string{client.addr4(1), client.addr6(1)} {
		w.lookup(w.client, client.resolver(addr), addr, 60)
		w.wantOpen(w.client, "tcp", addr)
		w.wantShut(a, addr)
	}
	w.lookup(a, "127.0.0.1", a.addr4(1), 60)
	w.wantOpen(a, "tcp", a.addr4(1))
	w.wantShut(w.client, a.addr4(1))
}

// Who asks a guarded machine from elsewhere gets an answer that opens nothing there.
func TestAskersFromElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.units("a.service")[0]
	w.start(corefile(guardBlock("nft-local", application)))
	client := w.behind()
	for _, addr := range []string{client.addr4(1), client.addr6(1)} {
		w.lookup(w.client, client.resolver(addr), addr, 60)
		w.wantShut(a, addr)
		w.wantShut(w.guard, addr)
	}
	if granted := w.grants(); len(granted) > 0 {
		t.Errorf("granted: %v", granted)
	}
}

// A unit that is restarted has a new cgroup, and asks anew.
func TestRestartedUnitAsksAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(corefile(guardBlock("nft-local", application)))
	group := w.cgroup("a.service")
	before := app{w.program(netlab.As{Cgroup: group}), 0}
	w.lookup(before, "127.0.0.1", before.addr4(1), 60)
	w.wantOpen(before, "tcp", before.addr4(1))
	w.must(group.Close())
	after := w.program(netlab.As{Cgroup: w.cgroup("a.service")})
	w.wantShut(after, before.addr4(1))
	w.lookup(after, "127.0.0.1", before.addr4(1), 60)
	w.wantOpen(after, "tcp", before.addr4(1))
}

// A reload that tells services apart, or no longer, refuses nobody what was open to
// him.
func TestApplicationScopeComesAndGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("a.service", "b.service")
	a, b := apps[0], apps[1]
	wide, narrow := corefile(guardBlock("nft-local")), corefile(guardBlock("nft-local", application))
	c := w.start(wide)
	w.lookup(a, "127.0.0.1", a.addr4(1), 3600)
	w.wantOpen(b, "tcp", a.addr4(1))
	w.mustReload(c, narrow)
	w.wantOpen(a, "tcp", a.addr4(1))
	w.lookup(a, "127.0.0.1", a.addr4(2), 3600)
	w.wantOpen(a, "tcp", a.addr4(2))
	w.wantShut(b, a.addr4(2))
	w.mustReload(c, wide)
	w.wantOpen(a, "tcp", a.addr4(2))
	w.lookup(b, "127.0.0.1", a.addr4(2), 3600)
	w.wantOpen(b, "tcp", a.addr4(2))
}

// Grants of applications outlive CoreDNS.
func TestApplicationsAfterRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("a.service", "b.service")
	file := corefile(guardBlock("nft-local", application))
	c := w.start(file)
	a, b := apps[0], apps[1]
	w.lookup(a, "127.0.0.1", a.addr4(1), 3600)
	w.kill(c)
	w.wantOpen(a, "tcp", a.addr4(1))
	w.wantShut(b, a.addr4(1))
	w.start(file)
	w.wantOpen(a, "tcp", a.addr4(1))
	w.wantShut(b, a.addr4(1))
}
