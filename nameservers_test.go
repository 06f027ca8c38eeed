package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
)

// What is open to CoreDNS is what the Corefile says, and what sentinels forward to now.
func TestNameserversAreOpen(t *testing.T) {
	open := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:853")}
	var none *nameservers
	if got := fmt.Sprint(none.with(open)); got != "[192.0.2.9:853]" {
		t.Errorf("without upstream sentinel: %s", got)
	}
	n := &nameservers{by: map[*dnsserver.Config][]netip.AddrPort{}}
	if got := fmt.Sprint(n.with(nil)); got != "[192.0.2.53:53]" {
		t.Errorf("before any is known, %s stands for them", got)
	}
	one, two := new(dnsserver.Config), new(dnsserver.Config)
	for _, step := range []struct {
		block *dnsserver.Config
		list  string
		fresh bool
		open  string
	}{
		{one, "10.0.0.2:53", true, "[10.0.0.2:53 192.0.2.9:853]"},
		{one, "10.0.0.2:53", false, "[10.0.0.2:53 192.0.2.9:853]"},
		{two, "10.0.0.2:53", true, "[10.0.0.2:53 192.0.2.9:853]"},
		{two, "10.0.0.1:53", true, "[10.0.0.1:53 10.0.0.2:53 192.0.2.9:853]"},
		{one, "192.0.2.9:853", true, "[10.0.0.1:53 192.0.2.9:853]"},
		{two, "", true, "[192.0.2.9:853]"},
	} {
		var list []netip.AddrPort
		if step.list != "" {
			list = append(list, netip.MustParseAddrPort(step.list))
		}
		if fresh := n.set(step.block, list); fresh != step.fresh {
			t.Errorf("%s is new: %v", step.list, fresh)
		}
		if got := fmt.Sprint(n.with(open)); got != step.open {
			t.Errorf("after %s: open is %s, want %s", step.list, got, step.open)
		}
	}
	if fmt.Sprint(open) != "[192.0.2.9:853]" {
		t.Errorf("what the Corefile says is changed: %v", open)
	}
}
