package nft

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

func everyGrant(backend.Grant) bool { return true }

func (n *network) revoke(which func(backend.Grant) bool) (revoked int) {
	n.Helper()
	revoked, err := n.Revoke(n.Context(), which)
	if err != nil {
		n.Fatal(err)
	}
	return revoked
}

// endArming ends the time in which connections older than the guard may go on.
func (n *network) endArming() {
	n.Helper()
	n.flush(setArming)
}

// What is revoked is refused, in every set that could open it; what is live goes on,
// unless it is cut.
func TestRevokeAndCut(t *testing.T) {
	const away, stays, live = 51, 52, 53
	n, _, users, inUnit := lingering(t, time.Hour, away, stays, live)
	units := append(to(200+away, 443), to(300+away, 443)...)
	for _, u := range users {
		n.reaches(u.Host, true, "tcp", append(n.addrs(u, away), n.addrs(u, stays)...)...)
	}
	n.reaches(inUnit, true, "udp", units...)
	conn, err := n.client.Dial(t.Context(), "tcp", to(live, 443)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echo(conn); err != nil {
		t.Fatal(err)
	}

	var gone []netip.Addr
	for _, number := range []int{away, live, 100 + away, 200 + away, 300 + away} {
		v4, v6 := addrs(number)
		gone = append(gone, v4, v6)
	}
	n.revoke(func(g backend.Grant) bool { return slices.Contains(gone, g.Addr) })
	for _, u := range users {
		n.reaches(u.Host, false, "udp", n.addrs(u, away)...)
		n.reaches(u.Host, true, "udp", n.addrs(u, stays)...)
	}
	n.reaches(inUnit, false, "tcp", units...)
	n.reaches(n.client, false, "udp", to(live, 443)...)
	if err := echo(conn); err != nil {
		t.Errorf("a live connection was cut: %v", err)
	}

	cut := func() int {
		c, err := n.Cut(t.Context(), func(c backend.Connection) bool {
			if !c.From.IsValid() || !c.To.IsValid() {
				t.Errorf("seen: %v", c)
			}
			return c.Protocol == 6 && c.To.String() == to(live, 443)[0] && c.From.Addr().String() == client4
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := n.Cut(t.Context(), func(backend.Connection) bool { return true }); !errors.Is(err, backend.ErrYoung) || !errors.Is(n.Cuts(), backend.ErrYoung) {
		t.Errorf("cut, while older connections go on: %v", err)
	}
	n.endArming()
	if c := cut(); c != 1 {
		t.Errorf("%d connections were cut, want 1", c)
	}
	if err := echo(conn); err == nil {
		t.Error("the connection goes on")
	}
	if c := cut(); c != 0 {
		t.Errorf("%d connections were cut, and there is none", c)
	}
}

// What an earlier process has left is revoked although it has not been read yet, and does
// not come back when it has.
func TestRevokeWhatIsLeft(t *testing.T) {
	r := backendtest.Rules()
	before := openBackend(t)
	before.grant(time.Now().Add(time.Hour), 0, 20_000)
	if err := before.Close(backend.Keep); err != nil {
		t.Fatal(err)
	}
	g := open(t, observed, r)
	if _, err := g.Revoke(t.Context(), everyGrant); err != nil {
		t.Fatal(err)
	}
	backendtest.Eventually(t, "all has been read", func() bool { return g.adopting.Load() == 0 })
	if left := len(g.inKernel()); left > 0 {
		t.Errorf("%d grants are left", left)
	}
	for k := range g.inForce.All() {
		t.Fatalf("%v is relied upon", k.Addr())
	}
}
