package ipdestinationguard

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// remembered are the names that have opened an address, the latest first, each with for how
// long, or stripped.
func (r *rig) remembered(addr string) string {
	var all []string
	for _, a := range r.history.Of(netip.MustParseAddr(addr)) {
		line := a.Name + " " + a.Until.Sub(r.clock.now()).String()
		if a.Stripped != "" {
			line = a.Name + " stripped: " + a.Stripped
		}
		all = append(all, line)
	}
	return strings.Join(all, ", ")
}

// asked has somebody ask, and be answered with these records.
func (r *rig) asked(from, question, answer string) {
	r.Helper()
	if _, err := r.clientAt(netip.AddrPortFrom(netip.MustParseAddr(from), 1000).String()).serve(request(r.T, question), answering(r.T, answer)); err != nil {
		r.Fatal(err)
	}
}

func TestAnswersAreRemembered(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local {\n private ** 192.0.2.0/24\n}")
	check := func(what, addr, want string) {
		t.Helper()
		if got := r.remembered(addr); got != want {
			t.Errorf("%s: %s is remembered by %q, want %q", what, addr, got, want)
		}
	}
	check("before", "192.0.2.1", "")
	r.asked("127.0.0.1", "A.Test. A", "a.test. 300 A 192.0.2.1\na.test. 300 A 192.0.2.2")
	check("made", "192.0.2.1", "a.test. 5m30.5s")
	check("made", "192.0.2.2", "a.test. 5m30.5s")
	r.advance(time.Second)
	r.asked("127.0.0.1", "b.test. A", "b.test. 60 A 192.0.2.1")
	check("in force by another name", "192.0.2.1", "b.test. 5m29.5s, a.test. 5m29.5s")
	r.advance(5 * time.Minute)
	r.asked("127.0.0.1", "a.test. A", "a.test. 300 A 192.0.2.2\na.test. 300 A 192.0.2.1")
	check("renewed", "192.0.2.1", "a.test. 5m30.5s, b.test. 29.5s")
	r.advance(time.Hour)
	check("run out", "192.0.2.1", "a.test. -54m29.5s, b.test. -59m30.5s")
	r.asked("127.0.0.1", "evil.test. A", "evil.test. 60 A 10.0.0.1\nevil.test. 60 A 8.8.8.8")
	check("stripped", "10.0.0.1", "evil.test. stripped: private-use (RFC 1918)")
	check("beside it", "8.8.8.8", "evil.test. 1m30.5s")
}

// With clients that are known by their Ethernet addresses, it is remembered what IP
// address has asked.
func TestAskersAreRemembered(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-gateway {\n private ** 192.0.2.0/24\n}")
	r.network.links = map[netip.Addr][6]byte{netip.MustParseAddr("192.168.0.7"): {2, 0, 0, 0, 0, 7}}
	for _, from := range []string{"192.168.0.7", "10.9.9.9"} {
		r.asked(from, "a.test. A", "a.test. 300 A 192.0.2.1")
		r.advance(time.Second)
	}
	got := r.history.Of(netip.MustParseAddr("192.0.2.1"))
	if len(got) != 2 || got[0].Scope != backend.ClientScope(netip.MustParseAddr("10.9.9.9")) || got[0].Asker.IsValid() ||
		got[1].Scope != backend.LinkScope(3, [6]byte{2, 0, 0, 0, 0, 7}) || got[1].Asker != netip.MustParseAddr("192.168.0.7") {
		t.Errorf("%+v", got)
	}
}

// The order of addresses does not make an answer another one; a name, an address and a
// holder do.
func TestHash(t *testing.T) {
	g := newRig(t, "ipdestinationguard nft-local").guard
	of := func(scope backend.Scope, addrs ...string) (targets []target) {
		for _, a := range addrs {
			targets = append(targets, target{key: scope.Key(netip.MustParseAddr(a))})
		}
		return targets
	}
	if g.hash("a.", of(thisMachine, "192.0.2.1", "2001:db8::1")) != g.hash("a.", of(thisMachine, "2001:db8::1", "192.0.2.1")) {
		t.Error("the order of addresses counts")
	}
	hashes := []uint64{
		g.hash("a.", of(thisMachine, "192.0.2.1")), g.hash("b.", of(thisMachine, "192.0.2.1")), g.hash("a.", of(thisMachine, "192.0.2.2")),
		g.hash("a.", of(thisMachine, "192.0.2.1", "192.0.2.1")), g.hash("a.", of(backend.UserScope(1), "192.0.2.1")),
		g.hash("a.", of(backend.UserScope(2), "192.0.2.1")), g.hash("a.", of(backend.Scope{Holder: backend.Machine, Class: 1}, "192.0.2.1")),
	}
	slices.Sort(hashes)
	if len(slices.Compact(hashes)) != 7 {
		t.Errorf("some are the same: %v", hashes)
	}
}

func BenchmarkRemember(b *testing.B) {
	question, answer := benchMessages(b, benchAnswers[1].records...)
	g := newGuard(func(t *backend.InForce, _ backend.Observer) backend.Backend { return benchFirewall{inForce: t} }, alone, time.Now)
	targets, err := readAnswer(question.Question[0], answer, nil)
	if err != nil {
		b.Fatal(err)
	}
	q := &query{question: dns.Question{Name: question.Question[0].Name}}
	for i := range targets {
		targets[i].key.Scope = thisMachine
	}
	for b.Loop() {
		g.remember(q, thisMachine, targets)
	}
}

// A client that loses some of the addresses is told so, if it can read it; and one that
// has none of the other IP version is not told each time.
func TestStrippedAnswersSaySo(t *testing.T) {
	for _, tt := range []struct{ from, answer, want string }{
		{"10.0.0.7", "a.test. 60 A 8.8.8.8\na.test. 60 A 10.1.1.1", "ipdestinationguard: stripped 10.1.1.1: private-use (RFC 1918)"},
		{"10.0.0.7", "a.test. 60 A 10.1.1.1", "ipdestinationguard: stripped 10.1.1.1: private-use (RFC 1918)"},
		{"10.0.0.7", "a.test. 60 A 8.8.8.8", ""},
		{"10.0.0.7", "a.test. 60 A 8.8.8.8\na.test. 60 AAAA 2606::1", ""},
	} {
		r := newRig(t, "ipdestinationguard nft-gateway")
		c := r.clientAt(tt.from + ":1000")
		m := request(t, "a.test. ANY")
		m.SetEdns0(1232, false)
		if _, err := c.serve(m, answering(t, tt.answer)); err != nil {
			t.Fatal(err)
		}
		got := ""
		if opt := c.Msg.IsEdns0(); opt != nil && len(opt.Option) > 0 {
			got = opt.Option[0].(*dns.EDNS0_EDE).ExtraText
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.answer, got, tt.want)
		}
	}
}
