// Package expiry knows how long a grant lasts and which grants are in force.
package expiry

import "time"

// Slack is added to what an answer needs, so that three clocks never have to
// agree to the millisecond: the DNS counts whole seconds (the same cached answer
// may ask for up to a second more than before), the kernel counts in ticks of
// some milliseconds, and the writer takes out what has run out before the kernel
// would.
const Slack = renewal + Removal

const (
	// renewal is how far a grant may be ahead of its answer, so that an answer
	// whose TTL never falls, as from a zone file, renews it ten times a second at
	// most.
	renewal = 100 * time.Millisecond

	// Removal is the time at the end of a grant's life in the kernel in which
	// it is no longer relied upon: the writer has that long to remove it. Only
	// where there is no writer any more does a grant last to its end.
	Removal = 400 * time.Millisecond
)

// Lease turns TTLs into durations. Ceiling must not be below Floor or one
// second, Margin must not be negative.
type Lease struct {
	Floor   time.Duration // the least that a TTL counts for
	Ceiling time.Duration // the most that a TTL counts for
	Margin  time.Duration // added to every TTL
}

// Need is what must be left of a grant for an answer with this TTL to be passed
// on without renewing it: TTL + Margin. A TTL at or above the ceiling cannot
// have slack, since no grant outlives Ceiling + Margin, so it needs Slack less.
//
// TTLs are unsigned; one with the high bit set is large, not negative
// (RFC 8767, section 4).
func (l Lease) Need(ttl uint32) time.Duration {
	return min(seconds(ttl)+l.Margin, l.longest()-Slack)
}

// Life is how long a grant made for an answer with this TTL stays in the
// kernel: the TTL between Floor and Ceiling, plus Margin, plus Slack, and never
// more than Ceiling + Margin.
func (l Lease) Life(ttl uint32) time.Duration {
	return min(max(seconds(ttl), l.Floor)+l.Margin+Slack, l.longest())
}

func (l Lease) longest() time.Duration { return l.Ceiling + l.Margin }

func seconds(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }
