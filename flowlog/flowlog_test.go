package flowlog

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/fake"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m.Run) }

// diary is an observer that writes down what it hears.
type diary struct {
	mu     sync.Mutex
	events []Event
	errs   []error
}

func (d *diary) Denied(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
}

func (d *diary) Failed(op string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.errs = append(d.errs, err)
}

// of returns what was told of a flow.
func (d *diary) of(f backend.Flow) []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.events), func(e Event) bool { return e.Flow.Flow != f })
}

func (d *diary) failures() []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.errs)
}

// faked is a log of what a test says is denied, at times that it says.
type faked struct {
	*Log
	*diary
	enforcer *fake.Backend
	at       time.Time
}

func newFaked(t *testing.T) *faked {
	f := &faked{diary: &diary{}, at: time.Unix(1e9, 0)}
	now := func() time.Time { return f.at }
	f.enforcer = fake.New(expiry.NewTable[backend.Key](f.at), backendtest.Quiet{}, now)
	f.Log = newLog(f.enforcer, f.diary, now)
	return f
}

func (f *faked) looks(t *testing.T, always bool) {
	t.Helper()
	if err := f.look(t.Context(), always); err != nil {
		t.Fatal(err)
	}
}

// counted counts how often lists are read.
type counted struct {
	backend.Denials
	reads int
}

func (c *counted) Denied(ctx context.Context, each func(backend.Denial)) error {
	c.reads++
	return c.Denials.Denied(ctx, each)
}

// Where nothing is denied, no list is read; what has been is in the sums.
func TestQuietTimes(t *testing.T) {
	f := newFaked(t)
	c := &counted{Denials: f.enforcer}
	f.denials = c
	for i := range 30 {
		if i%10 == 5 {
			f.enforcer.Deny(flow(1), backend.Count{Packets: 2, Bytes: 120})
			f.enforcer.DenyUnlisted(flow(1).Kind, backend.Count{Packets: 1, Bytes: 60})
		}
		f.at = f.at.Add(20 * time.Second)
		f.looks(t, false)
	}
	if c.reads != 4 { // at first, and when something was denied
		t.Errorf("the lists were read %d times", c.reads)
	}
	f.looks(t, true)
	if c.reads != 5 {
		t.Error("Look has not read the lists")
	}
	want := backend.Tally{Refused: backend.Count{Packets: 9, Bytes: 540}, Unlisted: backend.Count{Packets: 3, Bytes: 180}}
	if got := f.Sums(); got.Tallies[backend.Output] != want || got.Flows != 1 {
		t.Errorf("%+v", got)
	}
	if got := f.Flows(); len(got) != 1 || got[0].Packets != 6 {
		t.Errorf("%+v", got)
	}
	if events := f.of(flow(1)); len(events) != 3 {
		t.Errorf("%+v", events)
	}
}

// restarted is a kernel whose counters begin anew.
type restarted struct{ backend.Denials }

func (restarted) Tallies(context.Context) ([backend.Hooks]backend.Tally, error) {
	return [backend.Hooks]backend.Tally{{Refused: backend.Count{Packets: 1, Bytes: 60}}}, nil
}

// Sums go on when somebody has removed the table.
func TestSumsOnlyGrow(t *testing.T) {
	f := newFaked(t)
	f.enforcer.Deny(flow(1), backend.Count{Packets: 5, Bytes: 300})
	f.looks(t, false)
	f.denials = restarted{f.enforcer}
	f.looks(t, false)
	if got := f.Sums().Tallies[backend.Output].Refused; got != (backend.Count{Packets: 6, Bytes: 360}) {
		t.Errorf("%+v", got)
	}
}

// failing is an enforcer that cannot be asked.
type failing struct {
	backend.Denials
	mu  sync.Mutex
	err error
}

func (f *failing) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) Tallies(ctx context.Context) (tallies [backend.Hooks]backend.Tally, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return tallies, f.err
	}
	return f.Denials.Tallies(ctx)
}

// A failure is told of once, and what was denied meanwhile when it is over.
func TestFailures(t *testing.T) {
	f := newFaked(t)
	no := errors.New("no")
	bad := &failing{Denials: f.enforcer, err: no}
	f.denials = bad
	for range 3 {
		f.succeeded("look", f.look(t.Context(), false))
	}
	f.enforcer.Deny(flow(1), backend.Count{Packets: 5, Bytes: 300})
	bad.fail(nil)
	f.succeeded("look", f.look(t.Context(), false))
	if len(f.failures()) != 1 || len(f.of(flow(1))) != 1 {
		t.Errorf("%v %v", f.failures(), f.of(flow(1)))
	}
	bad.fail(no)
	f.succeeded("look", f.look(t.Context(), false))
	if len(f.failures()) != 2 {
		t.Errorf("%v", f.failures())
	}
	if err := f.Look(t.Context()); err != no {
		t.Error(err)
	}
}

// It looks by itself, ends when it is closed, and leaves nothing behind.
func TestClose(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	at := time.Unix(1e9, 0)
	now := func() time.Time { return at }
	enforcer := fake.New(expiry.NewTable[backend.Key](at), backendtest.Quiet{}, now)
	enforcer.Deny(flow(1), backend.Count{Packets: 5, Bytes: 300})
	d := &diary{}
	l := New(enforcer, d, now)
	backendtest.Eventually(t, "the flow is told of", func() bool { return len(d.of(flow(1))) == 1 })
	if err := l.Listen(0); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := l.Listen(1); err != ErrClosed {
		t.Errorf("after close: %v", err)
	}
	backendtest.Eventually(t, "as few goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	if got := l.Flows(); len(got) != 1 || got[0].Addr != netip.MustParseAddr("198.18.0.1") {
		t.Errorf("%+v", got)
	}
}

// raceDetector is whether it slows everything down.
var raceDetector bool

func udpAddr(addr string) *net.UDPAddr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }

// netInterfaces returns the indices of all interfaces.
func netInterfaces() (map[string]uint32, error) {
	all, err := net.Interfaces()
	indices := map[string]uint32{}
	for _, i := range all {
		indices[i.Name] = uint32(i.Index)
	}
	return indices, err
}
