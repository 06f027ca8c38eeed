package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// Of a mapped address it is said where it leads, and how what goes there leaves; and that it
// is refused, whatever is granted, once its route is another one or another book has its pool.
func TestWhereMappedAddressesLead(t *testing.T) {
	const options = "egress 192.0.2.7\n out wg0\n fwmark 7"
	directive := func(names, options string) string {
		return "ipdestinationguard {\n mode nft-local\n route " + names + " {\n" + options + "\n }\n}"
	}
	for _, tt := range []struct {
		name, before, after string
		want, then          string
	}{
		{"all that a route can say", directive("**.routed.test", options), "",
			"leads to 9.9.9.9, leaves as 192.0.2.7 by wg0, mark 0x7 (route at Testfile:3); true granted", ""},
		{"nothing", directive("**.routed.test", ""), "", "leads to 9.9.9.9, leaves with the address that it is sent with (route at Testfile:3); true granted", ""},
		{"masquerade", directive("**.routed.test", "egress masquerade"), "", "leads to 9.9.9.9, leaves with the address of its interface (route at Testfile:3); true granted", ""},
		{"it leaves another way", directive("**.routed.test", ""), directive("**.routed.test", "fwmark 7"),
			"", "leads to 9.9.9.9, leaves with the address that it is sent with, mark 0x7 (route at Testfile:3); true granted"},
		{"its route has gone", directive("**.routed.test", ""), directive("**.other.test", options), "", "leads nowhere now; false unassigned"},
		{"another book", directive("**.routed.test", ""), directive("**.routed.test", "state "+filepath.Join(t.TempDir(), "other.db")), "", "leads nowhere now; false unassigned"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.before)
			r.asked("127.0.0.1", "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9")
			check := func(when, want string) {
				t.Helper()
				e, err := r.administration().Explain(t.Context(), admin.ExplainQuery{Address: netip.MustParseAddr("100.96.0.1")})
				if err != nil {
					t.Fatal(err)
				}
				x := e.Addresses[0]
				if got := fmt.Sprintf("%s; %v %s", x.Mapped.Text, x.Verdicts[0].Passes, x.Verdicts[0].Reason); want != "" && got != want {
					t.Errorf("%s: %s\nwant %s", when, got, want)
				}
			}
			check("at first", tt.want)
			if tt.after != "" {
				r.arm(tt.after)
				check("after the reload", tt.then)
			}
		})
	}
}
