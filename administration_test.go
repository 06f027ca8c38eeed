package ipdestinationguard

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// byDefault is what a Corefile gets that says nothing. Tests are no service of this machine.
var byDefault = defaultSettings.operation

func init() { defaultSettings.operation.admin = "" }

func (r *rig) administration() *administration { return &administration{guard: r.guard} }

// states are those of the hooks, as status has them.
func (r *rig) states() string {
	r.Helper()
	s, err := r.administration().Status(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	var all []string
	for _, h := range s.Hooks {
		all = append(all, fmt.Sprintf("%s: %s by %s", h.Name, h.State, h.By))
	}
	return strings.Join(all, ", ")
}

func TestAuditIsSwitchedAndTried(t *testing.T) {
	const audited = "ipdestinationguard nft-both {\n audit gateway\n}"
	r := newRig(t, audited)
	a := r.administration()
	check := func(what, want string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := r.states(); got != want {
			t.Errorf("%s: %s\nwant %s", what, got, want)
		}
	}
	set := func(hook string, audit bool) error {
		_, err := a.SetAudit(t.Context(), admin.AuditRequest{Hook: hook, Audit: audit})
		return err
	}
	try := func(seconds float64) error {
		_, err := a.Trial(t.Context(), admin.TrialRequest{Seconds: seconds})
		return err
	}
	confirm := func() error { _, err := a.Confirm(t.Context()); return err }

	check("the Corefile's", "output: enforced by corefile, forward: audit by corefile", nil)
	check("a trial", "output: enforced by corefile, forward: trial by corefile", try(60))
	r.advance(61 * time.Second)
	check("a trial that has ended", "output: enforced by corefile, forward: audit by corefile", nil)
	if err := confirm(); !errors.Is(err, admin.ErrConflict) {
		t.Errorf("confirmed after its end: %v", err)
	}
	check("another", "output: enforced by corefile, forward: trial by corefile", try(60))
	check("confirmed", "output: enforced by corefile, forward: enforced by guardctl", confirm())
	if err := try(60); !errors.Is(err, admin.ErrConflict) {
		t.Errorf("a trial where all is enforced: %v", err)
	}
	r.arm(audited)
	check("a reload", "output: enforced by corefile, forward: enforced by guardctl", nil)
	r.arm("ipdestinationguard nft-both")
	check("a reload after which the Corefile says so too", "output: enforced by corefile, forward: enforced by corefile", nil)
	r.arm(audited)
	check("audit of one", "output: audit by guardctl, forward: enforced by guardctl", set("output", true))
	check("and of all", "output: audit by guardctl, forward: audit by corefile", set("", true))
	check("a trial of both", "output: trial by guardctl, forward: trial by corefile", try(0.5))
	check("audit ends it", "output: audit by guardctl, forward: audit by corefile", set("", true))
	r.arm("ipdestinationguard nft-local")
	check("a reload that guards less", "output: audit by guardctl", nil)
	for _, err := range []error{set("input", true), set("forward", true), set("forward", false), try(0), try(-1), try(1e12)} {
		if !errors.Is(err, admin.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	}
}

func TestGrantsAreListedAndRevoked(t *testing.T) {
	for _, tt := range []struct {
		name  string
		query admin.GrantsQuery
		want  []string
	}{
		{"all", admin.GrantsQuery{}, []string{"192.0.2.1 10.0.0.7 a.test b.test", "192.0.2.1 10.0.0.9 a.test", "192.0.2.2 10.0.0.7 a.test", "192.0.2.3 this machine a.test"}},
		{"of a name", admin.GrantsQuery{Name: "B.test"}, []string{"192.0.2.1 10.0.0.7 a.test b.test"}},
		{"of an address", admin.GrantsQuery{Address: netip.MustParsePrefix("192.0.2.2/32")}, []string{"192.0.2.2 10.0.0.7 a.test"}},
		{"of a network", admin.GrantsQuery{Address: netip.MustParsePrefix("192.0.2.2/31")}, []string{"192.0.2.2 10.0.0.7 a.test", "192.0.2.3 this machine a.test"}},
		{"of a client", admin.GrantsQuery{Client: "10.0.0.9"}, []string{"192.0.2.1 10.0.0.9 a.test"}},
		{"of this machine", admin.GrantsQuery{Client: "this machine"}, []string{"192.0.2.3 this machine a.test"}},
		{"of a name and a client", admin.GrantsQuery{Name: "a.test.", Client: "10.0.0.7"}, []string{"192.0.2.1 10.0.0.7 a.test b.test", "192.0.2.2 10.0.0.7 a.test"}},
		{"of nobody", admin.GrantsQuery{Client: "10.0.0.8"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard nft-both")
			r.asked("10.0.0.7", "a.test. A", "a.test. 300 A 192.0.2.1\na.test. 300 A 192.0.2.2")
			r.asked("10.0.0.9", "a.test. A", "a.test. 300 A 192.0.2.1")
			r.asked("127.0.0.1", "a.test. A", "a.test. 300 A 192.0.2.3")
			r.asked("10.0.0.7", "b.test. A", "b.test. 300 A 192.0.2.1")
			list := func(q admin.GrantsQuery) (all []string) {
				grants, err := r.administration().Grants(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range grants.Grants {
					slices.Sort(g.Names)
					all = append(all, strings.Join(append([]string{g.Address.String(), g.For}, g.Names...), " "))
				}
				return all
			}
			if got := list(tt.query); !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
			every := list(admin.GrantsQuery{})
			request := admin.RevokeRequest{GrantsQuery: tt.query, All: tt.query == admin.GrantsQuery{}}
			n, err := r.administration().Revoke(t.Context(), request)
			if err != nil || n.Grants != len(tt.want) {
				t.Errorf("%d revoked, %v", n.Grants, err)
			}
			left := slices.DeleteFunc(every, func(g string) bool { return slices.Contains(tt.want, g) })
			if got := list(admin.GrantsQuery{}); !slices.Equal(got, left) {
				t.Errorf("left: %q, want %q", got, left)
			}
		})
	}
	r := newRig(t, "ipdestinationguard nft-both")
	for _, request := range []admin.RevokeRequest{{}, {All: true, GrantsQuery: admin.GrantsQuery{Name: "a"}}} {
		if _, err := r.administration().Revoke(t.Context(), request); !errors.Is(err, admin.ErrInvalid) {
			t.Errorf("%+v: %v", request, err)
		}
	}
}

func TestExplainQueries(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-both")
	r.network.own = map[netip.Addr]bool{netip.MustParseAddr("192.168.0.1"): true}
	r.network.links = map[netip.Addr][6]byte{netip.MustParseAddr("192.168.0.7"): {2, 0, 0, 0, 0, 7}}
	r.asked("192.168.0.7", "a.test. A", "a.test. 300 A 192.0.2.1")
	r.asked("10.0.0.9", "evil.test. A", "evil.test. 300 A 10.1.1.1")
	for _, tt := range []struct {
		name  string
		query admin.ExplainQuery
		want  []string
	}{
		{"an address", admin.ExplainQuery{Address: netip.MustParseAddr("192.0.2.1")}, []string{
			"192.0.2.1 output this machine tcp/443 refused other_holder: granted to 192.168.0.7, not to every program (the answer for a.test)",
			"192.0.2.1 forward every client tcp/443 refused other_holder: granted to 192.168.0.7, not to every client (the answer for a.test)"}},
		{"its holder", admin.ExplainQuery{Address: netip.MustParseAddr("192.0.2.1"), Client: netip.MustParseAddr("192.168.0.7"), Protocol: "udp", Port: 1}, []string{
			"192.0.2.1 forward 192.168.0.7 udp/1 passes granted: opened by the answer for a.test, for 5m31s more"}},
		{"another", admin.ExplainQuery{Name: "a.test", Client: netip.MustParseAddr("10.0.0.9"), Protocol: "icmp"}, []string{
			"192.0.2.1 forward 10.0.0.9 icmp refused other_holder: granted to 192.168.0.7, not to 10.0.0.9 (the answer for a.test)"}},
		{"a user", admin.ExplainQuery{Name: "evil.test", User: "0"}, []string{
			"10.1.1.1 output user root tcp/443 refused stripped: stripped: private-use (RFC 1918), in the answer for evil.test"}},
		{"a name that nobody knows", admin.ExplainQuery{Name: "b.test"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := r.administration().Explain(t.Context(), tt.query)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range e.Addresses {
				for _, v := range x.Verdicts {
					became := "refused"
					if v.Passes {
						became = "passes"
					}
					got = append(got, fmt.Sprintf("%v %s %s %s %s %s: %s", x.Address, v.Hook, v.For, v.To, became, v.Reason, v.Text))
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if (len(got) == 0) != (e.Text != "") {
				t.Errorf("text %q", e.Text)
			}
		})
	}
	for _, q := range []admin.ExplainQuery{{Name: "a.test", Protocol: "x"}, {Name: "a.test", User: "nobody at all"}, {Name: "a.test", Unit: "a*"}} {
		if e, err := r.administration().Explain(t.Context(), q); !errors.Is(err, admin.ErrInvalid) && q.Unit == "" {
			t.Errorf("%+v: %+v, %v", q, e, err)
		}
	}
}

// Of a name that nobody has asked for it is said that this comes first, or that it would be in vain.
func TestExplainUnaskedNames(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-both {\n names **.test\n except **.ads.test\n}")
	const unknown = "no answer for %s has come by here, or none that is remembered: "
	for name, want := range map[string]string{
		"New.test":    "it has to be asked for first",
		"x.ads.test":  "and one would open nothing",
		"new.example": "and one would open nothing",
	} {
		e, err := r.administration().Explain(t.Context(), admin.ExplainQuery{Name: name})
		if want = fmt.Sprintf(unknown, strings.ToLower(name)) + want; err != nil || !strings.HasPrefix(e.Text, want) {
			t.Errorf("%s: %v, %q, want %q", name, err, e.Text, want)
		}
	}
}

// After it nothing is guarded, answers pass, and a reload changes nothing of that.
func TestDisarm(t *testing.T) {
	c := newCoreDNS(t)
	path := filepath.Join(t.TempDir(), "admin.sock")
	directive := "ipdestinationguard nft-local {\n admin unix:" + path + "\n}"
	c.mustLoad(corefile(directive))
	client := admin.NewClient(path)
	defer client.Close()
	s, err := client.Disarm(t.Context())
	if err != nil || !s.Disarmed || s.Enforcing || len(s.Hooks) > 0 {
		t.Errorf("%+v, %v", s, err)
	}
	c.wantKernel(nothing)
	c.mustLoad(corefile("ipdestinationguard nft-both {\n admin unix:" + path + "\n}"))
	c.wantKernel(nothing)
	if err := engine().permit(t.Context(), thisMachine, "a.test.", []target{{key: backend.KeyOf(netip.MustParseAddr("192.0.2.1"))}}); err != nil {
		t.Errorf("an answer: %v", err)
	}
	for what, err := range map[string]error{
		"disarm": func() error { _, err := client.Disarm(t.Context()); return err }(),
		"audit":  func() error { _, err := client.SetAudit(t.Context(), admin.AuditRequest{}); return err }(),
		"revoke": func() error { _, err := client.Revoke(t.Context(), admin.RevokeRequest{All: true}); return err }(),
	} {
		if !errors.Is(err, admin.ErrConflict) {
			t.Errorf("%s of what is disarmed: %v", what, err)
		}
	}
}

// The socket follows the Corefile, and ends with the guard.
func TestAdminSocket(t *testing.T) {
	c := newCoreDNS(t)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	at := func(path string) string {
		return corefile("ipdestinationguard nft-local {\n admin unix:" + path + "\n}")
	}
	check := func(want string) {
		t.Helper()
		for _, path := range []string{one, two} {
			client := admin.NewClient(path)
			if _, err := client.Status(t.Context()); (err == nil) != (path == want) {
				t.Errorf("at %s: %v", path, err)
			}
			client.Close()
		}
	}
	for _, path := range []string{one, one, two} {
		c.mustLoad(at(path))
		check(path)
	}
	c.mustLoad(at(filepath.Join(dir, "none", "three"))) // which cannot be: the one of before stays
	check(two)
	c.mustLoad(corefile("ipdestinationguard nft-local {\n admin off\n}"))
	check("")
	c.mustLoad(at(two))
	c.stop()
	check("")
}
