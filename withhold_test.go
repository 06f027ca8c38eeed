package ipdestinationguard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/validate"
)

// Of a name whose answer was withheld it is said when and why, until there is a better one.
func TestWithheldAnswersAreExplained(t *testing.T) {
	for _, tt := range []struct {
		name          string
		breaks, mends func(*rig)
		why           string
	}{
		{"not authenticated", func(r *rig) { r.policy.dnssec.ad = mustNames("**") }, func(r *rig) { r.policy.dnssec.ad = nil }, errNotAuthenticated.why},
		{"bogus", func(r *rig) {
			validating(r.T, r.policy, &judged{answer: &validate.Answer{Verdict: validate.Bogus, Why: "no signatures"}})
		}, func(r *rig) { r.policy.validation = nil }, "bogus: no signatures"},
		{"the kernel refuses", func(r *rig) { r.kernel.Refuse(backend.ErrFull) }, func(r *rig) { r.kernel.Refuse(nil) }, backend.ErrFull.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-local")
			explained := func() admin.Explanation {
				r.advance(2 * time.Second)
				e, err := r.administration().Explain(t.Context(), admin.ExplainQuery{Name: "A.test"})
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			asked := func() { r.asked("127.0.0.1", "a.Test. A", "a.test. 1 A 9.9.9.9") }
			tt.breaks(r)
			asked()
			want := "a.test was asked for 2s ago: withheld, " + tt.why
			if e := explained(); e.Text != want || len(e.Addresses) > 0 {
				t.Errorf("%+v, want %s", e, want)
			}
			tt.mends(r)
			asked()
			if e := explained(); e.Text != "" || len(e.Addresses) != 1 {
				t.Errorf("answered since: %+v", e)
			}
			r.advance(time.Hour)
			tt.breaks(r)
			asked()
			if e := explained(); e.Text != want || len(e.Addresses) != 1 {
				t.Errorf("withheld anew: %+v, want %s", e, want)
			}
		})
	}
}

// However many names are withheld, no more is remembered.
func TestWithholdingsAreBounded(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	const names = 10_000
	known := 0
	for i := range names {
		r.withhold(fmt.Sprintf("N%d.test.", i), backend.ErrFull)
	}
	for i := range names {
		if text := r.administration().withheld(fmt.Sprintf("n%d.test.", i), nil); text != "" {
			known++
			if !strings.HasPrefix(text, fmt.Sprintf("n%d.test was", i)) {
				t.Error(text)
			}
		}
	}
	if known == 0 || known > len(r.withholdings.at) {
		t.Errorf("%d are remembered", known)
	}
}
