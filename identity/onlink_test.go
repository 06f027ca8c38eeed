package identity

import (
	"fmt"
	"net/netip"
	"testing"
)

// The machine's own wires are known, follow its addresses, and are told of.
func TestOnLink(t *testing.T) {
	a, _ := newPair(t)
	w := watch(t, a)
	lists := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return fmt.Sprint(w.OnLink()) == want })
	}
	linkLocal := netip.MustParsePrefix("fe80::/64")
	lists("[192.0.2.0/24 2001:db8::/64 " + linkLocal.String() + "]")
	for len(w.Changed()) > 0 {
		<-w.Changed()
	}
	must(t, a.Addr("eth0", "198.51.100.1/25"), a.Addr("eth0", "203.0.113.1/32"), a.Addr("eth0", "192.0.2.7/24"))
	<-w.Changed()
	lists("[192.0.2.0/24 198.51.100.0/25 2001:db8::/64 " + linkLocal.String() + "]")
	w.Close()
	for range w.Changed() { // it ends
	}
}
