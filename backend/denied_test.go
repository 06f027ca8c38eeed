package backend

import (
	"net/netip"
	"slices"
	"testing"
)

func TestKinds(t *testing.T) {
	var names []string
	for _, k := range Kinds {
		names = append(names, k.String())
	}
	want := []string{
		"denied-output", "denied-output-invalid", "audited-output", "audited-output-invalid", "denied-output-bound",
		"denied-forward", "denied-forward-invalid", "audited-forward", "audited-forward-invalid", "denied-forward-bound",
	}
	if !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	if got := (Kind{Hook: Hooks}).String(); got != "denied-hook 2" {
		t.Errorf("none of them: %q", got)
	}
}

func TestFlowString(t *testing.T) {
	addr, client := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fd00::2")
	for want, f := range map[string]Flow{
		"denied-output: user 1000 to 2001:db8::1, tcp/443":                     {User: 1000, Protocol: 6, Addr: addr, Port: 443},
		"audited-output: the kernel to 2001:db8::1, icmpv6":                    {Kind: Kind{Audited: true}, User: NoUser, Protocol: 58, Addr: addr},
		"denied-forward: fd00::2 at interface 3 to 2001:db8::1, 253/0":         {Kind: Kind{Hook: Forward}, Interface: 3, Client: client, Protocol: 253, Addr: addr},
		"denied-forward-invalid: fd00::2 at interface 3 to 2001:db8::1, udp/9": {Kind: Kind{Hook: Forward, Invalid: true}, Interface: 3, Client: client, Protocol: 17, Addr: addr, Port: 9},
	} {
		if got := f.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
