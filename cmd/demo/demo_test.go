package main

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m.Run) }

func TestDemo(t *testing.T) {
	coredns := filepath.Join(t.TempDir(), "coredns")
	if out, err := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", coredns, "../coredns").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var out bytes.Buffer
	if err := tell(&story{out: &out}, coredns); err != nil {
		t.Fatalf("%s\n%v", out.String(), err)
	}
	if waits := time.Duration(strings.Count(out.String(), "waited")) * outlived; waits > 10*time.Second {
		t.Errorf("a reader waits %v: 10 s at most", waits)
	}

	// What a reader must have seen, in this order.
	rest := out.String()
	for _, want := range []string{
		"1. A GUARDED HOST",
		"ipdestinationguard nft-local",
		`refused  "no route to host"`,
		`refused  "permission denied"`,
		"answer   198.18.1.1, 2001:db8:18::1:1; TTL 2 s",
		"open     connected",
		"open     connected",
		`refused  "operation not permitted"; no question has got there`,
		`refused  "no route to host"`,
		"waited",
		`open     "still here?" came back`,
		`refused  "no route to host"`,
		"answer   198.18.1.1",
		"open     connected",
		"count    3",
		"\tset allowed-local4 {\n",
		"elements = { 192.0.2.2 }",
		"\tset granted-local4 {\n",
		"elements = { 198.18.1.1 ",
		"\tchain output {\n",
		"goto denied-output",
		"2. A GUARDED NETWORK",
		"ipdestinationguard nft-gateway",
		`refused  "no route to host"`,
		"answer   198.18.1.1",
		"open     connected",
		`refused  "no route to host"; no question has got there`,
		"waited",
		`open     "still here?" came back`,
		`refused  "no route to host"`,
		"count    1",
		"\tchain forward {\n",
		"All 21 steps went as told.",
	} {
		at := strings.Index(rest, want)
		if at < 0 {
			t.Fatalf("%q is missing, or not in its place:\n%s", want, out.String())
		}
		rest = rest[at+len(want):]
	}
	rules := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "\t") {
			rules++
		}
		if utf8.RuneCountInString(line) > 80+1 && !strings.HasPrefix(line, "\t") { // nft's lines are what they are
			t.Errorf("too wide for a terminal: %s", line)
		}
		if strings.Contains(line, "\x1b") {
			t.Errorf("colour where there is no terminal: %q", line)
		}
	}
	if lines := strings.Count(out.String(), "\n"); rules > lines/2 {
		t.Errorf("%d of %d lines are rules: who reads them?", rules, lines)
	}
}

// As root, the socket would be where that of a real guard is.
func TestDemoLeavesNoSocket(t *testing.T) {
	for _, corefile := range []string{hostCorefile, gatewayCorefile} {
		if !strings.Contains(corefile, "\n        admin off") {
			t.Errorf("no admin off:\n%s", corefile)
		}
	}
}

func TestDemoStopsWhereItDoesNotGoAsTold(t *testing.T) {
	var out bytes.Buffer
	s := &story{out: &out}
	wrong := errors.New("it is open")
	s.step("The first.", func() (outcome, error) { return isOpen("fine"), nil })
	s.step("The second.", func() (outcome, error) { return outcome{}, wrong })
	s.step("The third.", func() (outcome, error) { t.Error("the third step is told"); return outcome{}, nil })
	s.say("The end.")
	if !errors.Is(s.err, wrong) || !strings.Contains(s.err.Error(), "step 2 did not go as told:\n  The second.") {
		t.Errorf("the error is: %v", s.err)
	}
	if text := out.String(); !strings.Contains(text, "open     fine") || strings.Contains(text, "The end.") {
		t.Errorf("told:\n%s", text)
	}
}

func TestDemoSaysWhyCoreDNSDoesNotRun(t *testing.T) {
	for coredns, want := range map[string]string{
		"/bin/false":   "CoreDNS has ended",
		"/nonexistent": "no such file",
	} {
		err := tell(&story{out: new(bytes.Buffer)}, coredns)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", coredns, err, want)
		}
	}
}

func TestWrap(t *testing.T) {
	long := strings.Repeat("x", columns)
	for text, want := range map[string]string{
		"":                                "  ",
		"a  b":                            "  a  b",
		"a " + long + " b":                "  a\n  " + long + "\n  b",
		strings.Repeat("ab ", 25) + "abc": "  " + strings.TrimSpace(strings.Repeat("ab ", 25)) + "\n  abc",
	} {
		if got := wrap(text, "  "); got != want {
			t.Errorf("wrap(%q):\n%s\nwant\n%s", text, got, want)
		}
	}
}
