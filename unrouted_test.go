package ipdestinationguard

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// open lists the addresses that somebody may connect to.
func (r *rig) open() (addrs []string) {
	r.Helper()
	for line := range strings.Lines(r.grantsText()) {
		addr, _, _ := strings.Cut(line, " ")
		addrs = append(addrs, addr)
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// Whoever remembers a mapped address that no route has any more does not send there by
// whatever way the machine has; all others stay open.
func TestUnroutedAddressesAreShut(t *testing.T) {
	const (
		stays = "route **.b.test {\npool 10.9.0.0/16 fd09::/64\n}\n"
		goes  = "route **.routed.test\n"
		all   = "10.9.0.1 100.96.0.1 9.9.9.11"
	)
	block := func(options string) string { return "ipdestinationguard {\nmode nft-both\n" + options + "}" }
	for _, tt := range []struct{ name, after, open string }{
		{"all routes", "", "9.9.9.11"},
		{"one of two", stays, "10.9.0.1 9.9.9.11"},
		{"none", stays + goes, all},
		{"its pool", stays + "route **.routed.test {\npool 100.97.0.0/16\n}\n", "10.9.0.1 9.9.9.11"},
		{"a part of its pool", stays + "route **.routed.test {\npool 100.96.0.0/16\n}\n", all},
		{"its names", stays + "route other.test\n", all}, // nothing is mapped there, so it is refused
	} {
		for how, change := range map[string]func(*rig, string){"reload": (*rig).arm, "restart": (*rig).restart} {
			t.Run(tt.name+" goes by a "+how, func(t *testing.T) {
				r := newRig(t, block(stays+goes))
				r.wantText(r.ask(), wwwMapped)
				r.at("127.0.0.1").ask("www.b.test. A", "www.b.test. 30 A 9.9.9.10")
				r.at("127.0.0.1").ask("www.c.test. A", "www.c.test. 30 A 9.9.9.11")
				change(r, block(tt.after))
				if got := strings.Join(r.open(), " "); got != tt.open {
					t.Errorf("open are %s, want %s", got, tt.open)
				}
			})
		}
	}
}

// Nor does an answer of the old Corefile open one that is on its way when it goes.
func TestUnroutedAddressesStayShut(t *testing.T) {
	r := newRig(t, routedBoth)
	r.ask()
	release := r.kernel.Stall()
	var both sync.WaitGroup
	both.Go(func() { r.at("10.0.0.1").ask("www.routed.test. A", wwwAnswer) })
	time.Sleep(50 * time.Millisecond) // it waits for the kernel
	s := r.settingsOf("ipdestinationguard nft-both")
	both.Go(func() {
		if err := r.guard.arm(s); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(50 * time.Millisecond) // that waits for the answer
	release()
	both.Wait()
	if open := r.open(); len(open) > 0 {
		t.Errorf("%s is open", open)
	}
}
