package ipdestinationguard

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// connection is "from to", to port 443 unless it is said.
func connection(text string) backend.Connection {
	from, to, _ := strings.Cut(text, " ")
	if !strings.Contains(to, ":") {
		to += ":443"
	}
	return backend.Connection{Protocol: 6, From: netip.MustParseAddrPort(from + ":1000"), To: netip.MustParseAddrPort(to)}
}

// To cut ends what the query means, and spares what no grant has opened.
func TestCut(t *testing.T) {
	const own, directive = "192.168.0.1", `ipdestinationguard nft-both {
 allowedIPs 192.0.2.129
 allowedLocalIPs 192.0.2.145
 allowedGatewayIPs 192.0.2.161
}`
	spared := []string{
		"10.0.0.7 192.0.2.129", own + " 192.0.2.129", own + " 192.0.2.145", "10.0.0.7 192.0.2.161",
		own + " 192.0.2.53:53", "10.0.0.7 " + own, "127.0.0.1 127.0.0.1",
	}
	others := []string{"10.0.0.7 192.0.2.145", own + " 192.0.2.161", own + " 192.0.2.53:443", "10.0.0.7 192.0.2.53:53"}
	const a7, a9, b9, b0 = "10.0.0.7 192.0.2.1", "10.0.0.9 192.0.2.1", "10.0.0.9 192.0.2.2", own + " 192.0.2.2"
	for _, tt := range []struct {
		name  string
		query admin.GrantsQuery
		want  []string
	}{
		{"all", admin.GrantsQuery{}, append([]string{a7, a9, b9, b0}, others...)},
		{"of a name", admin.GrantsQuery{Name: "a.test"}, []string{a7, a9}},
		{"of an address", admin.GrantsQuery{Address: netip.MustParsePrefix("192.0.2.2/32")}, []string{b9, b0}},
		{"of a network", admin.GrantsQuery{Address: netip.MustParsePrefix("192.0.2.0/30")}, []string{a7, a9, b9, b0}},
		{"of a client", admin.GrantsQuery{Client: "10.0.0.9"}, []string{a9, b9}},
		{"of a name and a client", admin.GrantsQuery{Name: "a.test", Client: "10.0.0.9"}, []string{a9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, directive)
			r.guard.rules.Upstream = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")} // which forward asks
			r.network.own = map[netip.Addr]bool{netip.MustParseAddr(own): true}
			r.asked("10.0.0.7", "a.test. A", "a.test. 300 A 192.0.2.1")
			r.asked("10.0.0.9", "a.test. A", "a.test. 300 A 192.0.2.1")
			r.asked("10.0.0.9", "b.test. A", "b.test. 300 A 192.0.2.2")
			r.asked("127.0.0.1", "b.test. A", "b.test. 300 A 192.0.2.2")
			all := slices.Concat([]string{a7, a9, b9, b0}, spared, others)
			var live []backend.Connection
			for _, c := range all {
				live = append(live, connection(c))
			}
			request := admin.RevokeRequest{GrantsQuery: tt.query, All: tt.query == admin.GrantsQuery{}, Cut: true}

			// What cannot be cut now is revoked neither.
			r.kernel.Carry(true, live...)
			if n, err := r.administration().Revoke(t.Context(), request); !errors.Is(err, admin.ErrConflict) || n.Grants > 0 {
				t.Errorf("too young: %+v, %v", n, err)
			}
			if grants, err := r.administration().Grants(t.Context(), admin.GrantsQuery{}); len(grants.Grants) != 4 {
				t.Errorf("too young, %d grants are left: %v", len(grants.Grants), err)
			}

			r.kernel.Carry(false, live...)
			n, err := r.administration().Revoke(t.Context(), request)
			if err != nil || n.Grants == 0 || n.Connections != len(tt.want) {
				t.Errorf("%+v, %v", n, err)
			}
			left := r.kernel.Carried()
			for i, c := range live {
				if cut := !slices.Contains(left, c); cut != slices.Contains(tt.want, all[i]) {
					t.Errorf("%v is cut: %v", c, cut)
				}
			}
		})
	}
	r := newRig(t, directive)
	r.asked("127.0.0.1", "a.test. A", "a.test. 300 A 192.0.2.1")
	request := admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Client: "this machine"}, Cut: true}
	if n, err := r.administration().Revoke(t.Context(), request); !errors.Is(err, admin.ErrInvalid) || n.Grants > 0 {
		t.Errorf("of a client that is no address: %+v, %v", n, err)
	}
}
