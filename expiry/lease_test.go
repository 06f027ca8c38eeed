package expiry

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestLease(t *testing.T) {
	const s, h = time.Second, time.Hour
	defaults := Lease{Floor: 60 * s, Ceiling: 24 * h, Margin: 30 * s}
	bare := Lease{Floor: 0, Ceiling: s, Margin: 0}
	same := Lease{Floor: 10 * s, Ceiling: 10 * s, Margin: s}
	tests := []struct {
		name       string
		lease      Lease
		ttl        uint32
		need, life time.Duration
	}{
		{"0", defaults, 0, 30 * s, 90*s + Slack},
		{"1", defaults, 1, 31 * s, 90*s + Slack},
		{"under the floor", defaults, 59, 89 * s, 90*s + Slack},
		{"at the floor", defaults, 60, 90 * s, 90*s + Slack},
		{"over the floor", defaults, 61, 91 * s, 91*s + Slack},
		{"under the ceiling", defaults, 86399, 86429 * s, 86429*s + Slack},
		{"at the ceiling", defaults, 86400, 86430*s - Slack, 86430 * s},
		{"over the ceiling", defaults, 86401, 86430*s - Slack, 86430 * s},
		{"2^31-1", defaults, math.MaxInt32, 86430*s - Slack, 86430 * s},
		{"2^31", defaults, math.MaxInt32 + 1, 86430*s - Slack, 86430 * s},
		{"2^32-1", defaults, math.MaxUint32, 86430*s - Slack, 86430 * s},

		{"the smallest lease, 0", bare, 0, 0, Slack},
		{"the smallest lease, 1", bare, 1, s - Slack, s},
		{"the smallest lease, 2^32-1", bare, math.MaxUint32, s - Slack, s},

		{"floor = ceiling, 0", same, 0, s, 11 * s},
		{"floor = ceiling, 10", same, 10, 11*s - Slack, 11 * s},
		{"floor = ceiling, 2^32-1", same, math.MaxUint32, 11*s - Slack, 11 * s},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.lease.Need(tt.ttl); got != tt.need {
				t.Errorf("needs %v, want %v", got, tt.need)
			}
			if got := tt.lease.Life(tt.ttl); got != tt.life {
				t.Errorf("lives %v, want %v", got, tt.life)
			}
		})
	}
}

// What holds for every lease and TTL.
func TestLeaseInvariants(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d) + 1)) }
	for range 200_000 {
		l := Lease{Ceiling: time.Second + upTo(366*24*time.Hour), Margin: upTo(366 * 24 * time.Hour)}
		l.Floor = upTo(l.Ceiling)
		ttl := random.Uint32() >> random.IntN(32)
		asked := time.Duration(ttl) * time.Second
		need, life := l.Need(ttl), l.Life(ttl)
		switch {
		case life > l.Ceiling+l.Margin:
			t.Fatalf("%+v, TTL %d: lives %v, past the ceiling", l, ttl, life)
		case life < l.Floor+l.Margin:
			t.Fatalf("%+v, TTL %d: lives %v, under the floor", l, ttl, life)
		case asked <= l.Ceiling && life < asked+l.Margin:
			t.Fatalf("%+v, TTL %d: lives %v, shorter than it was answered", l, ttl, life)
		case asked <= l.Ceiling-Slack && need != asked+l.Margin:
			t.Fatalf("%+v, TTL %d: needs %v, not the TTL and the margin", l, ttl, need)
		case need < 0 || life-need < Slack:
			t.Fatalf("%+v, TTL %d: needs %v of a life of %v", l, ttl, need, life)
		}
	}
}
