package route

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)

// desk is a book with the kernel that it is for, and a clock.
type desk struct {
	*testing.T
	*Book
	*router
	path  string
	time  time.Time
	wait  time.Duration // for answers
	asker uint64
}

func newDesk(t *testing.T) *desk {
	d := &desk{T: t, router: newRouter(), path: filepath.Join(t.TempDir(), "book"), time: epoch, wait: 10 * time.Second}
	d.open()
	t.Cleanup(func() { d.Book.Close() })
	return d
}

func (d *desk) open() {
	d.Helper()
	var err error
	if d.Book, err = Open(d.path, d.router, func() time.Time { return d.time }); err != nil {
		d.Fatal(err)
	}
}

// restart closes the book and opens it again, in a kernel that goes on.
func (d *desk) restart() {
	d.Helper()
	if err := d.Book.Close(); err != nil {
		d.Fatal(err)
	}
	d.open()
}

// copied goes on with the file as it is now, as after a loss of power.
func (d *desk) copied() {
	d.Helper()
	file, err := os.ReadFile(d.path)
	if err != nil {
		d.Fatal(err)
	}
	if err := d.Book.Close(); err != nil {
		d.Fatal(err)
	}
	if err := os.WriteFile(d.path, file, 0o600); err != nil {
		d.Fatal(err)
	}
	d.open()
}

func (d *desk) after(passed time.Duration) { d.time = d.time.Add(passed) }

// ask returns an answer as text: the mapped addresses, and after a bar the stale ones.
func (d *desk) ask(r *Route, name, reals string) string { return d.askBy(r, name, "", reals) }

// askBy is ask for a name that has its route by another one.
func (d *desk) askBy(r *Route, name, by, reals string) string {
	a, err := d.Assign(context.Background(), r, name, by, d.asker, addrs(reals), d.wait)
	if err != nil {
		return err.Error()
	}
	if a.Stale == nil {
		return text(a.Mapped)
	}
	return text(a.Mapped) + " | " + text(a.Stale)
}

func (d *desk) want(got, want string) {
	d.Helper()
	if got != want {
		d.Errorf("got %q, want %q", got, want)
	}
}

// kernel is what is translated, as text.
func (d *desk) kernel() string {
	d.router.mu.Lock()
	defer d.router.mu.Unlock()
	var lines []string
	for _, m := range d.mapped {
		lines = append(lines, fmt.Sprintf("%v>%v", m.Mapped, m.Real))
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

func (d *desk) tidy(unused time.Duration) int {
	d.Helper()
	freed, err := d.Tidy(context.Background(), unused)
	if err != nil {
		d.Error(err)
	}
	return freed
}

func addrs(s string) (a []netip.Addr) {
	for f := range strings.FieldsSeq(s) {
		a = append(a, netip.MustParseAddr(f))
	}
	return a
}

func text(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

// routed is a route with these pools.
func routed(name string, slots int, pools ...string) *Route {
	r := &Route{Name: name, Slots: slots}
	for _, p := range pools {
		r.Pools = append(r.Pools, netip.MustParsePrefix(p))
	}
	return r
}

func TestAssign(t *testing.T) {
	four := routed("r", 4, "100.96.0.0/11", "fd00:2021:1111:8000::/107")
	other := routed("other", 4, four.Pools[0].String(), four.Pools[1].String())
	two := routed("r", 2, four.Pools[0].String(), four.Pools[1].String())
	type answer struct {
		route       *Route
		name, reals string
		want        string
	}
	for _, tt := range []struct {
		name    string
		answers []answer
		kernel  string
	}{
		{"as many as the real ones", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2", "100.96.0.1 100.96.0.2"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.2"},
		{"as many as there are slots", []answer{
			{two, "a.org.", "1.1.1.1 1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.2"},
		{"in the order of the real ones, which stay where they are", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2 100.96.0.3"},
			{four, "a.org.", "1.1.1.3 1.1.1.1 1.1.1.2", "100.96.0.3 100.96.0.1 100.96.0.2"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.2 100.96.0.3>1.1.1.3"},
		{"round robin of more than slots changes nothing", []answer{
			{two, "a.org.", "1.1.1.1 1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2"},
			{two, "a.org.", "1.1.1.3 1.1.1.2 1.1.1.1", "100.96.0.2 100.96.0.1"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.2"},
		{"one goes, one comes: the other stays", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2", "100.96.0.1 100.96.0.2"},
			{four, "a.org.", "1.1.1.2 1.1.1.3", "100.96.0.2 100.96.0.1 | 100.96.0.1 100.96.0.2"},
		}, "100.96.0.1>1.1.1.3 100.96.0.2>1.1.1.2"},
		{"fewer: what is not answered leads somewhere good", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2 100.96.0.3"},
			{four, "a.org.", "1.1.1.2", "100.96.0.1 | 100.96.0.1 100.96.0.2 100.96.0.3"},
		}, "100.96.0.1>1.1.1.2 100.96.0.2>1.1.1.2 100.96.0.3>1.1.1.2"},
		{"fewer, and the first stays where it is", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2", "100.96.0.1 100.96.0.2"},
			{four, "a.org.", "1.1.1.1", "100.96.0.1 | 100.96.0.1 100.96.0.2"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.1"},
		{"fewer and then more: no two answered lead to one", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2", "100.96.0.1 100.96.0.2"},
			{four, "a.org.", "1.1.1.2", "100.96.0.1 | 100.96.0.1 100.96.0.2"},
			{four, "a.org.", "1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2"},
			{four, "a.org.", "1.1.1.3 1.1.1.4", "100.96.0.2 100.96.0.1 | 100.96.0.1 100.96.0.2"}, // the second may be connected to 1.1.1.2
		}, "100.96.0.1>1.1.1.4 100.96.0.2>1.1.1.3"},
		{"more later", []answer{
			{four, "a.org.", "1.1.1.1", "100.96.0.1"},
			{four, "b.org.", "1.1.1.1", "100.96.0.2"},
			{four, "a.org.", "1.1.1.9 1.1.1.1", "100.96.0.3 100.96.0.1"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.1 100.96.0.3>1.1.1.9"},
		{"fewer slots after a reload: all stay mapped", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2 100.96.0.3"},
			{two, "a.org.", "1.1.1.1 1.1.1.2 1.1.1.3", "100.96.0.1 100.96.0.2"},
			{two, "a.org.", "1.1.1.4 1.1.1.5", "100.96.0.1 100.96.0.2 | 100.96.0.1 100.96.0.2 100.96.0.3"},
		}, "100.96.0.1>1.1.1.4 100.96.0.2>1.1.1.5 100.96.0.3>1.1.1.4"},
		{"the same one twice counts once", []answer{
			{four, "a.org.", "1.1.1.1 1.1.1.1", "100.96.0.1"},
			{four, "a.org.", "1.1.1.1 1.1.1.1", "100.96.0.1"},
		}, "100.96.0.1>1.1.1.1"},
		{"names are told apart, their case is not", []answer{
			{four, "a.org.", "1.1.1.1", "100.96.0.1"},
			{four, "b.org.", "1.1.1.1", "100.96.0.2"},
			{four, "A.oRg.", "1.1.1.1", "100.96.0.1"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.1"},
		{"routes are told apart", []answer{
			{four, "a.org.", "1.1.1.1", "100.96.0.1"},
			{other, "a.org.", "1.1.1.1", "100.96.0.2"},
			{four, "a.org.", "1.1.1.1", "100.96.0.1"},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.1"},
		{"IP versions are told apart", []answer{
			{four, "a.org.", "1.1.1.1", "100.96.0.1"},
			{four, "a.org.", "2001:db8::1 2001:db8::2", "fd00:2021:1111:8000::1 fd00:2021:1111:8000::2"},
			{four, "a.org.", "1.1.1.1", "100.96.0.1"},
		}, "100.96.0.1>1.1.1.1 fd00:2021:1111:8000::1>2001:db8::1 fd00:2021:1111:8000::2>2001:db8::2"},
		{"an IPv4 address that is written as an IPv6 one", []answer{
			{four, "a.org.", "::ffff:1.1.1.1", "fd00:2021:1111:8000::1"},
			{four, "a.org.", "::ffff:1.1.1.1", "fd00:2021:1111:8000::1"},
		}, "fd00:2021:1111:8000::1>::ffff:1.1.1.1"},
		{"bytes of all kinds", []answer{
			{four, "\x00\xff|\x00.", "1.1.1.1", "100.96.0.1"},
			{four, "\x00\xff|\x00", "1.1.1.1", "100.96.0.2"},
			{four, "", "1.1.1.1", "100.96.0.3"},
			{four, strings.Repeat("x", 255), "1.1.1.1", "100.96.0.4"},
			{four, strings.Repeat("x", 2000), "1.1.1.1", ErrName.Error()},
		}, "100.96.0.1>1.1.1.1 100.96.0.2>1.1.1.1 100.96.0.3>1.1.1.1 100.96.0.4>1.1.1.1"},
		{"nothing for nothing", []answer{{four, "a.org.", "", ""}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			for _, a := range tt.answers {
				d.want(d.ask(a.route, a.name, a.reals), a.want)
				maps := d.maps.Load()
				again := d.ask(a.route, a.name, a.reals)
				d.want(again, strings.Split(a.want, " |")[0])
				if d.maps.Load() != maps {
					t.Errorf("%s: the same answer again was mapped again", a.want)
				}
			}
			d.want(d.kernel(), tt.kernel)
		})
	}
}

// What the kernel has refused, or may have lost, is mapped again with the next answer.
func TestMappedAgain(t *testing.T) {
	r := routed("r", 4, "100.96.0.0/11")
	d := newDesk(t)
	d.ask(r, "a.org.", "1.1.1.1 1.1.1.2")
	d.ask(r, "a.org.", "1.1.1.1")

	d.router.fails = fmt.Errorf("not now")
	d.want(d.ask(r, "a.org.", "1.1.1.3"), "not now")
	d.want(d.ask(r, "new.org.", "1.1.1.3"), "not now")
	d.want(d.ask(r, "new.org.", "1.1.1.3"), "not now")
	d.router.fails = nil
	clear(d.mapped)
	d.want(d.ask(r, "a.org.", "1.1.1.3"), "100.96.0.1 | 100.96.0.1 100.96.0.2")
	d.want(d.ask(r, "new.org.", "1.1.1.3"), "100.96.0.3 | 100.96.0.3")
	all := "100.96.0.1>1.1.1.3 100.96.0.2>1.1.1.3 100.96.0.3>1.1.1.3"
	d.want(d.kernel(), all)

	d.router.epoch.Add(1)
	clear(d.mapped)
	d.want(d.ask(r, "a.org.", "1.1.1.3"), "100.96.0.1")
	d.want(d.ask(r, "new.org.", "1.1.1.3"), "100.96.0.3")
	d.want(d.kernel(), all)

	d.restart()
	clear(d.mapped)
	// Nobody knows what has happened meanwhile, so what is connected is looked at.
	d.want(d.ask(r, "a.org.", "1.1.1.3"), "100.96.0.1 | 100.96.0.1 100.96.0.2")
	d.want(d.ask(r, "a.org.", "1.1.1.3"), "100.96.0.1")
	d.want(d.ask(r, "new.org.", "1.1.1.3"), "100.96.0.3 | 100.96.0.3")
	d.want(d.kernel(), all)
}

// Where addresses lead is known after a restart, so it stays so.
func TestLeadsAfterRestart(t *testing.T) {
	r := routed("r", 2, "10.0.0.0/8", "fd00::/64")
	d := newDesk(t)
	d.ask(r, "a.org.", "192.0.2.1 192.0.2.2 192.0.2.3")
	d.ask(r, "a.org.", "2001:db8::1 2001:db8::2 ::ffff:192.0.2.3")
	d.restart()
	d.want(d.ask(r, "a.org.", "192.0.2.3 192.0.2.2 192.0.2.1"), "10.0.0.2 10.0.0.1 | 10.0.0.1 10.0.0.2")
	d.want(d.ask(r, "a.org.", "::ffff:192.0.2.3 2001:db8::2 2001:db8::1"), "fd00::2 fd00::1 | fd00::1 fd00::2")
}

func TestNameOf(t *testing.T) {
	r := routed("r", 4, "100.96.0.0/11", "fd00::/64")
	d := newDesk(t)
	d.ask(r, "A.org.", "1.1.1.1")
	d.ask(r, "b.\x00\xff.", "2001:db8::1")
	for _, restarted := range []string{"", " after a restart"} {
		for addr, want := range map[string]string{
			"100.96.0.1": "a.org.", "fd00::1": "b.\x00\xff.", "100.96.0.2": "", "100.96.1.0": "", "::ffff:100.96.0.1": "a.org.", "fd00::": "",
		} {
			if name, ok := d.NameOf(netip.MustParseAddr(addr)); name != want || ok != (want != "") {
				t.Errorf("%s%s is %q, want %q", addr, restarted, name, want)
			}
		}
		for addr, want := range map[string]string{"100.96.0.1": "1.1.1.1", "fd00::1": "2001:db8::1", "100.96.0.2": ""} {
			place, ok := d.PlaceOf(netip.MustParseAddr(addr))
			if ok != (want != "") || ok && (place.Route != r.Name || place.Real != netip.MustParseAddr(want)) {
				t.Errorf("%s%s leads by %q to %v", addr, restarted, place.Route, place.Real)
			}
		}
		d.restart()
	}
}
