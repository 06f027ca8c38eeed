package route

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// shun is Shun of addresses that somebody may connect to.
func (d *desk) shun(addrs ...string) {
	d.Helper()
	d.granted = map[netip.Addr]bool{}
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
		d.granted[netip.MustParseAddr(a)] = true
	}
	if err := d.Shun(d.Context(), all); err != nil {
		d.Error(err)
	}
}

// What another book has given out is strange until it is settled, also after a crash.
func TestEstranged(t *testing.T) {
	d := newDesk(t)
	one, two := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")
	check := func(want ...netip.Prefix) {
		t.Helper()
		for range 2 {
			if got := d.Strange(); !slices.Equal(got, want) {
				t.Errorf("strange: %v, want %v", got, want)
			}
			d.copied()
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(everything...)
	do(d.Settled())
	check()
	do(d.Estranged(one))
	do(d.Estranged())
	check(one)
	do(d.Estranged(one, two))
	check(one, two)
	do(d.Settled())
	check()
	for _, record := range []string{"\x01", "10.0.0.0/8 fd"} { // as it was first, and damaged
		do(d.store.do(t.Context(), func(tx *bolt.Tx) error { return put(tx, bucketBook, keyStrange, []byte(record)) }))
		d.copied()
		check(everything...)
	}
}

func TestShun(t *testing.T) {
	r := routed("r", 2, "10.0.0.0/29")
	full := ErrPoolFull.Error()
	for _, tt := range []struct {
		name string
		do   func(d *desk)
	}{
		{"what nobody has had is not given out", func(d *desk) {
			d.shun("10.0.0.1", "10.0.0.4")
			d.want(d.ask(r, "a.org", four), "10.0.0.2 10.0.0.3")
			d.want(d.ask(r, "b.org", four), "10.0.0.5 10.0.0.6")
			d.want(d.ask(r, "c.org", four), full)
		}},
		{"after a restart neither, until it is shut", func(d *desk) {
			d.shun("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6")
			granted := d.granted
			d.restart()
			d.granted = granted
			d.want(d.ask(r, "a.org", four), full)
			d.after(time.Hour)
			d.tidy(long)
			d.want(d.ask(r, "a.org", four), full)
			d.granted = nil
			d.after(time.Minute)
			d.tidy(long)
			d.want(d.ask(r, "a.org", four), "10.0.0.1 10.0.0.2")
		}},
		{"who has it, has others", func(d *desk) {
			d.ask(r, "a.org", four)
			d.shun("10.0.0.2", "9.9.9.9")
			d.want(d.ask(r, "a.org", four), "10.0.0.3 10.0.0.4")
			d.tidy(long)
			d.granted = nil
			d.after(time.Minute)
			d.tidy(long)
			d.want(d.ask(r, "b.org", four), "10.0.0.5 10.0.0.6")
			d.want(d.ask(r, "c.org", four), "10.0.0.1 10.0.0.2")
		}},
		{"who had it has lost it, also after a crash", func(d *desk) {
			d.ask(r, "a.org", four)
			d.shun("10.0.0.2")
			granted := d.granted
			d.copied()
			d.granted = granted
			d.want(d.ask(r, "a.org", four), "10.0.0.3 10.0.0.4")
		}},
		{"what had been given back waits once more", func(d *desk) {
			d.ask(r, "a.org", four)
			d.ask(r, "b.org", four)
			d.ask(r, "c.org", four)
			d.after(long)
			d.tidy(long)
			d.after(time.Minute)
			if free := d.tidy(long); free != 6 {
				d.Errorf("%d are free", free)
			}
			d.shun("10.0.0.2", "10.0.0.5")
			d.want(d.ask(r, "d.org", four), "10.0.0.1 10.0.0.3")
			d.want(d.ask(r, "e.org", four), "10.0.0.4 10.0.0.6")
			d.want(d.ask(r, "f.org", four), full)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			tt.do(d)
			d.sound()
		})
	}
}
