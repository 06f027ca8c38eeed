package route

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// model is what is to be expected of a book, in simple words.
type model struct {
	*desk
	random  *rand.Rand
	pools   [][]string
	routes  []*Route
	home    []int                    // the route of each name
	asked   map[string]time.Time     // when a name was last answered by an IP version, as far as must be known
	slots   map[string][]netip.Addr  // of a name and IP version, in order
	retired map[netip.Addr]bool      // not of the pools when the name was answered
	owner   map[netip.Addr]string    // as the book has said
	free    map[netip.Addr]time.Time // when another name may have an address at the earliest
	late    map[netip.Addr]bool      // what the name did not want any more when it was last answered
	saved   map[string]time.Time     // the same, as it is on disk
}

const modelNames = 30

// Thousands of steps, with restarts. An address has one name, and is not another one's
// before a minute has passed and nothing is connected to it. A name keeps its addresses as
// long as it is used or connected to, and the kernel has what was answered.
func TestModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed)
			steps := 1500
			if testing.Short() {
				steps = 200
			}
			for n := range steps {
				what := m.step()
				m.look(what)
				m.sound()
				if t.Failed() {
					t.Fatalf("step %d: %s", n, what)
				}
			}
			m.end()
		})
	}
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{desk: newDesk(t), random: rand.New(rand.NewPCG(seed, 7)), home: make([]int, modelNames),
		asked: map[string]time.Time{}, slots: map[string][]netip.Addr{}, owner: map[netip.Addr]string{}, retired: map[netip.Addr]bool{}, free: map[netip.Addr]time.Time{}}
	m.pools = [][]string{{"10.0.0.0/26", "fd00::/122"}, {"10.0.1.0/26", "fd00::100/122"}, {"10.0.0.0/25", "fd00::/121"}}
	m.routes = []*Route{routed("r0", 3, m.pools[0]...), routed("r1", 3, m.pools[0]...), routed("r2", 3, m.pools[1]...)}
	for i := range m.home {
		m.home[i] = i % len(m.routes)
	}
	return m
}

// step does something and says what.
func (m *model) step() (what string) {
	switch n := m.random.IntN(100); {
	case n < 55:
		return m.answer(m.random.IntN(modelNames), m.random.IntN(2) == 0)
	case n < 65:
		passed := time.Duration(m.random.Int64N(int64([]time.Duration{time.Minute, time.Hour, 20 * time.Hour}[m.random.IntN(3)])))
		m.after(passed)
		return fmt.Sprint(passed, " pass")
	case n < 72:
		return m.connects()
	case n < 77:
		before := len(m.live)
		maps.DeleteFunc(m.live, func([2]netip.Addr, bool) bool { return m.random.IntN(4) == 0 })
		return fmt.Sprint(before-len(m.live), " connections end")
	case n < 87:
		m.tidy(long)
		m.saved = maps.Clone(m.asked)
		return "tidy"
	case n < 90:
		m.stops(false)
		return "restart"
	case n < 92:
		m.stops(true)
		return "crash"
	case n < 95:
		clear(m.mapped)
		m.router.epoch.Add(1)
		return "the kernel has lost all"
	case n < 98:
		return m.rehomes()
	default:
		return m.repools()
	}
}

// stops is a restart, or a crash. Times of use are written when they are an hour older, and
// only by Tidy and Close.
func (m *model) stops(crash bool) {
	if !crash {
		m.saved = maps.Clone(m.asked)
		m.restart()
	} else {
		m.copied()
	}
	if len(m.retired) > 0 { // they come back, be it in a route that the name has left
		clear(m.slots)
	}
	m.asked = map[string]time.Time{}
	for key, at := range m.saved {
		m.asked[key] = at.Add(-time.Hour)
	}
}

func (m *model) connects() string {
	for _, a := range slices.SortedFunc(maps.Keys(m.mapped), netip.Addr.Compare) {
		if mapping := m.mapped[a]; m.owner[a] != "" && m.random.IntN(5) == 0 {
			m.live[[2]netip.Addr{mapping.Mapped, mapping.Real}] = true
			return fmt.Sprint("a connection by ", mapping)
		}
	}
	return "nothing"
}

// rehomes moves some names from one of the two routes that share pools to the other.
func (m *model) rehomes() string {
	third, from := m.random.IntN(3), m.random.IntN(2)
	m.moves(func(route, name, _ string) (string, bool) {
		var i int
		fmt.Sscanf(name, "name%d", &i)
		return m.routes[1-from].Name, route == m.routes[from].Name && i%3 == third
	})
	for i := range m.home {
		if m.home[i] == from && i%3 == third {
			m.home[i] = 1 - from
		}
	}
	return fmt.Sprintf("names of third %d leave route %d", third, from)
}

// repools gives routes other pools.
func (m *model) repools() string {
	shared := m.pools[2*m.random.IntN(2)]
	for i := range 2 {
		m.routes[i] = routed(m.routes[i].Name, 1+m.random.IntN(4), shared...)
	}
	m.Use(m.routes)
	return fmt.Sprintf("pools %s", shared)
}

// answer answers a name, and checks what it gets.
func (m *model) answer(i int, ipv4 bool) (what string) {
	r, name := m.routes[m.home[i]], fmt.Sprintf("name%d", i)
	var reals []netip.Addr
	for range m.random.IntN(6) {
		a := randomReal(m.random, ipv4).As16()
		a[15] %= 12
		if real := addrOf(version(randomReal(m.random, ipv4)), a); !slices.Contains(reals, real) {
			reals = append(reals, real)
		}
	}
	what = fmt.Sprintf("%s by %s: %v", name, r.Name, reals)
	m.router.fails = nil
	if m.random.IntN(10) == 0 {
		m.router.fails = errors.New("not now")
		what += ", and the kernel says no"
	}
	defer func() { m.router.fails = nil }()
	a, err := m.Assign(context.Background(), r, name, "", uint64(m.random.IntN(3)), reals, time.Minute)
	if len(reals) == 0 {
		return what
	}
	key := fmt.Sprint(name, ipv4)
	has := m.has(what, r, i, ipv4)
	if errors.Is(err, ErrPoolFull) || errors.Is(err, ErrShare) || err != nil && err == m.router.fails {
		return what
	}
	if err != nil {
		m.Errorf("%s: %v", what, err)
	}
	m.asked[key] = m.time
	first := has[:min(len(reals), r.Slots, len(has))]
	if len(a.Mapped) != len(first) || !m.kernelHas(a.Mapped, reals) {
		m.Errorf("%s: it gets %v, and has %v", what, a.Mapped, has)
	}
	for _, mapped := range a.Mapped {
		if !slices.Contains(first, mapped) {
			m.Errorf("%s: %v is answered and not one of the first of %v", what, mapped, has)
		}
	}
	for c := range m.live {
		if slices.Contains(has, c[0]) && !slices.Contains(reals, c[1]) {
			if !slices.Contains(a.Stale, c[0]) {
				m.Errorf("%s: %v leads elsewhere, and is not among %v", what, c, a.Stale)
			}
			delete(m.live, c)
		}
	}
	return what
}

// has returns the addresses that a name has, first those that it had.
func (m *model) has(what string, r *Route, i int, ipv4 bool) (has []netip.Addr) {
	m.Helper()
	key := fmt.Sprint("name", i, ipv4)
	had := slices.DeleteFunc(m.slots[key], func(a netip.Addr) bool { return !contains(r.Pools, a) })
	v := versions[1]
	if ipv4 {
		v = versions[0]
	}
	if e := m.entry(fmt.Sprintf("%c%s\x00name%d", v, r.Name, i)); e != nil {
		for _, s := range e.slots {
			has = append(has, e.addr(s.mapped))
		}
	}
	if len(has) < len(had) || !slices.Equal(has[:len(had)], had) {
		m.Errorf("%s: it had %v, and has %v", what, had, has)
	}
	m.slots[key] = has
	return slices.Clone(has)
}

// end: when nobody asks and nothing is connected, all becomes free.
func (m *model) end() {
	m.restart()
	clear(m.live)
	for range 3 {
		m.after(60 * time.Hour)
		m.tidy(long)
	}
	m.sound()
	if ipv4, ipv6 := m.Len(); ipv4.Mapped+ipv6.Mapped+len(m.resting) != 0 || len(m.mapped) != 0 {
		m.Errorf("%v and %v are left, %d rest, %d are mapped", ipv4, ipv6, len(m.resting), len(m.mapped))
	}
}
