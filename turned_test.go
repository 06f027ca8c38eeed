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
	r.eventually("it waits for the kernel", func() bool { return r.kernel.Waiting() == 1 })
	s := r.settingsOf("ipdestinationguard nft-both")
	was, armed := r.guard.routing.Load(), make(chan bool)
	both.Go(func() {
		if err := r.guard.arm(s); err != nil {
			t.Error(err)
		}
		close(armed)
	})
	r.eventually("it is armed anew", func() bool { return r.guard.routing.Load() != was })
	select {
	case <-armed:
		t.Error("that has not waited for the answer")
	case <-time.After(50 * time.Millisecond):
	}
	release()
	both.Wait()
	if open := r.open(); len(open) > 0 {
		t.Errorf("%s is open", open)
	}
}

// Whoever controls a name has what is to become a mapped address opened to himself before, and
// would get to the name's server that has it then.
func TestAddressesOpenBeforeTheyAreMapped(t *testing.T) {
	const (
		alone = "route **.b.test {\npool 10.9.0.0/16\n}\n"
		plain = "ipdestinationguard nft-both"
	)
	block := func(options string) string { return "ipdestinationguard {\nmode nft-both\n" + options + "}" }
	public := "route **.routed.test {\npool 9.9.8.0/24\n}\n"
	for _, tt := range []struct{ name, first, before, after string }{
		{"a pool in a book that there was", "", block(alone), block(alone + public)},
		{"a pool that comes back", block(public), plain, block(public)},
		{"another pool of a route", "", block("route **.routed.test {\npool 10.9.0.0/16\n}\n"), block(public)},
		{"a new book", "", plain, block(public)},
	} {
		for how, change := range map[string]func(*rig, string){"reload": (*rig).arm, "restart": (*rig).restart} {
			t.Run(tt.name+" by a "+how, func(t *testing.T) {
				r := newRig(t, tt.before)
				if tt.first != "" {
					r.arm(tt.first)
					r.ask()
					change(r, tt.before)
				}
				r.at("10.0.0.66").ask("evil.test. A", "evil.test. 80000 A 9.9.8.1")
				change(r, tt.after)
				answer := r.ask()
				if strings.Contains(r.grantsText(), "9.9.8.1 to 10.0.0.66") && strings.Contains(answer, "9.9.8.1\n") {
					t.Errorf("open to somebody else:\n%sanswer: %s", r.grantsText(), answer)
				}
			})
		}
	}
}

// Nor does an answer open one that is on its way when the route comes, or has been looked at.
func TestAddressesStayShutOnceTheyAreMapped(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-both")
	s := r.settingsOf("ipdestinationguard {\nmode nft-both\nroute **.routed.test {\npool 9.9.8.0/24\n}\n}")
	if err := r.guard.prepareRoutes(s); err != nil {
		t.Fatal(err)
	}
	release := r.kernel.Stall()
	var both sync.WaitGroup
	both.Go(func() { r.at("10.0.0.66").ask("evil.test. A", "evil.test. 30 A 9.9.8.1") })
	r.eventually("it waits for the kernel", func() bool { return r.kernel.Waiting() == 1 })
	both.Go(func() {
		if err := r.guard.arm(s); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(50 * time.Millisecond) // that waits for the answer
	release()
	both.Wait()
	if err := r.permit("evil.test. A", "evil.test. 30 A 9.9.8.2"); err != errPooled {
		t.Error(err)
	}
	if open := r.open(); len(open) > 0 {
		t.Errorf("%s is open", open)
	}
}

// A name without a route that has an address of a former pool keeps it open over a restart.
func TestFormerPoolsAreOrdinaryAgain(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-both\nroute **.routed.test {\npool 9.9.8.0/24\n}\n}")
	r.ask()
	r.restart("ipdestinationguard nft-both")
	r.at("10.0.0.66").ask("other.test. A", "other.test. 80000 A 9.9.8.1")
	r.restart("ipdestinationguard nft-both")
	if got := r.grantsText(); got != "9.9.8.1 to 10.0.0.66\n" {
		t.Errorf("open is %q", got)
	}
}
