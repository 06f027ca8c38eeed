package ipdestinationguard

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A book that knows nothing of what is connected to its pools ends that before it gives out
// an address, and gives out none that is open to somebody. One that knows leaves all as it
// is, whatever comes and goes beside it.
func TestBooksThatTakeOver(t *testing.T) {
	for _, tt := range []struct {
		steps string // after a has given www its address
		knows bool   // whether the last book knows of that
	}{
		{"reload a", true},
		{"restart a", true},
		{"reload none, reload a", true},
		{"restart none, restart a", true},
		{"restart none, reload none, restart a", true},
		{"reload a and b", true},
		{"restart a and b", true},
		{"restart a and b, reload a, restart a", true},
		{"restart a and b, restart all a", true}, // what b has had is strange, and nothing else
		{"reload removing a, restart a", true},

		{"reload b", false},
		{"restart b", false},
		{"reload b, restart b", false}, // the first of the two has done it
		{"reload none, reload b", false},
		{"restart none, restart b", false},
		{"restart none, reload b", false},
		{"reload b, reload a", false},
		{"reload b, restart a", false},
		{"restart b, reload a", false},
		{"restart b, restart a", false},
		{"restart b, restart none, restart a", false},
		{"restart a and b, restart b", false}, // with the pool of a
		{"restart new", false},
		{"restart new, restart new", false},
	} {
		t.Run(tt.steps, func(t *testing.T) {
			dir := t.TempDir()
			route := func(domain, state string, lines ...string) string {
				return "route **." + domain + " {\nstate " + filepath.Join(dir, state) + "\n" + strings.Join(lines, "\n") + "\n}\n"
			}
			files := map[string]string{
				"none": "", "a": route("routed.test", "a.db"), "b": route("routed.test", "b.db"), "new": route("routed.test", "new.db"),
				"removing a": "on_exit remove\n" + route("routed.test", "a.db"),
				"all a":      route("routed.test", "a.db") + route("b.test", "a.db", "pool 10.9.0.0/16 fd09::/64"),
				"a and b":    route("routed.test", "a.db") + route("b.test", "b.db", "pool 10.9.0.0/16 fd09::/64"),
			}
			for name, text := range files {
				files[name] = "ipdestinationguard {\nmode nft-both\n" + text + "}"
			}
			first := netip.MustParseAddr("100.96.0.1")
			other := func(r *rig) string {
				return r.at("10.0.0.2").ask("b.routed.test. A", "b.routed.test. 30 A 9.9.9.10")
			}

			r := newRig(t, files["b"])
			r.wantText(other(r), "b.routed.test. 30 IN A 100.96.0.1\n")
			r.clock.advance(time.Hour)
			r.restart(files["a"])
			r.wantText(r.ask(), wwwMapped)
			r.kernel.Connect(first)
			for step := range strings.SplitSeq(tt.steps, ", ") {
				how, file, _ := strings.Cut(step, " ")
				if how == "reload" {
					r.arm(files[file])
				} else {
					r.restart(files[file])
				}
			}
			open := strings.Contains(r.grantsText(), "100.96.0.1 ")
			if knows := len(r.kernel.Connected(first)) == 1; knows != tt.knows {
				t.Errorf("the connection goes on: %v, want %v", knows, tt.knows)
			}
			switch text := r.ask(); {
			case tt.knows:
				r.wantText(text, wwwMapped)
			case open && (text == wwwMapped || strings.Contains(other(r), " 100.96.0.1\n")):
				t.Error("what is open to somebody has been given out")
			}
		})
	}
}

// Once the rules of another book are in force, nothing but the book itself tells what it does
// not know: that is on the disk by then.
func TestStrangersAreKnownBeforeTheRules(t *testing.T) {
	r := newRig(t, routedBoth)
	path := filepath.Join(t.TempDir(), "other.db")
	other := "ipdestinationguard {\nmode nft-both\nroute **.routed.test {\nstate " + path + "\n}\n}"
	r.arm(other)
	r.arm(routedBoth)

	s := r.settingsOf(other)
	if err := r.prepareRoutes(s); err != nil {
		t.Fatal(err)
	}
	if strange := s.found.routes[0].book.Strange(); strange != nil {
		t.Error("strange from the beginning:", strange)
	}
	refusal := errors.New("no")
	r.kernel.Refuse(refusal)
	if err := r.guard.arm(s); !errors.Is(err, refusal) {
		t.Error(err)
	}
	r.kernel.Refuse(nil)
	if s.found.routes[0].book.Strange() == nil {
		t.Error("a book that does not know what another one has given out takes itself for one that does")
	}
}
