// Package flowlog follows what is denied, flow by flow, and tells of each flow when it
// begins, and every minute while it goes on.
package flowlog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// An Observer hears of what is denied. Its methods are called one at a time, and must not
// block.
type Observer interface {
	// Denied: a flow begins, or goes on. There are some 50 events in a second at most.
	Denied(Event)

	// Failed: the operation op has failed: "look", which is tried again, or "listen", which
	// leaves it to looking.
	Failed(op string, err error)
}

// Log follows what is denied. The kernel shows some packets as they come, and counts all
// of them: what it shows is for being told at once, what it counts is the truth.
type Log struct {
	denials backend.Denials
	events  Observer
	now     func() time.Time

	cancel  context.CancelFunc
	looking sync.WaitGroup

	turn sync.Mutex // one look at a time

	listening sync.Mutex // guards what follows
	group     *group
	number    uint16
	hearing   sync.WaitGroup
	closed    bool

	telling sync.Mutex // one event at a time; taken before mu

	mu      sync.Mutex // guards what follows
	book    *book
	raw     [backend.Hooks]backend.Tally // as was read last
	tallies [backend.Hooks]backend.Tally
	lost    uint64
	failing map[string]bool
}

const (
	// lookEvery is how often the kernel is asked how much it has denied. Where that is
	// more than before, its lists are read; that may take one part in lookShare of the
	// time at most. Lists have to be read before what they hold is forgotten.
	lookEvery = 2 * time.Second
	lookShare = 50
	lookLate  = backend.ListedFor / 3
)

// New starts to follow what is counted.
func New(denials backend.Denials, events Observer, now func() time.Time) *Log {
	l := newLog(denials, events, now)
	l.follow()
	return l
}

func newLog(denials backend.Denials, events Observer, now func() time.Time) *Log {
	return &Log{denials: denials, events: events, now: now, cancel: func() {}, book: newBook(now()), failing: map[string]bool{}}
}

// follow begins to look now and then.
func (l *Log) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.looking.Go(func() { l.run(ctx) })
}

// run looks until there is an end to it.
func (l *Log) run(ctx context.Context) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		began := l.now()
		err := l.look(ctx, false)
		if ctx.Err() != nil {
			return
		}
		l.succeeded("look", err)
		wait.Reset(min(max(lookEvery, lookShare*l.now().Sub(began)), lookLate))
	}
}

// Look reads at once what has been denied until now. Who ends audit, and with it the
// lists of what has passed in it, looks before.
func (l *Log) Look(ctx context.Context) error { return l.look(ctx, true) }

// look reads the lists, if anything has come since it did, or if it has to.
func (l *Log) look(ctx context.Context, always bool) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	at := l.now()
	tallies, err := l.denials.Tallies(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	quiet := tallies == l.raw && !l.book.lookedAt.IsZero() && !always
	if quiet {
		l.book.quiet(at)
	} else {
		l.book.begin()
	}
	l.mu.Unlock()
	if quiet {
		return nil
	}
	err = l.denials.Denied(ctx, func(d backend.Denial) {
		l.tell(func(now time.Time) (Event, bool) { return l.book.listed(&d, now) })
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.book.end(at)
	for h := range tallies {
		add(&l.tallies[h].Refused, tallies[h].Refused, l.raw[h].Refused)
		add(&l.tallies[h].Audited, tallies[h].Audited, l.raw[h].Audited)
		add(&l.tallies[h].Unlisted, tallies[h].Unlisted, l.raw[h].Unlisted)
	}
	l.raw = tallies
	return nil
}

// add adds what a counter has counted since it was read before. If that was more, it has
// begun anew.
func add(to *backend.Count, now, before backend.Count) {
	if now.Packets < before.Packets || now.Bytes < before.Bytes {
		before = backend.Count{}
	}
	to.Packets += now.Packets - before.Packets
	to.Bytes += now.Bytes - before.Bytes
}

// tell enters something in the book, and tells of the event that it makes.
func (l *Log) tell(enter func(now time.Time) (Event, bool)) {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	event, due := enter(l.now())
	l.mu.Unlock()
	if due {
		l.events.Denied(event)
	}
}

// succeeded tells of a failure, once until it is over.
func (l *Log) succeeded(op string, err error) {
	l.telling.Lock()
	defer l.telling.Unlock()
	if err != nil && !l.failing[op] {
		l.events.Failed(op, err)
	}
	l.failing[op] = err != nil
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("the log of denied flows is closed")

// Listen has the kernel show some of the packets that it denies by an NFLOG group, instead
// of by another one; 0 is none. If it fails, flows are told of some seconds later.
func (l *Log) Listen(number uint16) (err error) {
	l.listening.Lock()
	defer l.listening.Unlock()
	switch {
	case l.closed:
		return ErrClosed
	case l.number == number:
		return nil
	}
	l.unlisten()
	if number == 0 {
		return nil
	}
	if l.group, err = openGroup(number); err != nil {
		return err
	}
	l.number = number
	l.hearing.Go(func() { l.hear(l.group) })
	return nil
}

// unlisten ends listening. The caller has the lock.
func (l *Log) unlisten() {
	if l.group != nil {
		l.group.close()
		l.hearing.Wait()
	}
	l.group, l.number = nil, 0
}

// hear enters what is shown until the group is closed.
func (l *Log) hear(g *group) {
	for {
		lost, err := g.read(func(s shown) {
			l.tell(func(now time.Time) (Event, bool) { return l.book.shown(&s, now) })
		})
		if err != nil {
			if !g.closed.Load() {
				l.succeeded("listen", err)
			}
			return
		}
		l.mu.Lock()
		l.lost += lost
		l.mu.Unlock()
	}
}

// Close ends it. Later calls of Listen return ErrClosed.
func (l *Log) Close() error {
	l.cancel()
	l.looking.Wait()
	l.listening.Lock()
	defer l.listening.Unlock()
	l.unlisten()
	l.closed = true
	return nil
}

// Flows returns the flows that were seen lately, the one that was seen last first.
func (l *Log) Flows() []Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.book.all()
}

// Sums is what has been denied altogether.
type Sums struct {
	Tallies [backend.Hooks]backend.Tally // complete
	Flows   int                          // in the book
	Missing time.Time                    // when the last packet came of a flow that is not: it had to make room, or there is none for it
	Unkept  uint64                       // flows, as often as they were read, that the book has no room for
	Untold  uint64                       // events that there were too many of
	Lost    uint64                       // packets that would have been shown, but came too fast
}

// Sums returns them, as they were some seconds ago.
func (l *Log) Sums() Sums {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Sums{Tallies: l.tallies, Flows: len(l.book.flows), Missing: l.book.missing, Unkept: l.book.unkept, Untold: l.book.untold, Lost: l.lost}
}
