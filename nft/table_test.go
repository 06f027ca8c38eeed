package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// Whichever message the kernel refuses, the error names what it was about.
func TestBlame(t *testing.T) {
	rules := goldenRules(t)["gateway"]
	rules.Local = true
	rs := newRuleset(rules)
	msgs, err := rs.compile(present{}, false, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	const first = 4000
	blamed := map[string]bool{}
	for i := range msgs {
		err := fmt.Errorf("wrapped: %w", &kernelError{errno: unix.EINVAL, seq: first + 1 + uint32(i)})
		blamed[blame(refusedMessage(err, msgs, first))] = true
	}
	want := []string{"the transaction was refused"} // the table itself
	for _, s := range rs.sets {
		want = append(want, "set "+s.name)
	}
	for _, c := range rs.chains {
		want = append(want, "chain "+c.name)
		for _, r := range c.rules {
			want = append(want, fmt.Sprintf("the rule for %q", r.comment))
		}
	}
	for _, w := range want {
		if !blamed[w] {
			t.Errorf("never blamed: %s", w)
		}
	}
	for b := range blamed {
		if !slices.Contains(want, b) && !strings.HasPrefix(b, "set __set") {
			t.Errorf("blamed for nothing: %s", b)
		}
	}
	for name, err := range map[string]error{
		"another error": errUnknown,
		"the begin":     &kernelError{seq: first},
		"the end":       &kernelError{seq: first + 1 + uint32(len(msgs))},
		"an older one":  &kernelError{seq: 1},
	} {
		if got := blame(refusedMessage(err, msgs, first)); got != want[0] {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// What the kernel refuses at Open is told with the part and the reason.
func TestOpenIsRefused(t *testing.T) {
	b := newBackend(t)
	rules := backendtest.Rules()
	rules.Table = strings.Repeat("x", 300)
	for name, err := range map[string]error{"check": b.Check(rules), "open": b.Open(rules)} {
		if err == nil || !strings.HasPrefix(err.Error(), "table inet xxx") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Open(backendtest.Rules()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Errors of the kernel are told as what an administrator can act on.
func TestExplain(t *testing.T) {
	var permission *backend.PermissionError
	if err := explain(&kernelError{errno: unix.EPERM}); !errors.As(err, &permission) || permission.Need != "CAP_NET_ADMIN" {
		t.Errorf("EPERM: %v", err)
	}
	if err := explain(&kernelError{errno: unix.ENFILE}); err != backend.ErrFull {
		t.Errorf("ENFILE: %v", err)
	}
	for errno, want := range map[unix.Errno]string{
		unix.EPROTONOSUPPORT: "this kernel cannot do it: protocol not supported (Linux 5.10 or later",
		unix.EOPNOTSUPP:      "this kernel cannot do it: operation not supported (Linux 5.10 or later",
		unix.ENOENT:          "no such file or directory (No such file): the table is gone, or the kernel lacks a module",
		unix.EINVAL:          "invalid argument",
	} {
		err := &kernelError{errno: errno}
		if errno == unix.ENOENT {
			err.text = "No such file"
		}
		if got := explain(err); !strings.HasPrefix(got.Error(), want) || !errors.Is(got, errno) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if explain(nil) != nil {
		t.Error("made an error of none")
	}
}

// A list of allowed networks may be longer than a message can be.
func TestLongAllowedList(t *testing.T) {
	const n = 3000
	rules := backendtest.Rules()
	rules.Allowed = nil
	for i := range n {
		a4, a6 := [4]byte{10, byte(i >> 7), byte(i << 1)}, [16]byte{0: 0xfd, 1: byte(i >> 7), 2: byte(i << 1)}
		rules.Allowed = append(rules.Allowed,
			netip.PrefixFrom(netip.AddrFrom4(a4), 24), netip.PrefixFrom(netip.AddrFrom16(a6), 24))
	}
	b := newBackend(t)
	if err := b.Open(rules); err != nil {
		t.Fatal(err)
	}
	if err := b.Open(rules); err != nil { // over what is there
		t.Fatal(err)
	}
	listed := nft(t, "list", "table", "inet", rules.Table)
	for _, p := range rules.Allowed {
		if !strings.Contains(listed, p.String()) {
			t.Fatalf("%v is not allowed", p)
		}
	}
}

// Others may commit at any time, also between what we read and what we commit.
// (Who never pauses keeps rules from being changed at all; grants get through.)
func TestForeignCommitsDoNotDisturb(t *testing.T) {
	for name, open := range map[string]func(*testing.T) *guarded{"with an owner": openBackend, "without": openOwnerless} {
		t.Run(name, func(t *testing.T) { foreignCommits(open(t)) })
	}
}

func foreignCommits(g *guarded) {
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				foreign(g.T, func(c *nftables.Conn, _ *nftables.Table) { c.DelTable(addTable(c, "theirs")) })
			}
		}
	})
	until := time.Now().Add(time.Hour)
	for i := range 500 {
		g.grant(until, i*10, 10)
	}
	for range 50 {
		if err := g.Open(backendtest.Rules()); err != nil {
			g.Error(err)
		}
	}
	close(stop)
	others.Wait()
	if !g.keeps(until, 0, 5000) {
		g.Error("a grant was lost")
	}
	if g.count("repaired") > 0 {
		g.Error(g.lines)
	}
	g.accounts()
}

// Grants outlive a reload that raises how many there may be, and the raised number
// counts.
func TestReloadToAnotherSize(t *testing.T) {
	rules := backendtest.Rules()
	rules.MaxGrants = 200
	g := open(t, observed, rules)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 300) // of both versions
	for _, tt := range []struct{ most, grants int }{{200, 300}, {400, 600}} {
		rules.MaxGrants = tt.most
		if err := g.Open(rules); err != nil {
			t.Fatal(err)
		}
		if tt.grants > 300 {
			g.grant(until, 300, tt.grants-300)
		}
		if !g.keeps(until, 0, tt.grants) || g.count("enforcing: false")+g.count("repaired") > 0 {
			t.Errorf("at most %d: %v", tt.most, g.lines)
		}
	}
}
