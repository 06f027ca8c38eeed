package route

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestRehome(t *testing.T) {
	pools := []string{"10.0.0.0/8", "fd00::/64"}
	old, new_, third := routed("old", 2, pools...), routed("new", 2, pools...), routed("third", 2, pools...)
	rename := func(from, to string) func(route, name, _ string) (string, bool) {
		return func(route, name, _ string) (string, bool) { return to, route == from }
	}
	for _, tt := range []struct {
		name string
		do   func(d *desk) // with a.org in old and c.org in third
	}{
		{"the same addresses by another route", func(d *desk) {
			d.ask(old, "a.org", six)
			d.moves(rename("old", "new"))
			d.want(d.routes(), "new: 10.0.0.1 10.0.0.2 fd00::1 fd00::2, third: 10.0.0.3")
			maps := d.maps.Load()
			d.want(d.ask(new_, "a.org", four), "10.0.0.1 10.0.0.2")
			d.want(d.ask(new_, "a.org", six), "fd00::1 fd00::2")
			d.want(d.ask(third, "c.org", "192.0.2.1"), "10.0.0.3")
			if d.maps.Load() != maps {
				d.Error("they were mapped again")
			}
			d.want(d.ask(old, "a.org", four), "10.0.0.4 10.0.0.5")
			d.restart()
			d.want(d.taken(new_, "a.org", 1, four), "10.0.0.6-10.0.0.7") // a.org0
			d.want(d.ask(new_, "a.org", four), "10.0.0.1 10.0.0.2 | 10.0.0.1 10.0.0.2")
		}},
		{"by name", func(d *desk) {
			d.ask(old, "b.org", "192.0.2.1")
			d.moves(func(route, name, _ string) (string, bool) { return "new", name == "b.org" })
			d.want(d.routes(), "new: 10.0.0.4, old: 10.0.0.1 10.0.0.2, third: 10.0.0.3")
		}},
		{"an alias, by the name that it has led to last", func(d *desk) {
			toB := func(route, _, by string) (string, bool) { return "new", by == "b.org" }
			d.want(d.askBy(old, "alias.org", "x.org", "192.0.2.1"), "10.0.0.4")
			d.moves(toB)
			d.want(d.routes(), "old: 10.0.0.1 10.0.0.2 10.0.0.4, third: 10.0.0.3")
			d.askBy(old, "alias.org", "B.org", "192.0.2.1") // nothing else is new
			d.moves(toB)
			d.want(d.routes(), "new: 10.0.0.4, old: 10.0.0.1 10.0.0.2, third: 10.0.0.3")
			d.want(d.askBy(new_, "alias.org", "b.org", "192.0.2.1"), "10.0.0.4")
			d.restart()
			d.want(d.askBy(new_, "alias.org", "ALIAS.org", "192.0.2.1"), "10.0.0.4 | 10.0.0.4")
			d.restart()
			d.moves(func(route, name, by string) (string, bool) { return "old", name == "alias.org" && by == name })
			d.want(d.ask(old, "alias.org", "192.0.2.1"), "10.0.0.4 | 10.0.0.4")
		}},
		{"an alias, after a stop and after a crash", func(d *desk) {
			toB := func(to string) func(route, name, by string) (string, bool) {
				return func(_, _, by string) (string, bool) { return to, by == "b.org" }
			}
			d.askBy(old, "alias.org", "b.org", six)
			d.askBy(old, "alias.org", "b.org", four)
			d.restart()
			d.moves(toB("new"))
			d.copied()
			d.moves(toB("third"))
			d.tidy(long)
			d.copied()
			d.moves(toB("new"))
			d.want(d.askBy(new_, "alias.org", "b.org", four), "10.0.0.4 10.0.0.5 | 10.0.0.4 10.0.0.5")
			d.want(d.askBy(new_, "alias.org", "b.org", six), "fd00::1 fd00::2 | fd00::1 fd00::2")
		}},
		{"after a restart, to where they lead by the router", func(d *desk) {
			d.ask(old, "a.org", "192.0.2.9 192.0.2.8") // which the disk need not know
			d.copied()
			d.moves(rename("old", "new"))
			d.want(d.routes(), "new: 10.0.0.1 10.0.0.2, third: 10.0.0.3")
			d.want(d.kernel(), "10.0.0.1>192.0.2.9 10.0.0.2>192.0.2.8 10.0.0.3>192.0.2.1")
			d.want(d.ask(new_, "a.org", four), "10.0.0.1 10.0.0.2 | 10.0.0.1 10.0.0.2")
		}},
		{"no such name can be", func(d *desk) {
			d.want(d.askBy(old, "alias.org", strings.Repeat("b", maxKey+1), four), ErrName.Error())
		}},
		{"to where it is", func(d *desk) {
			d.moves(func(route, name, _ string) (string, bool) { return route, true })
			d.want(d.routes(), "old: 10.0.0.1 10.0.0.2, third: 10.0.0.3")
		}},
		{"a name that is there already", func(d *desk) {
			d.want(d.ask(new_, "a.org", four), "10.0.0.4 10.0.0.5")
			d.moves(rename("old", "new"))
			d.want(d.routes(), "new: 10.0.0.1 10.0.0.2 10.0.0.4 10.0.0.5, third: 10.0.0.3")
			d.want(d.ask(new_, "a.org", four), "10.0.0.4 10.0.0.5")
			for range 2 {
				d.want(d.ask(new_, "a.org", "192.0.2.2 192.0.2.1"), "10.0.0.5 10.0.0.4")
				d.restart()
				d.want(d.ask(new_, "a.org", four), "10.0.0.4 10.0.0.5 | 10.0.0.4 10.0.0.5 10.0.0.1 10.0.0.2")
			}
		}},
		{"two that become one, and one that takes the place of another", func(d *desk) {
			d.ask(third, "a.org", "192.0.2.9")
			d.moves(func(route, name, _ string) (string, bool) { return "new", name == "a.org" })
			d.want(d.routes(), "new: 10.0.0.1 10.0.0.2 10.0.0.4, third: 10.0.0.3")
			d.ask(old, "a.org", "192.0.2.9")
			d.moves(func(route, name, _ string) (string, bool) {
				next := map[string]string{"old": "new", "new": "third"}[route]
				return next, next != "" && name == "a.org"
			})
			d.sound()
		}},
		{"more than a name may have", func(d *desk) {
			wide := []*Route{routed("w1", 40, pools...), routed("w2", 40, pools...)}
			var reals []string
			for i := range 40 {
				reals = append(reals, fmt.Sprintf("198.51.100.%d", i))
			}
			for _, r := range wide {
				d.ask(r, "wide.org", strings.Join(reals, " "))
			}
			d.moves(rename("w1", "w2"))
			d.sound()
			if n := len(d.entry("4w2\x00wide.org").slots); n != MaxSlots {
				d.Errorf("it has %d", n)
			}
			d.restart()
			d.sound()
			d.tidy(long)
			if len(d.resting) != 80-MaxSlots {
				d.Errorf("%d rest", len(d.resting))
			}
		}},
		{"the kernel refuses", func(d *desk) {
			d.router.fails = errors.New("not now")
			if err := d.rehome(rename("old", "new")); !errors.Is(err, d.router.fails) {
				d.Error(err)
			}
			d.router.fails = nil
			d.want(d.ask(new_, "a.org", four), "10.0.0.1 10.0.0.2")
			d.want(d.routes(), "new: 10.0.0.1 10.0.0.2, third: 10.0.0.3")
		}},
		{"what has not been in force is not mapped", func(d *desk) {
			d.restart()
			clear(d.mapped)
			d.moves(rename("old", "new"))
			d.want(d.routes(), "")
			d.want(d.ask(new_, "a.org", four), "10.0.0.1 10.0.0.2 | 10.0.0.1 10.0.0.2")
		}},
		{"no such route can be", func(d *desk) {
			if err := d.rehome(rename("old", "ne\x00w")); !errors.Is(err, ErrName) {
				d.Error(err)
			}
			d.want(d.ask(old, "a.org", four), "10.0.0.1 10.0.0.2")
		}},
		{"answers meanwhile", func(d *desk) {
			for i := range 1500 {
				d.ask(old, fmt.Sprint("many", i), "192.0.2.1")
			}
			stop := make(chan struct{})
			var asking sync.WaitGroup
			for n := range 8 {
				asking.Go(func() {
					for i := n; ; i += 8 {
						select {
						case <-stop:
							return
						default:
							d.ask([]*Route{old, new_}[i%2], fmt.Sprint("many", i%1500), []string{"192.0.2.1", "192.0.2.2"}[i/2%2])
						}
					}
				})
			}
			for range 3 {
				d.moves(rename("old", "new"))
				d.moves(rename("new", "old"))
			}
			close(stop)
			asking.Wait()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.ask(old, "a.org", four)
			d.ask(third, "c.org", "192.0.2.1")
			tt.do(d)
			d.sound()
		})
	}
}

func (d *desk) moves(to func(route, name, _ string) (string, bool)) {
	d.Helper()
	if err := d.rehome(to); err != nil {
		d.Error(err)
	}
}

// rehome moves names to routes with the pools that all have here.
func (d *desk) rehome(to func(route, name, _ string) (string, bool)) error {
	return d.Rehome(context.Background(), func(route, name, by string) *Route {
		if other, ok := to(route, name, by); ok {
			return routed(other, 2, "10.0.0.0/8", "fd00::/64")
		}
		return nil
	})
}

// routes lists the addresses that the kernel has, by route.
func (d *desk) routes() string {
	var lines []string
	for _, route := range []string{"new", "old", "third"} {
		var of []string
		for _, line := range strings.Fields(d.kernel()) {
			a, _, _ := strings.Cut(line, ">")
			d.router.mu.Lock()
			if d.mapped[addrs(a)[0]].Route == route {
				of = append(of, a)
			}
			d.router.mu.Unlock()
		}
		if of != nil {
			lines = append(lines, route+": "+strings.Join(of, " "))
		}
	}
	return strings.Join(lines, ", ")
}
