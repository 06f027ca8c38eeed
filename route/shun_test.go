package route

import (
	"net/netip"
	"testing"
	"time"
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
