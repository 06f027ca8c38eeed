package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// denied waits until a flow to an address and port is listed, and returns it.
func (w *world) denied(socket, addr string, port uint16, hook string) (found admin.Denied) {
	w.Helper()
	c := w.asks(socket)
	w.eventually(fmt.Sprintf("%s to %s, port %d, is listed as denied", hook, addr, port), func() bool {
		list, err := c.Denied(context.Background(), admin.DeniedQuery{})
		w.must(err)
		for _, d := range list.Flows {
			if d.Address.String() == addr && d.Port == port && d.Hook == hook {
				found = d
				return true
			}
		}
		return false
	})
	return found
}

// Each reason is produced by real packets, and told rightly: in the list, in the log, and
// as it happens.
func TestReasons(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	other, routed := w.moreClients()
	for _, key := range []string{"net/ipv4/conf/all/accept_source_route", "net/ipv4/conf/lan0/accept_source_route"} {
		w.must(w.guard.Sysctl(key, "1"))
	}
	c := w.start(corefile(guardBlock("nft-both", option, "scope application", "ttl 1s 60s", "margin 1s", "upstream 198.18.9.9:53")) +
		withExamples("ports.test {\nipdestinationguard {\nports tcp/443\n}\nforward . "+resolver4+"\n}\n") +
		withExamples("users.test {\nipdestinationguard {\nusers 1000\n}\nforward . "+resolver4+"\n}\n"))
	before := w.series()
	unit := w.cgroup("denied.service")
	program := w.program(netlab.As{Cgroup: unit})
	const called = "exe" // as a test program is run
	user := w.program(netlab.As{User: w.user(1001)})
	ask := func(from sender, server, name, addr string) {
		t.Helper()
		if _, n := w.askName(from, server, name, mustAddr(addr)); n == 0 {
			t.Errorf("%s has no address", name)
		}
	}
	named := func(zone string, ttl int, addr string) string {
		return strings.Replace(nameOf(ttl, addr), "test.", zone+"test.", 1)
	}
	udp := func(from sender, addr string, port uint16) func() {
		return func() {
			conn, err := from.Dial(context.Background(), "udp", fmt.Sprintf("%s:%d", addr, port))
			w.must(err)
			w.Cleanup(func() { conn.Close() }) // while it is there it is known whose it is
			_, _ = conn.Write([]byte("x"))
		}
	}
	raw := func(p packet) func() { return func() { _ = send(w.client, "eth0", p) } }
	source := newUDP("192.168.50.2", "198.18.9.20", 1000, 7)
	source.options = []byte{131, 7, 4, 198, 18, 9, 21, 0} // loose source route (RFC 791)

	for _, tt := range []struct {
		name   string
		before func()
		packet func()
		addr   string
		port   uint16
		hook   string
		want   admin.Denied // what of it is said
	}{
		{"never resolved", nil, udp(program, "198.18.9.1", 7), "198.18.9.1", 7, "output",
			admin.Denied{Reason: "never_resolved", Text: "never resolved here", User: "root", Unit: unit.Path(), Program: called}},
		{"expired", func() {
			ask(user, "127.0.0.1", named("", 1, "198.18.9.2"), "198.18.9.2")
			time.Sleep(3 * time.Second)
		}, udp(user, "198.18.9.2", 7), "198.18.9.2", 7, "output",
			admin.Denied{Reason: "expired", Text: "expired ", User: "1001", Name: strings.TrimSuffix(named("", 1, "198.18.9.2"), ".")}},
		{"granted to another client", func() { ask(w.client, gateway4, named("", 60, "198.18.9.3"), "198.18.9.3") }, udp(other, "198.18.9.3", 7), "198.18.9.3", 7, "forward",
			admin.Denied{Reason: "other_holder", Text: "granted to 192.168.50.2, not to " + neighbour4, Client: mustAddr(neighbour4), Interface: "lan1"}},
		{"granted to a routed client", func() { ask(routed, neighbourGateway4, named("", 60, "198.18.9.4"), "198.18.9.4") }, udp(w.client, "198.18.9.4", 7), "198.18.9.4", 7, "forward",
			admin.Denied{Reason: "other_holder", Text: "granted to " + routed4 + ", not to 192.168.50.2", Interface: "lan0"}},
		{"granted to another program", func() { ask(user, "127.0.0.1", named("", 60, "198.18.9.5"), "198.18.9.5") }, udp(program, "198.18.9.5", 7), "198.18.9.5", 7, "output",
			admin.Denied{Reason: "other_holder", Unit: unit.Path()}},
		{"another port", func() { ask(w.client, gateway4, named("ports.", 60, "198.18.9.6"), "198.18.9.6") }, udp(w.client, "198.18.9.6", 80), "198.18.9.6", 80, "forward",
			admin.Denied{Reason: "other_port", Text: "port not in the block's ports: opened by the answer for " + strings.TrimSuffix(named("ports.", 60, "198.18.9.6"), ".") + ", for tcp/443 only"}},
		{"another program than the block's", func() { ask(user, "127.0.0.1", named("users.", 60, "198.18.9.7"), "198.18.9.7") }, udp(user, "198.18.9.7", 7), "198.18.9.7", 7, "output",
			admin.Denied{Reason: "other_program"}},
		{"stripped", func() { w.askName(w.client, gateway4, "a-10-9-9-9.evil.test.", mustAddr("10.9.9.9")) }, udp(w.client, "10.9.9.9", 7), "10.9.9.9", 7, "forward",
			admin.Denied{Reason: "stripped", Text: "stripped: private-use (RFC 1918), in the answer for a-10-9-9-9.evil.test", Name: "a-10-9-9-9.evil.test"}},
		{"a resolver", func() { ask(w.client, gateway4, named("", 60, "198.18.9.8"), "198.18.9.8") }, udp(w.client, "198.18.9.8", 53), "198.18.9.8", 53, "forward",
			admin.Denied{Reason: "dns_port", Text: "dns port"}},
		{"upstream", nil, udp(user, "198.18.9.9", 53), "198.18.9.9", 53, "output", admin.Denied{Reason: "others_ask", Text: "only CoreDNS asks upstream"}},
		{"revoked", func() {
			ask(w.client, gateway4, named("", 60, "198.18.9.10"), "198.18.9.10")
			w.ctl(path, exitOK, "revoke", "198.18.9.10")
		}, udp(w.client, "198.18.9.10", 7), "198.18.9.10", 7, "forward", admin.Denied{Reason: "ended_early", Text: "ended early, was "}},
		{"no connection's", nil, raw(newTCP("192.168.50.2", "198.18.9.11", 999, 7, syn|fin|rst)), "198.18.9.11", 7, "forward",
			admin.Denied{Reason: "invalid", Text: "belongs to no connection"}},
		{"source routing", nil, raw(source), "198.18.9.20", 7, "forward", admin.Denied{Reason: "source_route"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != nil {
				tt.before()
			}
			tt.packet()
			var got admin.Denied
			want := tt.want
			right := func() bool {
				got = w.denied(path, tt.addr, tt.port, tt.hook)
				return got.Reason == want.Reason && strings.HasPrefix(got.Text, want.Text) && (want.User == "" || got.User == want.User) &&
					(want.Unit == "" || got.Unit == want.Unit) && (want.Program == "" || got.Program == want.Program) && (want.Name == "" || got.Name == want.Name) && (!want.Client.IsValid() || got.Client == want.Client) &&
					(want.Interface == "" || got.Interface == want.Interface) && !got.Audit && got.Packets > 0
			}
			for end := time.Now().Add(20 * time.Second); !right(); time.Sleep(50 * time.Millisecond) { // until a packet has been shown
				if time.Now().After(end) {
					t.Fatalf("got  %+v\nwant %+v", got, want)
				}
			}
			variable := fmt.Sprintf(`coredns_ipdestinationguard_denied_packets_total{became="refused",chain=%q,reason=%q}`, tt.hook, want.Reason)
			w.eventually(variable+" counts it", func() bool { return w.metric(variable) >= 1 })
		})
	}
	if after := w.series(); !slices.Equal(before, after) { // what begins with an event begins at 1: alerts do not see that
		t.Errorf("variables at the start: %q\nand now: %q", before, after)
	}
	logged := func(line string) func() bool { return func() bool { return strings.Contains(c.Output(), line) } }
	w.eventually("the log has the reason", logged("reason=stripped name=\"a-10-9-9-9.evil.test\" why=\"stripped: private-use (RFC 1918), in the answer for a-10-9-9-9.evil.test\""))
	// A flow whose count is read just before its packet is shown, is told of without who has sent it.
	for port := uint16(7); ; port++ {
		if port > 7 {
			udp(program, "198.18.9.1", port)()
		}
		flow := fmt.Sprintf(" protocol=udp address=198.18.9.1 port=%d packets=1 ", port)
		w.eventually("the log has"+flow, logged(flow))
		if logged("Denied: chain=output user=root unit=" + unit.Path() + " program=" + called + flow)() {
			break
		}
		if port == 12 {
			t.Fatal("the log never says who has sent it")
		}
	}
}

// What is denied is shown by the NFLOG group that the Corefile names, or by none, and a
// reload moves it; without lines in the log it is listed and counted all the same.
func TestDeniedIsToldAsTheCorefileSays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	unit := w.cgroup("told.service")
	program := w.program(netlab.As{Cgroup: unit})
	with := func(options ...string) string {
		return corefile(guardBlock("nft-local", append(options, option, "scope application")...))
	}
	// groups are those that somebody listens to.
	groups := func() (all []string) {
		w.must(w.guard.Do(func() error {
			text, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_log")
			for line := range strings.Lines(string(text)) {
				all = append(all, strings.Fields(line)[0])
			}
			return err
		}))
		return all
	}
	listens := func(want ...string) {
		t.Helper()
		w.eventually(fmt.Sprint("groups ", want, " are listened to, and no others"), func() bool { return slices.Equal(groups(), want) })
	}
	port := uint16(7)
	// deny has a packet denied, and reports the unit: it is known of what was shown only.
	deny := func(shown bool) {
		t.Helper()
		port++
		conn, err := program.Dial(context.Background(), "udp", fmt.Sprintf("198.18.9.1:%d", port))
		w.must(err)
		defer conn.Close()
		_, _ = conn.Write([]byte("x"))
		var d admin.Denied
		if shown {
			w.eventually("it is shown", func() bool { d = w.denied(path, "198.18.9.1", port, "output"); return d.Unit == unit.Path() })
		} else if d = w.denied(path, "198.18.9.1", port, "output"); d.Unit != "" {
			t.Errorf("without a group, its unit is known: %+v", d)
		}
	}
	c := w.start(with("nflog_group 7", "denied_log off"))
	deny(true)
	w.eventually("it is counted", func() bool {
		return w.metric(`coredns_ipdestinationguard_denied_packets_total{became="refused",chain="output",reason="never_resolved"}`) == 1
	})
	listens("7")
	if strings.Contains(c.Output(), "Denied") {
		t.Error("it is logged with denied_log off")
	}
	w.mustReload(c, with("nflog_group off"))
	deny(false)
	listens()
	w.mustReload(c, with())
	deny(true)
	listens("5300")
	w.eventually("it is logged", func() bool {
		return strings.Contains(c.Output(), fmt.Sprintf(" protocol=udp address=198.18.9.1 port=%d ", port))
	})
}

// A flow is told of at once to who follows, in a line; in audit it is said to have passed.
func TestDeniedIsFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	w.start(corefile(guardBlock("nft-both", option, "audit gateway")))
	follow := w.guard.Command(guardctlBinary(t), "--socket", path, "denied", "-f")
	w.must(follow.Start())
	self, behind := w.self(), w.behind()
	w.eventually("it follows, and is told at once", func() bool {
		_ = w.connect(w.guard, "udp", self.addr4(int(time.Now().UnixNano()%200)))
		return strings.Contains(follow.Output(), "refused: user root to ")
	})
	w.wantOpen(w.client, "tcp", behind.addr4(77))
	w.eventually("audit is told of", func() bool {
		return strings.Contains(follow.Output(), "audit: 192.168.50.2 (lan0) to "+behind.addr4(77)+" tcp/7, ")
	})
	w.must(follow.Signal(syscall.SIGINT))
	if err := follow.Wait(); err != nil {
		t.Errorf("interrupted, it ended with: %v", err)
	}
	if out := w.ctl(path, exitOK, "denied"); !strings.Contains(out, behind.addr4(77)) || !strings.Contains(out, "never resolved here") {
		t.Errorf("denied:\n%s", out)
	}
}
