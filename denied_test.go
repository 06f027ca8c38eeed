package ipdestinationguard

import (
	"bytes"
	stdlog "log"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// deny has one packet of a flow denied now, and returns what is told of it.
func (r *rig) deny(f backend.Flow) admin.Denied {
	r.Helper()
	r.kernel.Deny(f, backend.Count{Packets: 2, Bytes: 80})
	list, err := r.administration().Denied(r.Context(), admin.DeniedQuery{})
	if err != nil {
		r.Fatal(err)
	}
	for _, d := range list.Flows {
		if d.Address == f.Addr && d.Port == f.Port && d.Audit == f.Audited && (d.Reason == "invalid") == f.Invalid {
			return d
		}
	}
	r.Fatalf("%v is not among %+v", f, list.Flows)
	return admin.Denied{}
}

func TestDeniedFlowsAreExplained(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-both")
	r.network.links = map[netip.Addr][6]byte{netip.MustParseAddr("192.168.0.7"): {2, 0, 0, 0, 0, 7}, netip.MustParseAddr("192.168.0.9"): {2, 0, 0, 0, 0, 9}}
	r.asked("192.168.0.7", "a.test. A", "a.test. 300 A 192.0.2.1")
	r.asked("127.0.0.1", "b.test. A", "b.test. 10 A 192.0.2.2")
	r.asked("127.0.0.1", "evil.test. A", "evil.test. 10 A 10.1.1.1")
	r.advance(2 * time.Minute)
	out := func(to string, port uint16) backend.Flow {
		return backend.Flow{Kind: backend.Kind{Hook: backend.Output}, Protocol: 6, User: 4_000_000_000, Addr: netip.MustParseAddr(to), Port: port}
	}
	through := func(from, to string, port uint16) backend.Flow {
		return backend.Flow{Kind: backend.Kind{Hook: backend.Forward}, Protocol: 6, Interface: 4_000_000, Client: netip.MustParseAddr(from), Addr: netip.MustParseAddr(to), Port: port}
	}
	with := func(f backend.Flow, change func(*backend.Flow)) backend.Flow { change(&f); return f }
	for _, tt := range []struct {
		name   string
		flow   backend.Flow
		reason string
		text   string
	}{
		{"never", out("192.0.2.9", 443), "never_resolved", "never resolved here"},
		{"expired", out("192.0.2.2", 443), "expired", "expired 30s ago, was b.test (margin 30s)"},
		{"another's", through("192.168.0.9", "192.0.2.1", 443), "other_holder", "granted to 192.168.0.7, not to 192.168.0.9 (the answer for a.test)"},
		{"its own", through("192.168.0.7", "192.0.2.1", 444), "changed", "would pass now: opened by the answer for a.test"},
		{"stripped", out("10.1.1.1", 443), "stripped", "stripped: private-use (RFC 1918), in the answer for evil.test"},
		{"a resolver", out("192.0.2.2", 853), "dns_port", "dns port"},
		{"forged", with(out("192.0.2.2", 1), func(f *backend.Flow) { f.Invalid = true }), "invalid", "belongs to no connection"},
		{"audit", with(out("192.0.2.8", 443), func(f *backend.Flow) { f.Audited = true }), "never_resolved", "never resolved here"},
		{"of the kernel", with(out("192.0.2.8", 4500), func(f *backend.Flow) { f.User = backend.NoUser }), "never_resolved", "never resolved here"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := r.deny(tt.flow)
			if got.Reason != tt.reason || !strings.HasPrefix(got.Text, tt.text) || got.Packets != 2 {
				t.Errorf("%+v\nwant %s: %s", got, tt.reason, tt.text)
			}
		})
	}
}

// denyMany has a packet of each of so many flows denied.
func (r *rig) denyMany(n int) {
	for i := range n {
		r.kernel.Deny(backend.Flow{Kind: backend.Kind{Hook: backend.Output}, Protocol: 6, User: 7, Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Port: uint16(1 + i>>8)}, backend.Count{Packets: 1, Bytes: 40})
	}
}

// Whoever reads the list knows when there was more, and the metrics say how much.
func TestMoreIsDeniedThanIsListed(t *testing.T) {
	const most = 8192 // as the README has it
	r := newRig(t, "ipdestinationguard nft-local")
	process.Lock()
	process.guard = r.guard // as metrics look for it
	process.Unlock()
	defer func() {
		process.Lock()
		process.guard = nil
		process.Unlock()
	}()
	denied := func(since time.Time) (flows int, more bool) {
		t.Helper()
		list, err := r.administration().Denied(t.Context(), admin.DeniedQuery{Since: since})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Flows), list.More
	}
	r.denyMany(most)
	if n, more := denied(time.Time{}); n != most || more {
		t.Errorf("%d flows are listed, more: %v", n, more)
	}
	r.advance(time.Second)
	before := metrics(t)
	r.denyMany(most + 100)
	if n, more := denied(time.Time{}); n != most || !more {
		t.Errorf("%d flows are listed of more, more: %v", n, more)
	}
	after := metrics(t)
	if n := after["denied_flows_unkept_total"] - before["denied_flows_unkept_total"]; n < 100 {
		t.Errorf("%v flows are counted as unkept", n)
	}
	if n := before["denied_flows_untold_total"]; n != most-500 {
		t.Errorf("%v flows are counted as untold", n)
	}
	moment := r.clock.now().Add(time.Second)
	r.advance(time.Minute)
	r.denyMany(3)
	if n, more := denied(moment); n != 3 || more {
		t.Errorf("later, %d flows are listed, more: %v", n, more)
	}
}

// There are 100 lines at once and five in a second at most, and none with denied_log off.
func TestDeniedLines(t *testing.T) {
	for option, want := range map[string]int{"on": 100 + 50, "off": 0} {
		t.Run(option, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local {\n denied_log "+option+"\n}")
			var lines bytes.Buffer
			stdlog.SetOutput(&lines)
			defer stdlog.SetOutput(os.Stderr)
			told := metrics(t)["denied_packets_total{refused}{output}{never_resolved}"]
			look := func() {
				t.Helper()
				if err := r.guard.denied.log.Look(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r.denyMany(300)
			look()
			r.advance(10 * time.Second)
			for i := range 100 {
				r.kernel.Deny(backend.Flow{Kind: backend.Kind{Hook: backend.Output}, Protocol: 17, User: 7, Addr: netip.MustParseAddr("192.0.2.1"), Port: uint16(1000 + i)}, backend.Count{Packets: 1, Bytes: 40})
			}
			look()
			if n := strings.Count(lines.String(), "Denied: chain=output "); n != want {
				t.Errorf("%d lines of 400 flows, want %d", n, want)
			}
			if n := metrics(t)["denied_packets_total{refused}{output}{never_resolved}"] - told; n != 400 {
				t.Errorf("%v packets are counted", n)
			}
		})
	}
}

func TestLogLine(t *testing.T) {
	got := logLine(&admin.Denied{
		Hook: "forward", Audit: true, Interface: "lan0", Client: netip.MustParseAddr("192.168.0.9"), Protocol: "tcp", Address: netip.MustParseAddr("192.0.2.1"), Port: 443,
		Reason: "expired", Text: `expired 12s ago, was a"b.test`, Name: `a"b.test`,
	}, backend.Count{Packets: 3, Bytes: 180})
	want := `Denied (audit: it has passed): chain=forward interface=lan0 client=192.168.0.9 protocol=tcp address=192.0.2.1 port=443 packets=3 bytes=180 reason=expired name="a\"b.test" why="expired 12s ago, was a\"b.test"`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = logLine(&admin.Denied{Hook: "output", User: "root", Unit: "/a b\n[ERROR] forged", Program: "x\n", Protocol: "icmp", Address: netip.MustParseAddr("192.0.2.1"), Reason: "never_resolved", Text: "never resolved here"}, backend.Count{})
	want = `Denied: chain=output user=root unit="/a b\n[ERROR] forged" program="x\n" protocol=icmp address=192.0.2.1 packets=0 bytes=0 reason=never_resolved why="never resolved here"`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
