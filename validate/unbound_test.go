//go:build unbound

package validate

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/signedtree"
)

// rooted is a validator that trusts the root of a tree and asks it.
func rooted(t *testing.T, tree *signedtree.Tree, change func(*Config)) *Validator {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "root.ds")
	if err := os.WriteFile(file, []byte(tree.Anchor()), 0o600); err != nil {
		t.Fatal(err)
	}
	config := Config{Upstream: tree, Anchors: []string{file}, State: dir}
	if change != nil {
		change(&config)
	}
	v, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func TestSignedTree(t *testing.T) {
	tree, cases, err := signedtree.Cases()
	if err != nil {
		t.Fatal(err)
	}
	v := rooted(t, tree, nil)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			for range 2 { // and from libunbound's cache
				began := time.Now()
				a, err := v.Validate(t.Context(), c.Q(), 1)
				if err != nil {
					t.Fatal(err)
				}
				if a.Verdict.String() != c.Verdict {
					t.Errorf("%v (%s), want %s\n%v", a.Verdict, a.Why, c.Verdict, a.Msg)
				}
				if c.Code != 0 && a.Code != c.Code {
					t.Errorf("code %d (%s), want %d", a.Code, a.Why, c.Code)
				}
				t.Log(a.Verdict, a.Code, a.Why, time.Since(began))
			}
		})
	}
}
