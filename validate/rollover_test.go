//go:build unbound

package validate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/signedtree"
)

const holdDown = 2 * time.Second

// A new key of the root is trusted when it has been there for long enough, and the old one
// is no more when it has been revoked: also after a restart. Who has only the old one, or meets a
// new one for the first time, trusts nothing.
func TestRootKeyRollsOver(t *testing.T) {
	t.Parallel()
	records := ""
	for i := range 100 {
		records += fmt.Sprintf("n%d 300 A 192.0.2.%d\n", i, i)
	}
	tree, err := signedtree.New(signedtree.Zone{Name: ".", Algorithm: dns.ECDSAP256SHA256, Records: records})
	if err != nil {
		t.Fatal(err)
	}
	state, anchor := t.TempDir(), filepath.Join(t.TempDir(), "before.ds")
	if err := os.WriteFile(anchor, []byte(tree.Anchor()), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *Validator {
		return rooted(t, tree, func(c *Config) { c.Anchors, c.State, c.HoldDown = []string{anchor}, state, holdDown })
	}
	n := 0
	// ask asks for a name that nobody has asked for, so that somebody has to look at the keys.
	ask := func(v *Validator) *Answer {
		t.Helper()
		n++
		a, err := v.Validate(t.Context(), dns.Question{Name: fmt.Sprintf("n%d.", n), Qtype: dns.TypeA, Qclass: dns.ClassINET}, 1)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	secure := func(v *Validator, when string) {
		t.Helper()
		if a := ask(v); a.Verdict != Secure {
			t.Fatalf("%s: %v: %s", when, a.Verdict, a.Why)
		}
	}
	kept := func() string {
		files, _ := filepath.Glob(filepath.Join(state, "*.key"))
		if len(files) != 1 {
			t.Fatalf("kept in %v", files)
		}
		text, _ := os.ReadFile(files[0])
		return string(text)
	}
	// Keys are looked at when they are fetched: once in their time to live, or by who starts.
	restart := func(when string) {
		t.Helper()
		v := start()
		secure(v, when)
		v.Close()
	}
	restart("at first")
	if err := tree.Introduce(); err != nil {
		t.Fatal(err)
	}
	restart("when the new key is seen")
	if n := strings.Count(kept(), "[  VALID  ]"); n != 1 || !strings.Contains(kept(), "ADDPEND") {
		t.Errorf("%d keys are trusted:\n%s", n, kept())
	}
	time.Sleep(holdDown + time.Second)
	restart("when the new key has been there for long enough")
	if strings.Contains(kept(), "ADDPEND") {
		t.Errorf("the new key is not trusted:\n%s", kept())
	}
	tree.Revoke()
	restart("when the old one is revoked")
	restart("and later")
	if text := kept(); !strings.Contains(text, "REVOKED") {
		t.Errorf("the old key is not revoked:\n%s", text)
	}
	t.Log(kept())

	late := rooted(t, tree, func(c *Config) { c.Anchors = []string{anchor} }) // with no state
	if a := ask(late); a.Verdict == Secure || a.Verdict == Insecure {
		t.Errorf("who has slept through it: %v", a.Verdict)
	}
}
