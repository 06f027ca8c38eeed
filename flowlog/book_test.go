package flowlog

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// flow is one of many.
func flow(n int) backend.Flow {
	return backend.Flow{Protocol: 6, User: 1000, Addr: netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), Port: 443}
}

// kernel is a list of flows as the kernel keeps it.
type kernel struct {
	now    time.Time
	listed map[backend.Flow]backend.Denial
}

func (k *kernel) deny(f backend.Flow, packets uint64) {
	d := k.listed[f]
	if k.now.Sub(d.Last) >= backend.ListedFor {
		d = backend.Denial{}
	}
	d.Flow, d.Last = f, k.now
	d.Packets += packets
	d.Bytes += 60 * packets
	k.listed[f] = d
}

func (k *kernel) forget() {
	for f, d := range k.listed {
		if k.now.Sub(d.Last) >= backend.ListedFor {
			delete(k.listed, f)
		}
	}
}

func (k *kernel) look(b *book) (events []Event) {
	k.forget()
	b.begin()
	for _, d := range k.listed {
		if e, due := b.listed(&d, k.now); due {
			events = append(events, e)
		}
	}
	b.end(k.now)
	return events
}

func newKernel() *kernel {
	return &kernel{now: time.Unix(1e9, 0), listed: map[backend.Flow]backend.Denial{}}
}

// A flow is told of at once, and every minute while more comes. All of it is told.
func TestFlowIsToldOfEveryMinute(t *testing.T) {
	k := newKernel()
	b := newBook(k.now)
	var told uint64
	var events []Event
	for second := range 600 {
		if second < 300 {
			k.deny(flow(1), 3)
		}
		for _, e := range k.look(b) {
			if e.Begins != (len(events) == 0) || e.Flow.Flow != flow(1) || e.New.Bytes != 60*e.New.Packets {
				t.Errorf("%+v", e)
			}
			told += e.New.Packets
			if told != e.Packets {
				t.Errorf("%d told of, %d in all", told, e.Packets)
			}
			events = append(events, e)
		}
		k.now = k.now.Add(time.Second)
	}
	if len(events) != 5 {
		t.Errorf("told %d times", len(events))
	}
	if e := b.flows[flow(1)]; e.Packets != 900 || !e.Last.Equal(time.Unix(1e9+299, 0)) || !e.First.Equal(time.Unix(1e9, 0)) {
		t.Errorf("%+v", e.Flow)
	}
}

// What the kernel forgets and counts anew is added up, however it looks.
func TestForgottenFlowsAddUp(t *testing.T) {
	for name, tt := range map[string]struct {
		packets []uint64 // that come every three minutes
		looks   bool     // in between, or only heard that nothing has come
	}{
		"more each time, looking":   {[]uint64{3, 5, 8}, true},
		"more each time, quiet":     {[]uint64{3, 5, 8}, false},
		"as many each time":         {[]uint64{4, 4, 4}, false},
		"fewer each time":           {[]uint64{9, 5, 1}, false},
		"as many each time, looked": {[]uint64{4, 4, 4}, true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel()
			b := newBook(k.now)
			var want uint64
			for _, packets := range tt.packets {
				k.deny(flow(1), packets)
				want += packets
				for range 90 {
					k.now = k.now.Add(2 * time.Second)
					if b.look == 0 || tt.looks || b.flows[flow(1)].Packets != want {
						k.look(b)
					} else {
						b.quiet(k.now)
					}
				}
			}
			if got := b.flows[flow(1)].Packets; got != want {
				t.Errorf("%d packets, want %d", got, want)
			}
		})
	}
}

// Whatever comes when, what is told adds up to what has come, as long as lists are read
// before they are forgotten.
func TestNothingIsLost(t *testing.T) {
	k := newKernel()
	b := newBook(k.now)
	random := rand.New(rand.NewPCG(1, 2))
	came := map[backend.Flow]uint64{}
	for range 20_000 {
		f := flow(random.IntN(50))
		packets := 1 + random.Uint64N(5)
		k.deny(f, packets)
		came[f] += packets
		k.now = k.now.Add(time.Duration(random.IntN(4000)) * time.Millisecond)
		if random.IntN(3) > 0 {
			k.look(b)
		}
	}
	k.look(b)
	for f, want := range came {
		// Now and then a flow is forgotten and comes back between two looks.
		if got := b.flows[f].Packets; got > want || got < want-want/100 {
			t.Errorf("%v: %d packets, want %d", f, got, want)
		}
	}
}

// What is shown comes late: no flow has begun after its last packet.
func TestShownPacketsAreLate(t *testing.T) {
	k := newKernel()
	b := newBook(k.now)
	k.look(b)
	k.deny(flow(1), 1)
	b.shown(&shown{Flow: flow(1)}, k.now.Add(50*time.Millisecond))
	k.look(b)
	if got := b.all()[0]; !got.First.Equal(k.now) || !got.Last.Equal(k.now) {
		t.Errorf("from %v to %v", got.First, got.Last)
	}
}

// A shown packet is told of at once, and counted only until the kernel's count is read.
func TestShownPackets(t *testing.T) {
	k := newKernel()
	b := newBook(k.now)
	k.look(b)
	s := &shown{Flow: flow(1), Packet: Packet{Source: netip.MustParseAddrPort("192.0.2.1:4000"), Length: 60}}
	e, due := b.shown(s, k.now)
	if !due || !e.Begins || e.New.Packets != 1 || e.Bytes != 60 || e.Packet.Source != s.Source {
		t.Errorf("%v %+v", due, e)
	}
	for range 2 {
		if e, due := b.shown(s, k.now); due {
			t.Errorf("%+v", e)
		}
	}
	if got := b.all()[0]; got.Packets != 3 {
		t.Errorf("%+v", got)
	}
	k.deny(flow(1), 5)
	k.look(b)
	b.shown(s, k.now)
	if got := b.all()[0]; got.Packets != 5 || got.Bytes != 300 {
		t.Errorf("%+v", got)
	}
	k.now = k.now.Add(time.Minute)
	k.deny(flow(1), 2)
	if events := k.look(b); len(events) != 1 || events[0].New.Packets != 6 || events[0].Begins || events[0].Packet.Source != s.Source {
		t.Errorf("%+v", events)
	}
}

// A flood fills the book and no more; what is read in one go does not push itself out,
// and what was known before and goes on stays.
func TestBookIsBounded(t *testing.T) {
	k := newKernel()
	b := newBook(k.now)
	k.deny(flow(1), 1)
	k.look(b)
	k.now = k.now.Add(10 * time.Second)
	for n := range 2 * mostFlows {
		k.deny(flow(n), 1)
	}
	k.now = k.now.Add(time.Second)
	events := k.look(b)
	if len(b.flows) != mostFlows || b.unkept != mostFlows || !b.missing.Equal(k.now.Add(-time.Second)) {
		t.Errorf("%d flows, %d had no room, the last of them at %v", len(b.flows), b.unkept, b.missing)
	}
	if len(events) > toldAtOnce || uint64(len(events))+b.untold < mostFlows-1 {
		t.Errorf("%d events, and %d too many", len(events), b.untold)
	}
	k.now = k.now.Add(10 * time.Second)
	if events := k.look(b); len(events) > 0 {
		t.Errorf("%d events, and nothing has come", len(events))
	}
	// One that is shown always has room.
	s := &shown{Flow: flow(1 << 15), Packet: Packet{Length: 60}}
	if e, due := b.shown(s, k.now); !due || e.Flow.Flow != s.Flow {
		t.Errorf("%v %+v", due, e)
	}
	if len(b.flows) != mostFlows || b.all()[0].Flow != s.Flow {
		t.Error("it has no room")
	}
	// A minute later, those that go on are told of as far as may be.
	k.now = k.now.Add(time.Minute)
	for n := range 2 * mostFlows {
		k.deny(flow(n), 1)
	}
	unkept := b.unkept
	if events := k.look(b); len(events) != toldAtOnce {
		t.Errorf("%d events", len(events))
	}
	if b.unkept > unkept+mostFlows+1 {
		t.Errorf("%d have had no room", b.unkept-unkept)
	}
	links := 0
	for e := b.oldest; e != nil; e = e.newer {
		links++
	}
	if links != mostFlows {
		t.Errorf("%d flows are linked", links)
	}
}

// However many quiet flows there are, and in whatever order they are read, a loud one is
// not lost among them: neither before its count has been read, nor among those read.
func TestLoudFlowsAreKept(t *testing.T) {
	const loud = 1 << 15
	for _, isShown := range []bool{true, false} {
		k := newKernel()
		b := newBook(k.now)
		told := 0
		for range 3 {
			k.now = k.now.Add(time.Second)
			k.deny(flow(loud), 1000)
			if isShown {
				b.shown(&shown{Flow: flow(loud), Packet: Packet{Length: 60}}, k.now)
			}
			for n := range 2 * mostFlows {
				k.deny(flow(n), 1)
			}
			b.begin()
			last := k.listed[flow(loud)] // the last one that is read
			for f, d := range k.listed {
				if f != last.Flow {
					b.listed(&d, k.now)
				}
			}
			if isShown && b.flows[last.Flow] == nil {
				t.Error("what was shown has been pushed out before it was read")
			}
			if _, due := b.listed(&last, k.now); due {
				told++
			}
			b.end(k.now)
			if e := b.flows[last.Flow]; e == nil || e.Packets != last.Packets || isShown != (e.Packet.Length > 0) {
				t.Fatalf("shown %v: %+v", isShown, e)
			}
		}
		if len(b.flows) != mostFlows || told > 1 {
			t.Errorf("%d flows; it was told of %d times", len(b.flows), told)
		}
	}
}

// What had to make room comes back with what is new of it only.
func TestPushedOutFlows(t *testing.T) {
	k := newKernel()
	b := newBook(k.now)
	k.deny(flow(1), 7)
	k.now = k.now.Add(time.Second)
	k.look(b)
	for n := range mostFlows {
		k.now = k.now.Add(time.Millisecond)
		b.shown(&shown{Flow: flow(1000 + n)}, k.now)
	}
	if b.flows[flow(1)] != nil {
		t.Fatal("it has not been pushed out")
	}
	if !b.missing.Equal(time.Unix(1e9, 0)) {
		t.Errorf("it is missing as of %v", b.missing)
	}
	if events := k.look(b); len(events) > 0 || b.flows[flow(1)] != nil {
		t.Errorf("it is back, and nothing has come: %v", events)
	}
	k.now = k.now.Add(time.Minute)
	k.deny(flow(1), 1)
	if events := k.look(b); len(events) != 1 || events[0].Packets != 8 {
		t.Errorf("%+v", events)
	}
}

func TestFlowString(t *testing.T) {
	f := Flow{Flow: flow(1), Count: backend.Count{Packets: 3, Bytes: 180}}
	if got := f.String(); got != "denied-output: user 1000 to 198.18.0.1, tcp/443: 3 packets, 180 bytes" {
		t.Error(got)
	}
}

// What an earlier process has told of is in the book, and told of again only when it goes on.
func TestEarlierFlowsAreNotNews(t *testing.T) {
	f := newFaked(t)
	f.enforcer.Deny(flow(1), backend.Count{Packets: 5, Bytes: 300})
	f.enforcer.Deny(flow(2), backend.Count{Packets: 5, Bytes: 300})
	f.at = f.at.Add(time.Second)
	f.book = newBook(f.at) // it starts
	packet := &shown{Flow: flow(2), Packet: Packet{Length: 60}}
	f.enforcer.Deny(flow(2), backend.Count{Packets: 1, Bytes: 60})
	f.tell(func(now time.Time) (Event, bool) { return f.book.shown(packet, now) })
	f.enforcer.Deny(flow(3), backend.Count{Packets: 2, Bytes: 120})
	f.looks(t, true)
	told := func(n int) (news []uint64) {
		for _, e := range f.of(flow(n)) {
			news = append(news, e.New.Packets)
		}
		return news
	}
	check := func(when string, want ...[]uint64) {
		t.Helper()
		for i, want := range want {
			if got := told(i + 1); !slices.Equal(got, want) {
				t.Errorf("%s: of flow %d was told %v, want %v", when, i+1, got, want)
			}
		}
	}
	check("at first", nil, []uint64{1}, []uint64{2})
	if all := f.Flows(); len(all) != 3 || f.book.flows[flow(1)].Packets != 5 || f.book.flows[flow(2)].Packets != 6 {
		t.Errorf("in the book: %v", all)
	}
	f.at = f.at.Add(90 * time.Second)
	for i := range 3 {
		f.enforcer.Deny(flow(i+1), backend.Count{Packets: 1, Bytes: 60})
	}
	f.looks(t, true)
	check("when they go on", []uint64{1}, []uint64{1, 1}, []uint64{2, 1})
}
