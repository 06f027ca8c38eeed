package expiry

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var epoch = time.Unix(1e9, 0)

// after is a moment so long after the epoch.
func after(d time.Duration) time.Time { return epoch.Add(d) }

const all = 1 << 30

// late is how late keys may come up.
const late = tick

func text(ended []Ended[string]) string {
	var list []string
	for _, e := range ended {
		list = append(list, fmt.Sprint(e.Key, " ", e.Until.Sub(epoch)))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func TestCovers(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("a", after(time.Minute), Accounts{})
	for _, tt := range []struct {
		name  string
		key   string
		until time.Duration
		want  bool
	}{
		{"now", "a", 0, true},
		{"before the epoch", "a", -time.Hour, true},
		{"until it is removed", "a", time.Minute - Removal, true},
		{"just longer", "a", time.Minute - Removal + 1, false},
		{"until the kernel ends it", "a", time.Minute, false},
		{"another key", "b", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := table.Covers(tt.key, after(tt.until)); got != tt.want {
				t.Error(got)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("set", after(time.Minute), Accounts{})
	table.Adopt("adopted", after(time.Hour), Accounts{})
	for _, tt := range []struct {
		key       string
		want      time.Time
		confirmed bool
	}{
		{"set", after(time.Minute), true},
		{"adopted", after(time.Hour), false},
		{"none", time.Time{}, false},
	} {
		if until, confirmed := table.Lookup(tt.key); !until.Equal(tt.want) || confirmed != tt.confirmed {
			t.Errorf("%s: %v, %v", tt.key, until, confirmed)
		}
	}
}

func TestSetAndAdopt(t *testing.T) {
	table := NewTable[string](epoch)
	for _, step := range []struct {
		name  string
		does  func() bool
		added bool
		until time.Duration
		relied
	}{
		{"adopt", func() bool { return table.Adopt("a", after(time.Hour), Accounts{}) }, true, time.Hour, false},
		{"adopt again", func() bool { return table.Adopt("a", after(2*time.Hour), Accounts{}) }, false, time.Hour, false},
		{"confirm", func() bool { return table.Set("a", after(3*time.Hour), Accounts{}) }, false, 3 * time.Hour, true},
		{"adopt what is known better", func() bool { return table.Adopt("a", after(4*time.Hour), Accounts{}) }, false, 3 * time.Hour, true},
		{"renew", func() bool { return table.Set("a", after(5*time.Hour), Accounts{}) }, false, 5 * time.Hour, true},
		{"delete", func() bool { return !table.Delete("a") }, false, 0, false},
		{"delete what is not there", func() bool { return table.Delete("a") }, false, 0, false},
		{"set", func() bool { return table.Set("a", after(time.Hour), Accounts{}) }, true, time.Hour, true},
	} {
		t.Run(step.name, func(t *testing.T) {
			if got := step.does(); got != step.added {
				t.Errorf("added: %v", got)
			}
			until, confirmed := table.Lookup("a")
			if step.until == 0 != until.IsZero() || step.until > 0 && !until.Equal(after(step.until)) || confirmed != bool(step.relied) {
				t.Errorf("until %v, %v", until, confirmed)
			}
			if table.Covers("a", epoch) != bool(step.relied) {
				t.Error("Covers says otherwise")
			}
		})
	}
}

type relied bool

func TestDistrust(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("a", after(time.Hour), Accounts{})
	table.Set("b", after(time.Hour), Accounts{})
	for range 3 {
		table.Distrust()
		table.Set("a", after(time.Hour), Accounts{})
		if !table.Covers("a", epoch) || table.Covers("b", epoch) {
			t.Error("the confirmed one is in force, and no other")
		}
	}
	if until, confirmed := table.Lookup("b"); !until.Equal(after(time.Hour)) || confirmed {
		t.Errorf("b: %v, %v", until, confirmed)
	}
	if got := text(table.Due(after(time.Hour), all, nil)); got != "a 1h0m0s, b 1h0m0s" {
		t.Errorf("due: %s", got)
	}
}

func TestDue(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("past", after(-time.Hour), Accounts{})
	table.Set("minute", after(time.Minute), Accounts{})
	table.Set("renewed", after(time.Minute), Accounts{})
	table.Set("renewed", after(2*time.Minute), Accounts{})
	table.Set("deleted", after(time.Minute), Accounts{})
	table.Delete("deleted")
	table.Adopt("adopted", after(time.Minute), Accounts{})
	table.Set("day", after(24*time.Hour), Accounts{})
	for _, tt := range []struct {
		at   time.Duration
		want string
	}{
		{0, ""}, // the first eighth of a second has not passed
		{late, "past 0s"},
		{time.Minute - Removal - 1, ""},
		{time.Minute - Removal + late, "adopted 1m0s, minute 1m0s"},
		{time.Minute, ""},
		{2*time.Minute - Removal - 1, ""},
		{2*time.Minute - Removal + late, "renewed 2m0s"},
		{24*time.Hour - Removal - 1, ""}, // many turns of the wheel later
		{24*time.Hour - Removal + late, "day 24h0m0s"},
		{48 * time.Hour, ""},
	} {
		if got := text(table.Due(after(tt.at), all, nil)); got != tt.want {
			t.Errorf("after %v: %q, want %q", tt.at, got, tt.want)
		}
	}
	for k := range table.All() {
		t.Errorf("left: %s", k)
	}
}

// A clock that jumps, as after suspend, brings up what is due and nothing else.
func TestDueAfterALongPause(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("first", after(time.Minute), Accounts{})
	table.Set("hours", after(5*time.Hour), Accounts{})
	table.Set("days", after(48*time.Hour), Accounts{})
	if got := text(table.Due(after(24*time.Hour), all, nil)); got != "first 1m0s, hours 5h0m0s" {
		t.Errorf("due: %s", got)
	}
	if got := text(table.Due(after(1*time.Hour), all, nil)); got != "" {
		t.Errorf("after the clock went back: %s", got)
	}
	table.Set("soon", after(25*time.Hour), Accounts{})
	if got := text(table.Due(after(47*time.Hour), all, nil)); got != "soon 25h0m0s" {
		t.Errorf("due: %s", got)
	}
}

func TestDueHasALimit(t *testing.T) {
	table := NewTable[int](epoch)
	for i := range 100 {
		table.Set(i, after(time.Minute), Accounts{})
	}
	had := Ended[int]{Key: -1, Until: epoch}
	buf := []Ended[int]{had}
	for len(buf) < 101 {
		before := len(buf)
		buf = table.Due(after(time.Hour), before+30, buf)
		if n := len(buf) - before; n != 30 && len(buf) != 101 {
			t.Fatalf("%d at once", n)
		}
	}
	seen := map[int]bool{}
	for _, e := range buf[1:] {
		seen[e.Key] = true
	}
	if buf[0] != had || len(seen) != 100 {
		t.Errorf("%d keys, after %v", len(seen), buf[0])
	}
	if more := table.Due(after(time.Hour), 0, nil); len(more) > 0 {
		t.Errorf("%d more than none", len(more))
	}
}

func TestClear(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("a", after(time.Minute), Accounts{})
	table.Adopt("b", after(time.Hour), Accounts{})
	if got := text(table.Clear()); got != "a 1m0s, b 1h0m0s" {
		t.Errorf("cleared: %s", got)
	}
	if len(table.Clear()) > 0 || len(table.Due(after(2*time.Hour), all, nil)) > 0 || table.Covers("a", epoch) {
		t.Error("something is left")
	}
	table.Set("a", after(3*time.Hour), Accounts{})
	if got := text(table.Due(after(3*time.Hour), all, nil)); got != "a 3h0m0s" {
		t.Errorf("due: %s", got)
	}
}

func TestAll(t *testing.T) {
	table := NewTable[int](epoch)
	want := map[int]time.Time{}
	for i := range 1000 {
		want[i] = after(time.Duration(i) * time.Second)
		table.Set(i, want[i], Accounts{})
	}
	if got := maps.Collect(table.All()); !maps.EqualFunc(got, want, time.Time.Equal) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
	n := 0
	for k := range table.All() {
		table.Delete(k) // no lock is held
		if n++; n == 10 {
			break
		}
	}
	if got := len(maps.Collect(table.All())); got != 990 {
		t.Errorf("%d keys left, want 990", got)
	}
}

// model is what a table is, without being quick about it.
type model struct {
	entries map[int]modelEntry
	trust   int
	renewed int // how often
}

// kept is what a table keeps of a time: whole milliseconds after the epoch.
func kept(until time.Duration) time.Duration {
	return (max(until, 0) + time.Millisecond - 1).Truncate(time.Millisecond)
}

type modelEntry struct {
	until, since time.Duration // after the epoch
	trust        int
	of           Accounts
	renewed      [kinds]int
}

func (m *model) covers(k int, until time.Duration) bool {
	e, ok := m.entries[k]
	return ok && e.trust == m.trust && e.until-Removal >= until
}

// renew returns e when it has been renewed, or is new, in these accounts, or is new
// and older than all.
func (m *model) renew(e modelEntry, had bool, of Accounts, old bool) modelEntry {
	m.renewed++
	for kind, account := range of {
		if e.renewed[kind] = m.renewed; old {
			e.renewed[kind] = -m.renewed
		}
		if !had {
			e.of[kind] = account
		} else if e.of[kind] != account {
			e.of[kind] = 0
		}
	}
	return e
}

// account returns how many keys an account has, and the one renewed least recently.
func (m *model) account(kind int, account uint32) (count, oldest int) {
	first := math.MaxInt
	for k, e := range m.entries {
		if account != 0 && e.of[kind] == account {
			if count++; e.renewed[kind] < first {
				first, oldest = e.renewed[kind], k
			}
		}
	}
	return count, oldest
}

// ends takes out what the table says has ended.
func (m *model) ends(t *testing.T, d Ended[int]) {
	t.Helper()
	e, ok := m.entries[d.Key]
	if !ok || !d.Until.Equal(after(e.until)) || d.Of != e.of {
		t.Fatalf("ended: %v until %v, for %v, of which is known %v, %v", d.Key, d.Until.Sub(epoch), d.Of, ok, e)
	}
	delete(m.entries, d.Key)
}

// Whatever is done to it, a table is as its model.
func TestTableIsAsItsModel(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			table, m := NewTable[int](epoch), model{entries: map[int]modelEntry{}, trust: 1}
			if seed%2 == 0 {
				table.sameHash = ^uint64(0x3f) // so few hashes that most keys share one
			}
			now := time.Duration(0)
			for range 20_000 {
				k := random.IntN(300)
				of := Accounts{Holder: uint32(k % 3), Name: uint32(random.IntN(5))}
				// From before now to some turns of the wheel later, mostly soon.
				life := time.Duration(random.Int64N(int64(time.Hour)))>>random.IntN(20) - time.Second
				e, had := m.entries[k]
				switch random.IntN(25) {
				case 0, 1, 2, 3, 4, 5:
					until := now + life
					if !had {
						e.since = now
					} else {
						until = max(until, e.until) // none gets shorter
					}
					e.until, e.trust = kept(until), m.trust
					m.entries[k] = m.renew(e, had, of, false)
					if table.Set(k, after(until), of) == had {
						t.Fatalf("Set says %v of a key that was there: %v", !had, had)
					}
				case 6, 7:
					if !had {
						m.entries[k] = m.renew(modelEntry{until: kept(now + life), since: now}, had, of, true)
					}
					if table.Adopt(k, after(now+life), of) == had {
						t.Fatalf("Adopt says %v of a key that was there: %v", !had, had)
					}
				case 18:
					d := Ended[int]{k, after(kept(max(now+life, e.until))), of}
					e.until, e.trust = kept(max(now+life, e.until)), m.trust
					if !had {
						e.since = now
						e = m.renew(e, false, of, true)
					}
					m.entries[k] = e
					if table.Restore(d) == had {
						t.Fatalf("Restore says %v of a key that was there: %v", !had, had)
					}
				case 8:
					delete(m.entries, k)
					if table.Delete(k) != had {
						t.Fatalf("Delete says %v of a key that was there: %v", !had, had)
					}
				case 9:
					if random.IntN(20) == 0 {
						m.trust++
						table.Distrust()
					}
				case 10:
					if random.IntN(200) == 0 {
						ended := table.Clear()
						newest := map[uint32]int{}
						for _, d := range ended {
							holder, renewed := d.Of[Holder], m.entries[d.Key].renewed[Holder]
							if last, some := newest[holder]; holder != 0 && some && renewed > last {
								t.Fatalf("cleared: %v, which is newer than the one before", d)
							}
							newest[holder] = renewed
							m.ends(t, d)
						}
						if len(m.entries) > 0 {
							t.Fatalf("cleared %d and not %d", len(ended), len(m.entries))
						}
					}
				case 11, 12, 13:
					now += time.Duration(random.Int64N(int64(10*time.Minute))) >> random.IntN(30)
					limit := all
					if random.IntN(4) == 0 {
						limit = random.IntN(5)
					}
					due := table.Due(after(now), limit, nil)
					if len(due) > limit {
						t.Fatalf("%d due, the limit is %d", len(due), limit)
					}
					for _, d := range due {
						if d.Until.Add(-Removal).After(after(now)) {
							t.Fatalf("at %v due: %v until %v", now, d.Key, d.Until.Sub(epoch))
						}
						m.ends(t, d)
					}
					for k, e := range m.entries {
						if limit == all && max(e.until-Removal, e.since) <= now-late {
							t.Fatalf("at %v not due: %v until %v", now, k, e.until)
						}
					}
				case 14, 15:
					if had {
						e = m.renew(e, had, of, false)
						m.entries[k] = e
					}
					table.Touch(k, of)
					if of, ok := table.Of(k); ok != had || of != e.of {
						t.Fatalf("Of says %v, %v of %v, %v", of, ok, e, had)
					}
				case 16, 17:
					kind, account := random.IntN(kinds), uint32(random.IntN(5))
					count, oldest := m.account(kind, account)
					if got := table.Count(kind, account); got != count {
						t.Fatalf("%d keys in account %d of kind %d, want %d", got, account, kind, count)
					}
					if count > 0 && table.Oldest(kind, account).Key != oldest {
						t.Fatalf("the oldest in account %d of kind %d is %v, want %d", account, kind, table.Oldest(kind, account), oldest)
					}
				default:
					until, confirmed := table.Lookup(k)
					if had == until.IsZero() || had && !until.Equal(after(e.until)) || confirmed != (had && e.trust == m.trust) {
						t.Fatalf("Lookup says %v, %v of %v, %v", until, confirmed, e, had)
					}
					if ask := now + life; table.Covers(k, after(ask)) != m.covers(k, ask) {
						t.Fatalf("Covers says %v of %v, %v until %v", !m.covers(k, ask), e, had, ask)
					}
				}
			}
			for k, until := range table.All() {
				if e, ok := m.entries[k]; !ok || !until.Equal(after(e.until)) {
					t.Fatalf("All says %v until %v", k, until)
				}
				delete(m.entries, k)
			}
			if len(m.entries) > 0 {
				t.Fatalf("All forgets %d", len(m.entries))
			}
		})
	}
}

// Keys that come and go need no more memory than as many that stay.
func TestWheelReusesMemory(t *testing.T) {
	table := NewTable[int](epoch)
	now := time.Duration(0)
	for i := range 100_000 {
		table.Set(i, after(now+time.Second), Accounts{})
		now += time.Millisecond
		table.Due(after(now), all, nil)
	}
	if n := int(table.nodes.made); n > 2000 {
		t.Errorf("%d nodes for about 1,000 keys", n)
	}
	// Renewals cost nothing.
	for i := range 100_000 {
		table.Set(-1, after(now+time.Duration(i)*time.Hour), Accounts{})
	}
	if n := int(table.nodes.made); n > 2000 {
		t.Errorf("%d nodes after renewals", n)
	}
}

func TestMemory(t *testing.T) {
	const n = 1_000_000
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, tt := range []struct {
		name  string
		of    func(number uint32) Accounts
		limit float64
	}{
		{"one holder, no names", func(uint32) Accounts { return Accounts{Holder: 1} }, 90},
		{"one holder, as many names", func(i uint32) Accounts { return Accounts{i, 1} }, 120},
		{"as many holders and names", func(i uint32) Accounts { return Accounts{i, i} }, 135},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := inUse()
			table := NewTable[[34]byte](epoch) // as long as backend.Key
			for i := range n {
				key := [34]byte{30: byte(i >> 24), 31: byte(i >> 16), 32: byte(i >> 8), 33: byte(i)}
				table.Set(key, after(time.Hour+time.Duration(i)), tt.of(1+uint32(i)*2654435761)) // like hashes
			}
			each := float64(inUse()-before) / n
			runtime.KeepAlive(table)
			t.Logf("%.0f bytes a grant", each)
			if each > tt.limit {
				t.Errorf("%.0f bytes a grant, want at most %.0f", each, tt.limit)
			}
		})
	}
}

func TestCoversAllocatesNothing(t *testing.T) {
	table := NewTable[[16]byte](epoch)
	key := [16]byte{1}
	table.Set(key, after(time.Hour), Accounts{})
	if n := testing.AllocsPerRun(1000, func() { table.Covers(key, after(time.Minute)); table.Covers([16]byte{2}, epoch) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Readers never see a key in force that the writer has taken out, and always one
// that lasts.
func TestReadersBesideTheWriter(t *testing.T) {
	table := NewTable[int](epoch)
	const lasting = -1
	table.Set(lasting, after(1000*time.Hour), Accounts{})
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !table.Covers(lasting, after(999*time.Hour)) {
					t.Error("a key that lasts is not in force")
				}
				if until, _ := table.Lookup(7); !until.IsZero() && until.Before(epoch) {
					t.Error("a key until before the beginning")
				}
				for k := range table.All() {
					if k > 100 {
						t.Errorf("a key that was never set: %d", k)
					}
				}
			}
		})
	}
	now := time.Duration(0)
	for i := range 2000 {
		table.Set(i%100, after(now+time.Second), Accounts{})
		now += 10 * time.Millisecond
		table.Due(after(now), 10, nil)
	}
	close(stop)
	readers.Wait()
}

// However often the table is cleared, it keeps no memory of what was in it.
func TestClearGivesBackMemory(t *testing.T) {
	table := NewTable[int](epoch)
	now := time.Duration(0)
	for range 20 {
		for i := range 10_000 {
			table.Set(i, after(now+time.Hour), Accounts{})
		}
		if n := len(table.Clear()); n != 10_000 {
			t.Fatalf("%d keys were there", n)
		}
		now += time.Second
		if due := table.Due(after(now), all, nil); len(due) > 0 {
			t.Fatalf("%d keys are due", len(due))
		}
	}
	if n := table.nodes.made; n > 10_000 {
		t.Errorf("%d nodes for 10,000 keys", n)
	}
}

// Readers may go on while the table is cleared; keys that share a hash do not
// get in each other's way.
func TestReadersBesideClear(t *testing.T) {
	table := NewTable[int](epoch)
	table.sameHash = ^uint64(0x7f)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				table.Covers(i%3000, epoch)
				for k, until := range table.All() {
					if !until.After(epoch) {
						t.Error(k, until)
					}
				}
			}
		})
	}
	now := time.Second
	for i := range 20_000 {
		table.Set(i*7%3000, after(now+time.Duration(1+i%5000)*time.Millisecond), Accounts{})
		if i%3000 == 0 {
			table.Clear()
		}
		if i%10 == 0 {
			now += 30 * time.Millisecond
			table.Due(after(now), 30, nil)
		}
	}
	close(stop)
	readers.Wait()
}
