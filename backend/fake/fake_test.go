package fake

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) (backend.Backend, *backend.InForce) {
		inForce := expiry.NewTable[backend.Key](time.Now())
		return New(inForce, backendtest.Quiet{}, time.Now), inForce
	})
}

func TestRouterContract(t *testing.T) {
	backendtest.RunRouter(t, func(*testing.T) (backend.Backend, *backend.InForce, func() map[netip.Addr]backend.Mapping) {
		inForce := expiry.NewTable[backend.Key](time.Now())
		b := New(inForce, backendtest.Quiet{}, time.Now)
		return b, inForce, func() map[netip.Addr]backend.Mapping {
			all := map[netip.Addr]backend.Mapping{}
			for _, m := range b.Mappings() {
				all[m.Mapped] = m
			}
			return all
		}
	})
}

// clock is a time that only the test moves.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func opened(t *testing.T) (b *Backend, at *clock) {
	t.Helper()
	at = &clock{time.Unix(1e9, 0)}
	b = New(expiry.NewTable[backend.Key](at.Time), backendtest.Quiet{}, at.now)
	err := b.Open(backend.Rules{
		Table: "ours", Local: true, Gateway: true, LocalHolders: []backend.Holder{backend.Everyone, backend.Machine}, Interfaces: []string{"lan0"}, MaxGrants: 10,
		Allowed:        []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		AllowedLocal:   []netip.Prefix{netip.MustParsePrefix("9.9.9.9/32")},
		AllowedGateway: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, at
}

func TestString(t *testing.T) {
	b, at := opened(t)
	err := b.Grant(t.Context(), []backend.Grant{
		{Addr: netip.MustParseAddr("2001:db8::1"), Until: at.Add(time.Minute)},
		{Addr: netip.MustParseAddr("198.51.100.1"), Until: at.Add(90 * time.Second)},
		{Addr: netip.MustParseAddr("198.51.100.2"), Until: at.Add(time.Second)},
	}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	at.Time = at.Add(2 * time.Second)
	want, err := os.ReadFile("testdata/listing.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := b.Close(backend.Remove); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != "nothing is guarded\n" {
		t.Errorf("after Close(Remove):\n%s", got)
	}
}

// What the test says is denied is counted, and forgotten flow by flow after two minutes.
func TestDeny(t *testing.T) {
	b, at := opened(t)
	audited := backend.Flow{Kind: backend.Kind{Hook: backend.Forward, Audited: true}, Protocol: 6, Addr: netip.MustParseAddr("198.51.100.1"), Port: 443}
	flow := audited
	flow.Audited = false
	for range 3 {
		b.Deny(flow, backend.Count{Packets: 1, Bytes: 60})
		at.Time = at.Add(time.Minute)
	}
	b.Deny(audited, backend.Count{Packets: 2, Bytes: 80})
	b.DenyUnlisted(flow.Kind, backend.Count{Packets: 5, Bytes: 100})
	counted := func() (all map[backend.Flow]backend.Count) {
		all = map[backend.Flow]backend.Count{}
		if err := b.Denied(t.Context(), func(d backend.Denial) { all[d.Flow] = d.Count }); err != nil {
			t.Error(err)
		}
		return all
	}
	if got := counted(); len(got) != 2 || got[flow] != (backend.Count{Packets: 3, Bytes: 180}) || got[audited] != (backend.Count{Packets: 2, Bytes: 80}) {
		t.Error(got)
	}
	at.Time = at.Add(time.Minute)
	if got := counted(); len(got) != 1 || got[audited].Packets != 2 {
		t.Errorf("later: %v", got)
	}
	tallies, err := b.Tallies(t.Context())
	want := backend.Tally{Refused: backend.Count{Packets: 8, Bytes: 280}, Audited: backend.Count{Packets: 2, Bytes: 80}, Unlisted: backend.Count{Packets: 5, Bytes: 100}}
	if err != nil || tallies != [backend.Hooks]backend.Tally{backend.Forward: want} {
		t.Errorf("%v (%v)", tallies, err)
	}
}

func TestRefuseAndStall(t *testing.T) {
	b, at := opened(t)
	grants := []backend.Grant{{Addr: netip.MustParseAddr("198.51.100.1"), Until: at.Add(time.Minute)}}
	no := errors.New("no")

	b.Refuse(no)
	if err := b.Grant(t.Context(), grants, time.Minute); err != no {
		t.Errorf("a grant that is refused: %v", err)
	}
	b.Refuse(nil)

	release := b.Stall()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(no)
	if err := b.Grant(ctx, grants, time.Minute); err != no || b.Transactions() != 0 {
		t.Errorf("a grant that nobody waits for any more: %v, after %d transactions", err, b.Transactions())
	}
	done := make(chan error)
	go func() { done <- b.Grant(t.Context(), grants, time.Minute) }()
	release()
	if err := <-done; err != nil || b.Transactions() != 1 {
		t.Errorf("a grant that was stalled: %v, after %d transactions", err, b.Transactions())
	}
}

// A test makes connections, and ends mappings behind everybody's back.
func TestRoutes(t *testing.T) {
	b, _ := opened(t)
	r := backendtest.RoutedRules()
	r.Table = "ours"
	if err := b.Open(r); err != nil {
		t.Fatal(err)
	}
	m := backendtest.Mappings("r-two", 0, 1, 0)[0]
	if got := b.Connect(m.Mapped); got.IsValid() {
		t.Errorf("connected to %v", got)
	}
	if err := b.Map(t.Context(), []backend.Mapping{m}, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\troutes r-two, 100.96.0.0/11, fd00:2021:1111:8000::/107, out lan9, fwmark 7\n", "\tmaps 100.96.0.0 to 10.0.0.0 by r-two\n",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %q in\n%s", line, b)
		}
	}
	if got := b.Connect(m.Mapped); got != m.Real {
		t.Errorf("connected to %v", got)
	}
	other := m
	other.Real = m.Real.Next()
	if err := b.Map(t.Context(), []backend.Mapping{other}, time.Minute); err != nil {
		t.Fatal(err)
	}
	b.Connect(m.Mapped)
	if got := b.Connected(m.Mapped); !slices.Equal(got, []netip.Addr{m.Real, other.Real}) {
		t.Errorf("connected to %v", got)
	}
	if err := b.Connections(t.Context(), func(_, real netip.Addr) bool { return real == m.Real }); err != nil {
		t.Fatal(err)
	}
	if got := b.Connected(m.Mapped); !slices.Equal(got, []netip.Addr{other.Real}) {
		t.Errorf("connected to %v", got)
	}
	epoch := b.Epoch()
	b.Lose()
	if len(b.Mappings()) > 0 || b.Epoch() == epoch {
		t.Errorf("%v, epoch %d", b.Mappings(), b.Epoch())
	}
	no := errors.New("no")
	b.Refuse(no)
	if err := b.Map(t.Context(), []backend.Mapping{m}, time.Minute); err != no {
		t.Errorf("a mapping that is refused: %v", err)
	}
}
