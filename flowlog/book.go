package flowlog

import (
	"fmt"
	"math"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A Flow is what has become of a flow since it was first seen.
type Flow struct {
	backend.Flow
	backend.Count           // as the kernel counts; until that is read, what it has shown
	First         time.Time // when it was first seen
	Last          time.Time // when its last packet came
	Packet        Packet    // the last one that was shown; nothing where none was
}

// String is a line for people.
func (f Flow) String() string {
	return fmt.Sprintf("%v: %d packets, %d bytes", f.Flow, f.Packets, f.Bytes)
}

// An Event tells of a flow.
type Event struct {
	Flow
	Begins bool          // it has not been told of before
	New    backend.Count // since it was told of last
}

const (
	// mostFlows bounds the book. An entry takes half a kilobyte.
	mostFlows = 8192

	// tellEvery is how often a flow is told of that goes on.
	tellEvery = time.Minute

	// What is told in a second, and at once. The rest is in the book only.
	toldPerSecond, toldAtOnce = 50, 500
)

// A book has the flows that were seen lately. When it is full, the one that was seen least
// recently makes room; but what is read of the kernel's lists pushes out nothing that these
// have, too, unless it is louder. A flood would do that with itself.
type book struct {
	flows          map[backend.Flow]*entry
	newest, oldest *entry // by when they were seen

	began    time.Time // what was listed before is not told of: an earlier process has done that
	look     int       // how often the kernel's lists have been read
	lookedAt time.Time // when they were all read
	knownAt  time.Time // until when it is known that nothing else has come

	credit   float64 // for events
	creditAt time.Time

	missing time.Time // when the last packet came of one that there is no room for
	unkept  uint64    // flows that there was no room for
	untold  uint64    // events that there were too many of
}

type entry struct {
	Flow
	newer, older *entry

	counted backend.Count // by the kernel, as was read last
	look    int           // since which it is known to be in the kernel's lists
	told    backend.Count
	toldAt  time.Time // when it was told of, or would have been
	begun   bool      // it was told of
}

func newBook(now time.Time) *book {
	return &book{flows: make(map[backend.Flow]*entry), began: now, credit: toldAtOnce, creditAt: now}
}

// begin begins to read the kernel's lists.
func (b *book) begin() { b.look++ }

// end is when all of them have been read that stood there at that time.
func (b *book) end(at time.Time) { b.lookedAt, b.knownAt = at, at }

// quiet is when nothing has come since they were read.
func (b *book) quiet(at time.Time) { b.knownAt = at }

// listed enters what the kernel has counted of a flow, and returns the event that it is
// time for.
func (b *book) listed(d *backend.Denial, now time.Time) (Event, bool) {
	e := b.flows[d.Flow]
	if e == nil {
		const clock = 20 * time.Millisecond // how far the kernel's may be from ours
		if d.Last.Before(b.lookedAt.Add(-clock)) {
			return Event{}, false // nothing new of one that had to make room
		}
		if e = b.enter(d.Flow, d.Packets); e == nil {
			b.miss(d.Last)
			return Event{}, false
		}
		e.First = d.Last
	}
	e.look = b.look
	since := e.counted
	if forgotten(e, d, b.knownAt) {
		since = backend.Count{}
	}
	if d.Packets == since.Packets {
		return Event{}, false
	}
	seen, first := e.Count, e.counted.Packets == 0
	if first {
		e.Count = backend.Count{} // what was shown of it
	}
	e.Packets += d.Packets - since.Packets
	e.Bytes += d.Bytes - since.Bytes
	e.Last, e.counted = d.Last, d.Count
	if e.Last.Before(e.First) { // what is shown comes late
		e.First = e.Last
	}
	if first && b.lookedAt.IsZero() && (seen.Packets > 0 || d.Last.Before(b.began)) { // all but what was shown
		e.told.Packets += e.Packets - min(seen.Packets, e.Packets)
		e.told.Bytes += e.Bytes - min(seen.Bytes, e.Bytes)
	}
	b.see(e)
	return b.tell(e, now)
}

// forgotten reports whether the kernel has forgotten the flow, and begun to count anew. It
// has if nothing came for as long as it remembers a flow. If somewhat more came than
// before, and all of it after the last look, that cannot be told from a flow that went on.
func forgotten(e *entry, d *backend.Denial, knownAt time.Time) bool {
	return d.Packets < e.counted.Packets || d.Bytes < e.counted.Bytes ||
		e.counted.Packets > 0 && knownAt.After(e.Last.Add(backend.ListedFor))
}

// shown enters a packet that the kernel has shown.
func (b *book) shown(s *shown, now time.Time) (Event, bool) {
	e := b.flows[s.Flow]
	if e == nil {
		e = b.enter(s.Flow, math.MaxUint64)
		e.First = now
	}
	e.Packet, e.look = s.Packet, b.look
	if e.counted.Packets == 0 {
		e.Packets++
		e.Bytes += uint64(s.Length)
		e.Last = now
	}
	b.see(e)
	return b.tell(e, now)
}

// enter makes an entry, or returns nil if there is no room for a flow of so many packets.
func (b *book) enter(f backend.Flow, packets uint64) *entry {
	if len(b.flows) >= mostFlows {
		if b.oldest.look >= b.look-1 && b.oldest.Packets >= packets {
			b.unkept++
			return nil
		}
		b.miss(b.oldest.Last)
		delete(b.flows, b.oldest.Flow.Flow)
		b.unlink(b.oldest)
	}
	e := &entry{Flow: Flow{Flow: f}}
	b.flows[f] = e
	b.link(e)
	return e
}

// miss notes that a flow is not in the book, and when its last packet came.
func (b *book) miss(last time.Time) {
	if last.After(b.missing) {
		b.missing = last
	}
}

// see makes e the newest.
func (b *book) see(e *entry) {
	b.unlink(e)
	b.link(e)
}

func (b *book) link(e *entry) {
	e.newer, e.older = nil, b.newest
	if b.newest != nil {
		b.newest.newer = e
	} else {
		b.oldest = e
	}
	b.newest = e
}

func (b *book) unlink(e *entry) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		b.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		b.oldest = e.newer
	}
}

// tell makes an event if it is time for one: at once of a flow that begins, then every
// minute of one that goes on. Where there are too many, each waits a minute.
func (b *book) tell(e *entry, now time.Time) (Event, bool) {
	if !e.toldAt.IsZero() && now.Sub(e.toldAt) < tellEvery || e.Packets <= e.told.Packets {
		return Event{}, false
	}
	b.credit = min(b.credit+now.Sub(b.creditAt).Seconds()*toldPerSecond, toldAtOnce)
	b.creditAt = now
	e.toldAt = now
	if b.credit < 1 {
		b.untold++
		return Event{}, false
	}
	b.credit--
	event := Event{Flow: e.Flow, Begins: !e.begun, New: backend.Count{Packets: e.Packets - e.told.Packets, Bytes: e.Bytes - e.told.Bytes}}
	e.told, e.begun = e.Count, true
	return event, true
}

// all returns the flows, the one that was seen last first.
func (b *book) all() []Flow {
	flows := make([]Flow, 0, len(b.flows))
	for e := b.newest; e != nil; e = e.older {
		flows = append(flows, e.Flow)
	}
	return flows
}
