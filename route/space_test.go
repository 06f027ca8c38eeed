package route

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// taken asks for so many new names and returns what they get, ranges as first-last.
func (d *desk) taken(r *Route, prefix string, n int, reals string) string {
	var got []string
	var first, last netip.Addr
	flush := func() {
		if first.IsValid() && first != last {
			got = append(got, fmt.Sprintf("%v-%v", first, last))
		} else if first.IsValid() {
			got = append(got, first.String())
		}
		first, last = netip.Addr{}, netip.Addr{}
	}
	for i := range n {
		answer, _, _ := strings.Cut(d.ask(r, fmt.Sprint(prefix, i), reals), " | ")
		for f := range strings.SplitSeq(answer, " ") {
			a, err := netip.ParseAddr(f)
			if err != nil {
				flush()
				if len(got) == 0 || got[len(got)-1] != answer {
					got = append(got, answer)
				}
				break
			}
			if !first.IsValid() || a != last.Next() {
				flush()
				first = a
			}
			last = a
		}
	}
	flush()
	return strings.Join(got, ", ")
}

const four, six = "192.0.2.1 192.0.2.2", "2001:db8::1 2001:db8::2"

func TestSequence(t *testing.T) {
	full := ErrPoolFull.Error()
	for _, tt := range []struct {
		name  string
		route *Route
		reals string
		names int
		want  string
	}{
		{"all of a network but its ends", routed("r", 2, "10.0.0.0/29"), four, 5, "10.0.0.1-10.0.0.6, " + full},
		{"the last name gets what is left", routed("r", 4, "10.0.0.0/29"), "1.1.1.1 1.1.1.2 1.1.1.3 1.1.1.4", 3, "10.0.0.1-10.0.0.6, " + full},
		{"all of two, which has no ends", routed("r", 2, "10.0.0.4/31"), four, 2, "10.0.0.4-10.0.0.5, " + full},
		{"one", routed("r", 2, "10.0.0.4/32"), four, 2, "10.0.0.4, " + full},
		{"as written with host bits", routed("r", 2, "10.0.0.5/30"), four, 2, "10.0.0.5-10.0.0.6, " + full},
		{"one pool after the other", routed("r", 2, "10.0.1.0/30", "10.0.0.0/30", "fd00::/64"), four, 3, "10.0.0.1-10.0.0.2, 10.0.1.1-10.0.1.2, " + full},
		{"sentinels are left out", routed("r", 2, "100.100.110.252/30", "100.100.111.0/24", "100.100.112.0/29"), four, 3, "100.100.110.253-100.100.110.254, 100.100.112.1-100.100.112.4"},
		{"metadata is left out", routed("r", 2, "100.100.100.192/28"), four, 5, "100.100.100.193-100.100.100.199, 100.100.100.201-100.100.100.203"},
		{"a cloud's name servers are left out", routed("r", 2, "100.100.2.128/28"), four, 6, "100.100.2.129-100.100.2.135, 100.100.2.137, 100.100.2.139-100.100.2.142"},
		{"nothing but sentinels", routed("r", 2, "100.100.111.16/28"), four, 1, full},
		{"IPv6: all but the first", routed("r", 2, "fd00::/126"), six, 3, "fd00::1-fd00::3, " + full},
		{"IPv6: sentinels are left out", routed("r", 2, "fd00:2021:1111:8000:100:100:111:0/119"), six, 256, "fd00:2021:1111:8000:100:100:111:100-fd00:2021:1111:8000:100:100:111:1ff, " + full},
		{"IPv6: a pool without end", routed("r", 2, "fd00::/8"), six, 3, "fd00::1-fd00::6"},
		{"the last addresses there are", routed("r", 2, "255.255.255.252/30"), four, 2, "255.255.255.253-255.255.255.254, " + full},
		{"no pool of that version", routed("r", 2, "10.0.0.0/8"), six, 1, full},
		{"no pool", routed("r", 2), six, 1, full},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.want(d.taken(tt.route, "a", tt.names, tt.reals), tt.want)
			d.want(d.taken(tt.route, "a", tt.names, tt.reals), tt.want)
			d.restart()
			d.want(d.taken(tt.route, "a", tt.names, tt.reals), tt.want)
		})
	}
}

func TestSize(t *testing.T) {
	for pool, want := range map[string]uint64{
		"10.0.0.0/32": 1, "10.0.0.0/31": 2, "10.0.0.0/30": 2, "10.0.0.0/24": 254, "100.64.0.0/10": 1<<22 - 2 - 256 - 3,
		"100.100.111.0/24": 0, "100.100.111.128/25": 0, "100.100.110.0/23": 255, "0.0.0.0/0": 1<<32 - 2 - 256 - 3,
		"fd00::/128": 1, "fd00::/127": 2, "fd00::/126": 3, "fd00:2021:1111:8000::/107": 1<<21 - 1,
		"fd00:2021:1111:8000:100:100:111:0/119": 256, "fd00:2021:1111:8000:100:100:111:10/124": 0, "fd01::/16": 1<<63 - 1,
	} {
		p := netip.MustParsePrefix(pool)
		if got := size(p); got != want {
			t.Errorf("%v has room for %d, want %d", p, got, want)
		}
		if want > 300 {
			continue
		}
		counted := uint64(0)
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			if !skipped(p, a) {
				counted++
			}
		}
		if counted != want {
			t.Errorf("%v has %d, want %d", p, counted, want)
		}
	}
}

// The whole of the default IPv6 pool can be had, and then what was given back.
func TestSequenceOfAllOfIPv6(t *testing.T) {
	s := &space{version: 1, pools: []netip.Prefix{netip.MustParsePrefix("fd00:2021:1111:8000::/107")}}
	s.next = s.pools[0].Addr()
	p := &pages{at: make(map[[15]byte]*page)}
	want := netip.MustParseAddr("fd00:2021:1111:8000::")
	for n := range 1<<21 - 1 {
		want = want.Next()
		if a, ok := s.takeLocked(p); !ok || a != want.As16() {
			t.Fatalf("the %dth is %v (%v), want %v", n, netip.AddrFrom16(a), ok, want)
		}
	}
	s.back = []rest{{addr: ip{1}}}
	if a, ok := s.takeLocked(p); !ok || a != (ip{1}) {
		t.Error("what was given back is not had")
	}
	if _, ok := s.takeLocked(p); ok {
		t.Error("there are more than there are")
	}
}

func TestShares(t *testing.T) {
	const share = "names that the asker was the first to ask for have half of the free addresses already"
	type step struct {
		asker uint64
		names int
		want  string
	}
	for _, tt := range []struct {
		name  string
		max   int
		steps []step
	}{
		{"nobody in particular has all", 0, []step{{0, 8, "10.0.0.1-10.0.0.14, " + ErrPoolFull.Error()}}},
		{"somebody has half, the next one a quarter", 0, []step{
			{1, 8, "10.0.0.1-10.0.0.7, " + share},
			{2, 8, "10.0.0.8-10.0.0.11, " + share},
			{3, 8, "10.0.0.12-10.0.0.13, " + share},
			{1, 3, "10.0.0.1-10.0.0.6"},
			{0, 1, "10.0.0.14"},
		}},
		{"half of what may be", 8, []step{
			{1, 8, "10.0.0.1-10.0.0.4, " + share},
			{0, 8, "10.0.0.5-10.0.0.8, " + ErrPoolFull.Error()},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.SetMax(tt.max)
			r := routed("r", 2, "10.0.0.0/28")
			for _, s := range tt.steps {
				d.asker = s.asker
				d.want(d.taken(r, fmt.Sprint("asker", s.asker, "-"), s.names, four), s.want)
			}
		})
	}
}

// What others have asked for first does not count for those who ask later, and a share
// comes back with the addresses.
func TestShareComesBack(t *testing.T) {
	d := newDesk(t)
	r := routed("r", 2, "10.0.0.0/28")
	d.asker = 1
	d.taken(r, "a", 8, four)
	d.asker = 2
	d.taken(r, "a", 4, four)
	d.want(d.taken(r, "b", 1, four), "10.0.0.8-10.0.0.9")
	d.after(48 * time.Hour)
	d.tidy(48 * time.Hour)
	d.after(time.Minute)
	if freed := d.tidy(48 * time.Hour); freed != 9 {
		t.Errorf("%d are free, want 9", freed)
	}
	d.asker = 1
	d.want(d.taken(r, "c", 8, four), "10.0.0.10-10.0.0.14, 10.0.0.1-10.0.0.2, "+ErrShare.Error())
}

func TestMax(t *testing.T) {
	d := newDesk(t)
	r := routed("r", 2, "10.0.0.0/8", "fd00::/8")
	d.SetMax(3)
	d.want(d.taken(r, "a", 3, four), "10.0.0.1-10.0.0.3, "+ErrPoolFull.Error())
	d.want(d.taken(r, "a", 3, six), "fd00::1-fd00::3, "+ErrPoolFull.Error())
	d.SetMax(2)
	d.want(d.taken(r, "a", 3, four), "10.0.0.1-10.0.0.3, "+ErrPoolFull.Error())
	d.SetMax(4)
	d.want(d.taken(r, "a", 3, four), "10.0.0.1-10.0.0.4, "+ErrPoolFull.Error())
	d.SetMax(0)
	d.want(d.taken(r, "a", 3, four), "10.0.0.1-10.0.0.6")
	ipv4, ipv6 := d.Len()
	if ipv4 != (Count{6, 1<<24 - 2 - 6}) || ipv6.Mapped != 3 || ipv6.Free < 1<<62 {
		t.Errorf("counts %v and %v", ipv4, ipv6)
	}
}

func TestPoolsOfNow(t *testing.T) {
	d := newDesk(t)
	first := routed("r", 2, "10.0.0.0/28")
	other := routed("r", 2, "10.1.0.0/28")
	both := routed("r", 2, "10.0.0.0/27")
	d.want(d.taken(first, "a", 3, four), "10.0.0.1-10.0.0.6")

	// Names move when they are asked for, and keep what they had until Tidy.
	d.want(d.ask(other, "a0", four), "10.1.0.1 10.1.0.2")
	d.Use([]*Route{other})
	if ipv4, _ := d.Len(); ipv4 != (Count{8, 12}) {
		t.Errorf("counts %v", ipv4)
	}
	d.tidy(long)
	for hour := range 48 { // clients may still have been granted them
		if freed := d.tidy(long); freed != 0 {
			t.Errorf("%d are free after %d hours", freed, hour)
		}
		d.after(time.Hour)
		d.want(d.taken(other, "a", 1, four), "10.1.0.1-10.1.0.2")
		d.ask(first, "a1", four)
		d.ask(first, "a2", four)
		if hour == 20 {
			d.restart()
		}
	}
	if freed := d.tidy(long); freed != 2 {
		t.Errorf("%d are free, want 2", freed)
	}
	d.want(d.kernel(), "10.0.0.3>192.0.2.1 10.0.0.4>192.0.2.2 10.0.0.5>192.0.2.1 10.0.0.6>192.0.2.2 10.1.0.1>192.0.2.1 10.1.0.2>192.0.2.2")

	// Pools that have grown go on where they were, and know what is in use.
	d.want(d.ask(both, "a1", four), "10.0.0.3 10.0.0.4")
	d.want(d.taken(both, "b", 13, four), "10.0.0.7-10.0.0.30, 10.0.0.1-10.0.0.2")
	d.want(d.ask(both, "c", four), ErrPoolFull.Error())
	d.want(d.ask(first, "a1", four), "10.0.0.3 10.0.0.4")
	d.want(d.ask(first, "c", four), ErrPoolFull.Error())
	d.Use([]*Route{both, other})
	if ipv4, _ := d.Len(); ipv4 != (Count{32, 12}) {
		t.Errorf("counts %v", ipv4)
	}
	d.restart()
	d.want(d.ask(both, "c", four), ErrPoolFull.Error())
}
