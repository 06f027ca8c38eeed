package ipdestinationguard

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// cuts are connections to end because a name has got other addresses: its mapped ones, and
// where they may lead. A visit to all of the kernel's connections takes long if there are
// many, so it is one for all that comes meanwhile.
type cuts struct {
	mu   sync.Mutex
	want map[netip.Addr][]netip.Addr // by mapped address, of which there are only so many
	some chan struct{}
}

func newCuts() *cuts { return &cuts{some: make(chan struct{}, 1)} }

const (
	cutPause = 100 * time.Millisecond // between two visits
	cutAgain = time.Second            // after one that has failed
)

// add has connections end that go by these mapped addresses to other than the real ones.
func (c *cuts) add(mapped, real []netip.Addr) {
	c.mu.Lock()
	if c.want == nil {
		c.want = make(map[netip.Addr][]netip.Addr)
	}
	for _, addr := range mapped {
		c.want[addr] = real
	}
	c.mu.Unlock()
	select {
	case c.some <- struct{}{}:
	default:
	}
}

// take returns what is to be done, and leaves nothing.
func (c *cuts) take() map[netip.Addr][]netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	want := c.want
	c.want = nil
	return want
}

// again puts back what could not be done, unless there is newer.
func (c *cuts) again(want map[netip.Addr][]netip.Addr) {
	for addr, real := range want {
		c.mu.Lock()
		_, newer := c.want[addr]
		c.mu.Unlock()
		if !newer {
			c.add([]netip.Addr{addr}, real)
		}
	}
}

// run ends connections until ctx ends.
func (c *cuts) run(ctx context.Context, router backend.Router) {
	for {
		select {
		case <-c.some:
		case <-ctx.Done():
			return
		}
		pause := cutPause
		if err := c.do(ctx, router); err != nil && ctx.Err() == nil {
			kernelErrors.WithLabelValues("cut").Inc()
			log.Errorf("Connections to addresses that their names no longer have (on_change cut) go on: %v. It is tried again", err)
			pause = cutAgain
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (c *cuts) do(ctx context.Context, router backend.Router) error {
	want := c.take()
	if len(want) == 0 {
		return nil
	}
	ended := 0
	err := router.Connections(ctx, func(mapped, real netip.Addr) bool {
		may, ok := want[mapped]
		end := ok && !slices.Contains(may, real)
		if end {
			ended++
		}
		return end
	})
	connectionsCut.Add(float64(ended))
	if err != nil {
		c.again(want)
	}
	return err
}
