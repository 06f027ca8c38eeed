package route

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// lacking is a router without one of the routes.
type lacking struct {
	*router
	route string
}

func (l lacking) Map(ctx context.Context, mappings []backend.Mapping, within time.Duration) error {
	for _, m := range mappings {
		if m.Route == l.route {
			return backend.ErrRoute
		}
	}
	return l.router.Map(ctx, mappings, within)
}

// What was in force is again, and a name whose route is gone is in nobody's way.
func TestRestore(t *testing.T) {
	d := newDesk(t)
	kept, gone := routed("kept", 2, "10.0.0.0/8"), routed("gone", 2, "10.0.0.0/8")
	d.ask(kept, "a.org", four)
	d.ask(gone, "b.org", "192.0.2.9")
	d.restart() // what was in force before is not known to be
	d.ask(kept, "c.org", four)
	d.ask(gone, "d.org", "192.0.2.9")
	d.router.mapped = make(map[netip.Addr]backend.Mapping)
	d.router.epoch.Add(1)
	d.Book.router = lacking{d.router, "gone"}
	if err := d.Restore(context.Background()); err != nil {
		t.Fatal(err)
	}
	maps := d.maps.Load()
	want := d.ask(kept, "c.org", four)
	if d.maps.Load() != maps {
		t.Error("a name that has been restored is mapped again")
	}
	if len(d.router.mapped) != 2 || want != "10.0.0.4 10.0.0.5" {
		t.Errorf("mapped: %v, and the name has %s", d.router.mapped, want)
	}
	d.ask(kept, "a.org", four)
	if d.maps.Load() != maps+1 {
		t.Error("a name that has not been restored is not mapped again")
	}
}
