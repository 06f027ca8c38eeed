package route

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"
)

const long = 48 * time.Hour

// connect is a client that connects through a mapped address.
func (r *router) connect(mapped string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connectLocked(mapped)
}

func (r *router) connectLocked(mapped string) {
	m := r.mapped[netip.MustParseAddr(mapped)]
	r.live[[2]netip.Addr{m.Mapped, m.Real}] = true
}

func (d *desk) tidied(freed int, kernel string) {
	d.Helper()
	if got := d.tidy(long); got != freed {
		d.Errorf("%d addresses are free, want %d", got, freed)
	}
	d.want(d.kernel(), kernel)
}

func TestTidy(t *testing.T) {
	r := routed("r", 2, "10.0.0.0/29")
	const a, b = "10.0.0.1>192.0.2.1 10.0.0.2>192.0.2.2", "10.0.0.3>192.0.2.1 10.0.0.4>192.0.2.2"
	for _, tt := range []struct {
		name string
		do   func(d *desk) // with a.org, which has the first two addresses
	}{
		{"what is used stays", func(d *desk) {
			d.after(long - time.Second)
			d.tidied(0, a)
			d.ask(r, "a.org", "192.0.2.2 192.0.2.1")
			d.after(long - time.Second)
			d.tidied(0, a)
			d.after(time.Second)
			d.tidied(0, "")
		}},
		{"two looks, a minute between them", func(d *desk) {
			d.after(long)
			d.tidied(0, "")
			d.after(59 * time.Second)
			d.tidied(0, "")
			d.after(time.Second)
			d.tidied(2, "")
			d.after(time.Hour)
			d.tidied(0, "")
		}},
		{"a name that comes back has others, while its old ones rest", func(d *desk) {
			d.after(long)
			d.tidied(0, "")
			d.want(d.ask(r, "a.org", four), "10.0.0.3 10.0.0.4")
			d.after(time.Minute)
			d.tidied(2, b)
			d.want(d.ask(r, "a.org", four), "10.0.0.3 10.0.0.4")
		}},
		{"what rests is nobody's, also where there is nothing else", func(d *desk) {
			d.ask(r, "b.org", four)
			d.ask(r, "c.org", four)
			d.after(long)
			d.tidied(0, "")
			d.want(d.ask(r, "d.org", four), ErrPoolFull.Error())
			d.restart()
			d.want(d.ask(r, "d.org", four), ErrPoolFull.Error())
			d.after(time.Hour)
			d.tidied(0, "")
			d.after(time.Minute)
			d.tidied(6, "")
			d.want(d.ask(r, "d.org", four), "10.0.0.1 10.0.0.2")
		}},
		{"a connection keeps the name", func(d *desk) {
			d.connect("10.0.0.2")
			d.after(10 * long)
			d.tidied(0, a)
			d.tidied(0, a)
			clear(d.live)
			d.tidied(0, "")
		}},
		{"a grant keeps the name, and what rests", func(d *desk) {
			d.granted = map[netip.Addr]bool{netip.MustParseAddr("10.0.0.2"): true}
			d.after(10 * long)
			d.tidied(0, a)
			granted := d.granted
			d.granted = nil
			d.tidied(0, "")
			d.granted = granted
			d.after(time.Minute)
			d.tidied(1, "")
			d.granted = nil
			d.tidied(1, "")
		}},
		{"a name that is asked for in the last moment keeps its addresses", func(d *desk) {
			d.after(long)
			d.router.onLook = func() { d.want(d.ask(r, "a.org", four), "10.0.0.1 10.0.0.2") }
			d.tidied(0, a)
			d.after(time.Minute)
			d.tidied(0, a)
		}},
		{"what connects in the last moment is ended", func(d *desk) {
			d.after(long)
			d.router.onUnmap = func() { d.connectLocked("10.0.0.2") }
			d.tidied(0, "")
			if len(d.live) != 0 {
				d.Error("it lives")
			}
			d.after(time.Minute)
			d.tidied(2, "")
		}},
		{"what is still connected when it has rested is ended, and rests on", func(d *desk) {
			d.after(long)
			d.tidied(0, "")
			d.live[[2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")}] = true
			d.after(time.Minute)
			d.tidied(1, "")
			if len(d.live) != 0 {
				d.Error("it lives")
			}
			d.tidied(1, "")
		}},
		{"the kernel refuses to forget", func(d *desk) {
			d.after(long)
			d.router.fails = errors.New("not now")
			for range 3 {
				if freed, err := d.Tidy(context.Background(), long); freed != 0 || !errors.Is(err, d.router.fails) {
					d.Error(freed, err)
				}
				d.after(time.Hour)
			}
			d.router.fails = nil
			d.tidied(0, "")
			d.after(time.Minute)
			d.tidied(2, "")
		}},
		{"the kernel is not asked when there is nothing to do", func(d *desk) {
			d.router.looks = 0
			d.tidied(0, a)
			if d.router.looks != 0 {
				d.Error("it was asked")
			}
		}},
		{"times of use survive a restart", func(d *desk) {
			d.after(long)
			d.restart()
			d.tidied(0, a) // who knows what the clock was
			d.after(time.Hour)
			d.tidied(0, "")
		}},
		{"and so they do when nothing was closed", func(d *desk) {
			d.tidied(0, a)
			d.copied()
			d.after(long)
			d.restart()
			d.after(time.Hour)
			d.tidied(0, "")
		}},
		{"a clock that was wrong", func(d *desk) {
			d.restart()
			now := d.time
			d.time = time.Unix(0, 0)
			d.restart()
			d.tidied(0, a)
			d.ask(r, "a.org", four)
			d.Book.Close()
			d.time = now
			d.open()
			d.tidied(0, a)
			d.ask(r, "a.org", four)
			d.after(long - 1)
			d.tidied(0, a)
			d.after(1)
			d.tidied(0, "")
		}},
		{"an end between the disk and the kernel", func(d *desk) {
			d.after(long)
			d.router.fails = errors.New("not now")
			d.Tidy(context.Background(), long)
			d.router.fails = nil
			d.want(d.kernel(), a)
			d.restart()
			d.want(d.ask(r, "a.org", four), "10.0.0.3 10.0.0.4")
			d.tidied(0, b)
			d.after(time.Minute)
			d.tidied(2, b)
		}},
		{"a name that gets another's address is not as old as that", func(d *desk) {
			d.after(long)
			d.ask(r, "b.org", four)
			d.ask(r, "c.org", four)
			d.tidied(0, b+" 10.0.0.5>192.0.2.1 10.0.0.6>192.0.2.2")
			d.after(time.Minute)
			d.tidied(2, b+" 10.0.0.5>192.0.2.1 10.0.0.6>192.0.2.2")
			d.want(d.ask(r, "d.org", four), "10.0.0.1 10.0.0.2")
			d.copied()
			d.after(time.Hour)
			d.tidied(0, a+" "+b+" 10.0.0.5>192.0.2.1 10.0.0.6>192.0.2.2")
		}},
		{"an answer that has found the name just before gives nothing of it", func(d *desk) {
			e := d.entry("4r\x00a.org")
			d.after(long)
			d.tidied(0, "")
			if got := e.unchanged(r, "", addrs(four), d.Epoch()+1, d.since()); got != nil {
				d.Error(got)
			}
			if got := d.entry("4r\x00a.org"); got != nil {
				d.Error(got)
			}
		}},
		{"the oldest is had first", func(d *desk) {
			d.after(time.Hour)
			d.ask(r, "b.org", four)
			d.after(time.Hour)
			d.ask(r, "c.org", four)
			d.after(time.Minute)
			d.ask(r, "a.org", four)
			for range 300 {
				d.after(time.Hour / 2)
				d.tidy(long)
			}
			d.want(d.taken(r, "d", 4, four), "10.0.0.3-10.0.0.6, 10.0.0.1-10.0.0.2, "+ErrPoolFull.Error())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.want(d.ask(r, "a.org", four), "10.0.0.1 10.0.0.2")
			tt.do(d)
			d.sound()
		})
	}
}

// sound checks what the book says of itself.
func (d *desk) sound() {
	d.Helper()
	d.Book.mu.Lock()
	defer d.Book.mu.Unlock()
	count := d.count
	for _, h := range d.leaving {
		count[h.version]--
	}
	for _, r := range d.resting {
		if d.pages[versionOf(r.addr)].get(r.addr) != isResting {
			d.Errorf("%v rests, but not in the pages", netip.AddrFrom16(r.addr))
		}
		if r.mapped {
			count[versionOf(r.addr)]--
		}
	}
	for i := range d.shards {
		for key, e := range d.shards[i].entries {
			if e.dead || e.key != key || len(e.slots) == 0 || e.turn != nil {
				d.Errorf("entry %q is left behind: %+v", key, e)
			}
			for _, s := range e.slots {
				count[e.version()]--
				if d.pages[e.version()].get(s.mapped) != e {
					d.Errorf("%v is not that of %q in the pages", netip.AddrFrom16(s.mapped), key)
				}
			}
		}
	}
	if count != [2]int{} {
		d.Errorf("addresses of names are %v more or less than there are", count)
	}
	for _, s := range d.spaces {
		want := uint64(0)
		for _, p := range s.pools {
			want = add(want, size(p))
		}
		d.pages[s.version].each(func(a ip, e *entry) {
			if e != isFree && contains(s.pools, addrOf(s.version, a)) {
				want--
			}
		})
		if s.free != want {
			d.Errorf("%v: %d are free, want %d", s.pools, s.free, want)
		}
	}
}
