package ipdestinationguard

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// What a route with a way out refuses is told of by the mapped address and the name, and
// foreseen: the kernel is asked as for the packet that would go out.
func TestStray(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-both\naudit\nroute **.routed.test {\nout wg0\nfwmark 7\n}\n}")
	r.wantText(r.at("127.0.0.1").ask("www.routed.test. A", wwwAnswer), wwwMapped)
	mapped := netip.MustParseAddr("100.96.0.1")

	const only = "mapped address of www.routed.test: its route leaves by wg0 only, and "
	const because = ": wg0 is down, or no ip rule for the mark 7 leads there"
	for _, tt := range []struct {
		name, out string
		err       error
		reason    string
		text      string
	}{
		{"another", "eth0", nil, "no_way", only + "the kernel's way is by eth0" + because},
		{"none", "", nil, "no_way", only + "the kernel has none" + because},
		{"its own", "wg0", nil, "granted", ""},
		{"not known", "", errors.New("no"), "granted", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.guard.host.leaves = func(p identity.Packet) (string, error) {
				if p != (identity.Packet{To: netip.MustParseAddr("9.9.9.9"), Mark: 7}) {
					t.Errorf("asked for the way of %+v", p)
				}
				return tt.out, tt.err
			}
			e, err := r.administration().Explain(t.Context(), admin.ExplainQuery{Address: mapped, User: "0"})
			if err != nil {
				t.Fatal(err)
			}
			v, passes := e.Addresses[0].Verdicts[0], tt.reason == "granted"
			if v.Reason != tt.reason || v.Passes != passes || v.Refused == passes || tt.text != "" && v.Text != tt.text {
				t.Errorf("%+v\nwant %s: %s", v, tt.reason, tt.text)
			}
		})
	}

	flow := backend.Flow{Kind: backend.Kind{Hook: backend.Forward, Bound: true}, Protocol: 6, Interface: 4_000_000, Client: netip.MustParseAddr("10.0.0.1"), Addr: mapped, Port: 443}
	if d := r.deny(flow); d.Reason != "no_way" || d.Text != only+"the kernel's way was another"+because || d.Name != "www.routed.test" {
		t.Errorf("%+v", d)
	}
	flow.Addr = netip.MustParseAddr("100.96.0.2") // which was somebody's
	if d := r.deny(flow); d.Reason != "no_way" || d.Name != "" || d.Text == "" {
		t.Errorf("%+v", d)
	}
	// What is refused for something else, and would pass now, is not said to have strayed.
	flow.Addr, flow.Bound, flow.Hook, flow.Client = mapped, false, backend.Output, netip.Addr{}
	r.guard.host.leaves = func(identity.Packet) (string, error) { return "eth0", nil }
	if d := r.deny(flow); d.Reason != "changed" {
		t.Errorf("%+v", d)
	}
}

// Where a mapped address leads to this machine itself, that is foreseen, and told of by the mapped
// address and the name.
func TestMappedToOwnAddress(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-both\nroute **.routed.test\n}")
	r.wantText(r.at("127.0.0.1").ask("www.routed.test. A", wwwAnswer), wwwMapped)
	mapped := netip.MustParseAddr("100.96.0.1")
	r.guard.own = func(a netip.Addr) bool { return a == netip.MustParseAddr("9.9.9.9") } // since then
	const text = "mapped address of www.routed.test: its real address is this machine's own, which no route leads to"
	e, err := r.administration().Explain(t.Context(), admin.ExplainQuery{Address: mapped, User: "0"})
	if err != nil {
		t.Fatal(err)
	}
	if v := e.Addresses[0].Verdicts[0]; v.Passes || v.Reason != "own_address" || v.Text != text {
		t.Errorf("%+v", v)
	}
	flow := backend.Flow{Kind: backend.Kind{Hook: backend.Output}, Protocol: 6, User: 7, Addr: mapped, Port: 443}
	if d := r.deny(flow); d.Reason != "own_address" || d.Text != text || d.Name != "www.routed.test" {
		t.Errorf("%+v", d)
	}
}
