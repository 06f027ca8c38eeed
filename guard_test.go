package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/fake"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// clock is a time that only the test moves.
type clock struct{ passed atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(1e9, c.passed.Load()) }
func (c *clock) advance(d time.Duration) { c.passed.Add(int64(d)) }

var thisMachine = backend.Scope{Holder: backend.Machine}

// network is the surroundings of a guard in tests.
type network struct {
	own   map[netip.Addr]bool
	links map[netip.Addr][6]byte
}

func (n *network) Own(a netip.Addr) bool { return a.IsLoopback() || n.own[a] }
func (n *network) Close()                {}
func (n *network) OnLink() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd00::/64")}
}
func (n *network) Changed() <-chan struct{} { return nil }
func (n *network) Find(a netip.Addr) (index uint32, hw [6]byte, ok bool) {
	hw, ok = n.links[a]
	return 3, hw, ok
}

// programList is who asks from which address, in tests.
type programList map[netip.AddrPort]program

type program struct {
	identity.Asker
	unit string
}

func (l programList) Find(_ string, client, _ netip.AddrPort) (identity.Asker, error) {
	if p, ok := l[client]; ok {
		return p.Asker, nil
	}
	return identity.Asker{}, identity.ErrGone
}

func (l programList) Unit(_ context.Context, cgroup uint64) (backend.Cgroup, error) {
	for _, p := range l {
		if p.Cgroup == cgroup && p.unit != "" {
			return backend.Cgroup{Path: p.unit, ID: cgroup, Level: len(strings.FieldsFunc(p.unit, func(r rune) bool { return r == '/' }))}, nil
		}
	}
	return backend.Cgroup{}, identity.ErrUnsupported
}

func (l programList) Program(unit backend.Cgroup, user uint32) string {
	return fmt.Sprintf("runs in %s as %d", unit.Path, user)
}

func (l programList) Close() {}

// unitList are cgroups that a test makes and removes.
type unitList struct {
	changed chan struct{}
	paths   []string

	mu     sync.Mutex
	ids    map[string]uint64
	closed bool
}

func (l *unitList) List() (list []backend.Cgroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, path := range l.paths {
		list = append(list, backend.Cgroup{Path: path, ID: l.ids[path], Level: strings.Count(path, "/")})
	}
	return list
}

func (l *unitList) Changed() <-chan struct{} { return l.changed }

func (l *unitList) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.changed)
}

// have makes a cgroup, or removes it.
func (l *unitList) have(path string, id uint64) {
	l.mu.Lock()
	l.ids = map[string]uint64{path: id}
	l.mu.Unlock()
	l.changed <- struct{}{}
}

// rig is a guard on the fake backend.
type rig struct {
	*testing.T
	clock
	*guard
	network  network
	programs programList
	units    *unitList
	policy   *policy
	kernel   *fake.Backend
	book     string // path of the default one
}

// examples lets every name have the addresses that tests and documentation use.
var examples = rule{mustNames("**"), []netip.Prefix{
	netip.MustParsePrefix("192.0.0.0/22"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/32"),
}}

// newRig arms a guard with what the directive says.
func newRig(t *testing.T, directive string) *rig {
	t.Helper()
	r := &rig{T: t, programs: programList{}, book: filepath.Join(t.TempDir(), "mappings.db")}
	r.start()
	r.arm(directive)
	t.Cleanup(func() {
		if r.policy.routed != nil {
			r.guard.close()
		}
	})
	return r
}

// restart ends the guard, and arms another one on what it has left.
func (r *rig) restart(directive string) {
	r.Helper()
	if err := r.guard.close(); err != nil {
		r.Fatal(err)
	}
	r.start()
	r.arm(directive)
}

func (r *rig) start() {
	r.guard = newGuard(func(inForce *backend.InForce, events backend.Observer) backend.Backend {
		kernel := fake.New(inForce, events, r.clock.now)
		if r.kernel != nil {
			kernel.TakeOver(r.kernel)
		}
		r.kernel = kernel
		return kernel
	}, host{
		watch:  func() (surroundings, error) { return &r.network, nil },
		askers: func() (askers, error) { return r.programs, nil },
		units: func(paths []string) (units, error) {
			r.units = &unitList{changed: make(chan struct{}), paths: paths}
			return r.units, nil
		},
	}, r.clock.now)
}

func (r *rig) arm(directive string) {
	r.Helper()
	s := r.settingsOf(directive)
	err := r.guard.prepareRoutes(s)
	if err == nil {
		err = r.guard.arm(s)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.policy = s.found.policies[0]
	r.policy.private = append(r.policy.private, examples)
}

// settingsOf reads a directive.
func (r *rig) settingsOf(directive string) *settings {
	r.Helper()
	s, p, err := parse(caddy.NewTestController("dns", directive))
	if err != nil {
		r.Fatal(err)
	}
	s.found.classes, s.found.policies = map[backend.Class]backend.Predicates{}, []*policy{p}
	classOf := func(predicates backend.Predicates) backend.Class {
		class, err := r.guard.class(predicates)
		if err != nil {
			r.Fatal(err)
		}
		if class != 0 {
			s.found.classes[class] = predicates
		}
		return class
	}
	p.class = classOf(p.predicates)
	for _, of := range p.routes {
		of.class = classOf(of.predicates)
		if of.state == "" {
			of.state = r.book
		}
	}
	return s
}

func (r *rig) policyOf(directive string) *policy {
	r.Helper()
	_, p, err := parse(caddy.NewTestController("dns", directive))
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// permit is guard.permit for the addresses of an answer.
func (r *rig) permit(question_, answer string) error {
	r.Helper()
	targets, err := readAnswer(question(r, question_), &dns.Msg{Answer: records(r, answer)}, nil)
	if err != nil {
		r.Fatal(err)
	}
	return r.guard.permit(r.Context(), thisMachine, "a.test.", targets)
}

func (r *rig) permitted(ttl int) {
	r.Helper()
	if err := r.permit("a.test. A", fmt.Sprintf("a.test. %d A 192.0.2.1", ttl)); err != nil {
		r.Error(err)
	}
}

// wantGrants fails the test unless these stand in the kernel: "address for life".
func (r *rig) wantGrants(want ...string) {
	r.Helper()
	var got []string
	for line := range strings.Lines(r.kernel.String()) {
		if grant, ok := strings.CutPrefix(line, "\tgrants "); ok {
			got = append(got, strings.Replace(strings.TrimSpace(grant), " to this machine", "", 1))
		}
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		r.Errorf("granted: %q, want %q", got, want)
	}
}

func (r *rig) wantTransactions(n int) {
	r.Helper()
	if got := r.kernel.Transactions(); got != n {
		r.Errorf("%d transactions, want %d", got, n)
	}
}

func TestLifeOfGrants(t *testing.T) {
	const defaults = "ipdestinationguard nft-local"
	tests := []struct {
		name, directive string
		ttl             uint32
		want            string
	}{
		{"TTL + margin", defaults, 300, "5m30.5s"},
		{"at the floor", defaults, 60, "1m30.5s"},
		{"under the floor", defaults, 59, "1m30.5s"},
		{"TTL 0, as of a stale answer", defaults, 0, "1m30.5s"},
		{"at the ceiling", defaults, 86400, "24h0m30s"},
		{"over the ceiling", defaults, 86401, "24h0m30s"},
		{"the largest TTL of RFC 2181", defaults, 1<<31 - 1, "24h0m30s"},
		{"the largest TTL of all", defaults, 1<<32 - 1, "24h0m30s"},
		{"as configured", "ipdestinationguard nft-local {\nmargin 0s\nttl 5s 10s\n}", 7, "7.5s"},
		{"floor as configured", "ipdestinationguard nft-local {\nmargin 1s\nttl 5s 10s\n}", 0, "6.5s"},
		{"ceiling as configured", "ipdestinationguard nft-local {\nmargin 1s\nttl 5s 10s\n}", 1<<32 - 1, "11s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			if err := r.permit("a.test. A", fmt.Sprintf("a.test. %d A 192.0.2.1", tt.ttl)); err != nil {
				t.Error(err)
			}
			r.wantGrants("192.0.2.1 for " + tt.want)
		})
	}
}

func TestEachAddressHasItsOwnLife(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nttl 0s 1h\nmargin 0s\n}")
	if err := r.permit("a.test. ANY", `a.test. 60 CNAME b.test.
		b.test. 10 A 192.0.2.1
		b.test. 20 A 192.0.2.1
		b.test. 90 A 192.0.2.2
		b.test. 30 AAAA 2001:db8::1
		b.test. 40 AAAA ::ffff:192.0.2.3`); err != nil {
		t.Error(err)
	}
	r.wantGrants("192.0.2.1 for 20.5s", "192.0.2.2 for 1m0.5s", "192.0.2.3 for 40.5s", "2001:db8::1 for 30.5s")
	r.wantTransactions(1)
}

// A renewal that changes nothing makes no system call.
func TestRenewal(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	r.permitted(300)
	r.permitted(300)
	r.wantTransactions(1)
	for ttl := 290; ttl >= 0; ttl -= 10 { // as a cache hands it out
		r.advance(10 * time.Second)
		r.permitted(ttl)
	}
	r.wantTransactions(1)
	r.wantGrants("192.0.2.1 for 30.5s") // the margin, once the TTL has passed

	r.permitted(1) // needs more than is left
	r.wantTransactions(2)
	r.wantGrants("192.0.2.1 for 1m30.5s")

	r.permitted(60)
	r.wantTransactions(2)
	r.permitted(61)
	r.wantTransactions(3)
	r.wantGrants("192.0.2.1 for 1m31.5s")

	r.advance(91 * time.Second)
	r.advance(time.Second)
	r.wantGrants()
	r.permitted(300)
	r.wantTransactions(4)
}

// A TTL beyond the ceiling asks for a renewal now and then, not each time.
func TestRenewalAtTheCeiling(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nttl 0s 1m\nmargin 0s\n}")
	r.permitted(3600)
	r.permitted(3600)
	r.advance(80 * time.Millisecond)
	r.permitted(3600)
	r.wantTransactions(1)
	r.advance(80 * time.Millisecond)
	r.permitted(3600)
	r.wantTransactions(2)
	r.wantGrants("192.0.2.1 for 1m0s")
}

// Only what is missing is asked for.
func TestOnlyMissingGrantsAreAskedFor(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	r.permitted(300)
	before := metrics(t)
	if err := r.permit("a.test. A", "a.test. 300 A 192.0.2.1\na.test. 300 A 192.0.2.2"); err != nil {
		t.Error(err)
	}
	before.wantMoved(t, map[string]float64{
		`answers_total{held}`: 1, `hold_duration_seconds`: 1,
		`grant_changes_total{made}`: 1, `grants{ipv4}`: 2,
		`transaction_grants`: 1, `transaction_duration_seconds`: 1,
	})
}

func TestNothingToPermit(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	before := metrics(t)
	if err := r.permit("a.test. A", ""); err != nil {
		t.Error(err)
	}
	r.wantTransactions(0)
	before.wantMoved(t, nil)
}

func TestRefused(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	r.kernel.Refuse(backend.ErrFull)
	before := metrics(t)
	if err := r.permit("a.test. A", "a.test. 300 A 192.0.2.1"); err != backend.ErrFull {
		t.Errorf("got %v", err)
	}
	before.wantMoved(t, map[string]float64{
		`hold_duration_seconds`: 1, `kernel_errors_total{commit}`: 1,
	})
	r.kernel.Refuse(nil)
	r.permitted(300)
}

func TestStalled(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nhold 10ms\n}")
	release := r.kernel.Stall()
	if err := r.permit("a.test. A", "a.test. 300 A 192.0.2.1"); err != backend.ErrLate {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	targets, _ := readAnswer(question(t, "a.test. A"), &dns.Msg{Answer: records(t, "a.test. 300 A 192.0.2.1")}, nil)
	if err := r.guard.permit(ctx, thisMachine, "a.test.", targets); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits any more: %v", err)
	}
	release()
	r.permitted(300)
}

func TestArmAgain(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local 192.0.2.0/24")
	r.permitted(300)
	r.arm("ipdestinationguard nft-both {\nmargin 1m\n}")
	if got, want := r.kernel.String(), "table ipdestinationguard\n\tguards output\n\tguards forward\n\tgrants 192.0.2.1 to this machine for 5m30.5s\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.permitted(300)
	r.wantGrants("192.0.2.1 for 6m0.5s")
}

func TestArmFails(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	refusal := errors.New("no")
	r.kernel.Refuse(refusal)
	other := defaultSettings
	other.mode, other.lease.Margin = modeBoth, time.Hour
	if err := r.guard.arm(&other); err != refusal {
		t.Errorf("got %v", err)
	}
	r.kernel.Refuse(nil)
	r.permitted(300)
	r.wantGrants("192.0.2.1 for 5m30.5s") // as before
}

func TestCloseKeep(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	r.permitted(300)
	before := metrics(t)
	if err := r.close(); err != nil {
		t.Error(err)
	}
	before.wantMoved(t, map[string]float64{`enforcing`: -1})
	if err := r.permit("b.test. A", "b.test. 300 A 192.0.2.2"); !errors.Is(err, backend.ErrClosed) {
		t.Errorf("a new address: %v", err)
	}
	r.permitted(300) // it stands in the kernel
	r.wantGrants("192.0.2.1 for 5m30.5s")
	if err := r.close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

func TestCloseRemove(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\non_exit remove\n}")
	r.permitted(300)
	if err := r.close(); err != nil {
		t.Error(err)
	}
	if got := r.kernel.String(); got != "nothing is guarded\n" {
		t.Errorf("left behind:\n%s", got)
	}
	// Everything passes, so an answer need not be withheld.
	if err := r.permit("b.test. A", "b.test. 300 A 192.0.2.2"); err != nil {
		t.Errorf("a new address: %v", err)
	}
}

func TestReadyOnlyWhileEnforcing(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	h := &Handler{guard: r.guard}
	unarmed := &Handler{guard: newGuard(func(f *backend.InForce, o backend.Observer) backend.Backend {
		return fake.New(f, o, r.clock.now)
	}, host{}, r.clock.now)}
	if unarmed.Ready() || !h.Ready() {
		t.Error("ready before it is armed, or not afterwards")
	}
	(*observer)(r.guard).Enforcing(false)
	if h.Ready() {
		t.Error("ready without rules")
	}
	(*observer)(r.guard).Enforcing(true)
	if !h.Ready() {
		t.Error("not ready again")
	}
	if err := r.close(); err != nil || h.Ready() {
		t.Errorf("ready after close (%v)", err)
	}
}

func TestObserverCounts(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	before := metrics(t)
	o := (*observer)(r.guard)
	o.Committed(3, 2, 1, time.Millisecond)
	o.Expired(4)
	o.Failed("read", net.ErrClosed)
	o.Repaired("rules")
	o.Withstood()
	o.Live(7, 9)
	before.wantMoved(t, map[string]float64{
		`grant_changes_total{made}`: 3, `grant_changes_total{renewed}`: 2, `grant_changes_total{expired}`: 4,
		`transaction_grants`: 1, `transaction_duration_seconds`: 1,
		`kernel_errors_total{read}`: 1, `repairs_total{rules}`: 1, `flushes_withstood_total`: 1,
		`grants{ipv4}`: 7, `grants{ipv6}`: 9,
	})
}

// Answers, reloads and trouble at the same time: no answer passes whose address
// is not in the kernel at that moment.
func TestConcurrently(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\nhold 1m\n}")
	ended := make(chan struct{})
	var trouble, work sync.WaitGroup
	trouble.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			default:
			}
			release := r.kernel.Stall()
			r.advance(100 * time.Millisecond)
			release()
			r.arm([]string{"ipdestinationguard nft-local {\nhold 1m\n}", "ipdestinationguard nft-both {\nhold 1m\nmargin 1m\n}"}[i%2])
		}
	})
	q := question(t, "a.test. A")
	for worker := range 16 {
		work.Go(func() {
			for i := range 200 {
				m := &dns.Msg{Answer: []dns.RR{&dns.A{
					Hdr: dns.RR_Header{Name: "a.test.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(i)},
					A:   net.IPv4(192, 0, byte(worker%4), byte(i)),
				}}}
				targets, _ := readAnswer(q, m, nil)
				now := r.clock.now()
				if err := r.guard.permit(t.Context(), thisMachine, "a.test.", targets); err != nil {
					t.Error(err)
				}
				// The clock may have moved on by now, even past the margin.
				until, _ := r.inForce.Lookup(targets[0].key)
				if until.Before(now.Add(time.Duration(i)*time.Second)) && r.clock.now().Sub(now) < 30*time.Second {
					t.Errorf("%v: granted until %v, now is %v", targets[0].key.Addr(), until, now)
				}
			}
		})
	}
	work.Wait()
	close(ended)
	trouble.Wait()
}

// values are the variables of this plugin: histograms by their counts.
type values map[string]float64

func metrics(t testing.TB) values {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	v := values{}
	for _, f := range families {
		metric, ours := strings.CutPrefix(f.GetName(), "coredns_ipdestinationguard_")
		if !ours {
			continue
		}
		for _, m := range f.GetMetric() {
			key := metric
			for _, l := range m.GetLabel() {
				key += "{" + l.GetValue() + "}"
			}
			v[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return v
}

// wantMoved fails the test unless just these have changed since, by so much;
// gauges that are no difference are compared as they are.
func (before values) wantMoved(t testing.TB, want values) {
	t.Helper()
	moved := values{}
	for key, now := range metrics(t) {
		switch {
		case strings.HasPrefix(key, "grants{"):
			if _, asked := want[key]; asked {
				moved[key] = now
			}
		case now != before[key]:
			moved[key] = now - before[key]
		}
	}
	if want == nil {
		want = values{}
	}
	if !maps.Equal(moved, want) {
		t.Errorf("moved: %v\nwant:  %v", moved, want)
	}
}
