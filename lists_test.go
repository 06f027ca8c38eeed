package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// Lists have an end, and say if there is more.
func TestListsAreBounded(t *testing.T) {
	if admin.MaxList != 10_000 {
		t.Errorf("MaxList is %d, and docs/admin-api.md says 10,000", admin.MaxList)
	}
	r := newRig(t, "ipdestinationguard nft-local")
	a, now := r.administration(), r.guard.now()
	check := func(what string, n int, more bool, err error, want int) {
		t.Helper()
		if err != nil || n != min(want, admin.MaxList) || more != (want > admin.MaxList) {
			t.Errorf("%d %s: %d are listed, more: %v, %v", want, what, n, more, err)
		}
	}
	addrs := backendtest.Addrs(0, admin.MaxList+1)
	for i, addr := range addrs {
		r.guard.inForce.Set(thisMachine.Key(addr), now.Add(time.Hour), expiry.Accounts{})
		r.guard.history.Record(why.Answer{Name: "a.test.", Addr: addr, Scope: thisMachine, At: now})
		if n := i + 1; n >= admin.MaxList {
			grants, err := a.Grants(t.Context(), admin.GrantsQuery{})
			check("grants", len(grants.Grants), grants.More, err, n)
			answers, err := a.Answers(t.Context(), admin.AnswersQuery{Name: "a.test"})
			check("answers", len(answers.Answers), answers.More, err, n)
		}
	}
}

// Since is the earliest that is listed.
func TestSince(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	a := r.administration()
	var times []time.Time
	for i := range 3 {
		times = append(times, r.guard.now())
		r.asked("127.0.0.1", fmt.Sprintf("a%d.test. A", i), fmt.Sprintf("a%d.test. 300 A 192.0.2.%d", i, i+1))
		r.deny(backend.Flow{Kind: backend.Kind{Hook: backend.Output}, Protocol: 6, Port: 443, Addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})})
		r.advance(time.Hour)
	}
	for i, want := range []int{3, 2, 1, 0} {
		since := r.guard.now()
		if i < len(times) {
			since = times[i]
		}
		answers, err := a.Answers(t.Context(), admin.AnswersQuery{Since: since})
		if err != nil || len(answers.Answers) != want {
			t.Errorf("%d answers since the %d. hour, want %d: %v", len(answers.Answers), i, want, err)
		}
		denied, err := a.Denied(t.Context(), admin.DeniedQuery{Since: since})
		if err != nil || len(denied.Flows) != want {
			t.Errorf("%d flows since the %d. hour, want %d: %v", len(denied.Flows), i, want, err)
		}
	}
}
