//go:build unbound

package validate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/signedtree"
)

func question(name string) dns.Question {
	return dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassINET}
}

// small is a tree of three zones: signed, unsigned, and one that is signed wrongly.
func small(t *testing.T) *signedtree.Tree {
	t.Helper()
	tree, err := signedtree.New(
		signedtree.Zone{Name: ".", Algorithm: dns.ECDSAP256SHA256},
		signedtree.Zone{Name: "signed.", Algorithm: dns.ECDSAP256SHA256, Records: "* A 192.0.2.1\n"},
		signedtree.Zone{Name: "plain.", Records: "* A 192.0.2.2\n"},
		signedtree.Zone{Name: "bogus.", Algorithm: dns.ECDSAP256SHA256, Foreign: true, Records: "* A 192.0.2.3\n"},
		signedtree.Zone{Name: "lan.bogus.", Records: "* A 192.0.2.4\n"},
	)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func (v *Validator) want(t *testing.T, name string, want Verdict) {
	t.Helper()
	a, err := v.Validate(t.Context(), question(name), 1)
	if err != nil {
		t.Fatal(err)
	}
	if a.Verdict != want {
		t.Errorf("%s is %v (%s), want %v", name, a.Verdict, a.Why, want)
	}
}

// One question that the upstream leaves unanswered keeps no other waiting, whatever its
// verdict; and who no longer waits for it is not kept either.
func TestNoQuestionWaitsForAnother(t *testing.T) {
	t.Parallel()
	tree := small(t)
	release := make(chan struct{})
	v := rooted(t, tree, func(c *Config) {
		c.Upstream = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			if strings.HasPrefix(r.Question[0].Name, "slow") {
				<-release
			}
			tree.ServeDNS(w, r)
		})
	})
	defer close(release)
	impatient, cancel := context.WithCancelCause(t.Context())
	var waiting sync.WaitGroup
	for i := range 50 {
		waiting.Go(func() {
			if _, err := v.Validate(impatient, question(fmt.Sprintf("slow%d.signed.", i)), 1); !errors.Is(err, errGone) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	began := time.Now()
	for i := range 100 {
		v.want(t, fmt.Sprintf("n%d.signed.", i), Secure)
		v.want(t, fmt.Sprintf("n%d.plain.", i), Insecure)
	}
	t.Logf("200 others took %v", time.Since(began))
	cancel(errGone)
	waiting.Wait()
}

var errGone = errors.New("gone")

// What has been validated once is not asked for again, and its life gets shorter.
func TestValidationIsCached(t *testing.T) {
	t.Parallel()
	tree := small(t)
	var asked atomic.Int64
	v := rooted(t, tree, func(c *Config) {
		c.Upstream = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { asked.Add(1); tree.ServeDNS(w, r) })
	})
	for _, name := range []string{"a.signed.", "a.plain.", "a.bogus."} {
		if _, err := v.Validate(t.Context(), question(name), 1); err != nil {
			t.Fatal(err)
		}
	}
	before := asked.Load()
	for range 100 {
		v.want(t, "a.signed.", Secure)
		v.want(t, "a.plain.", Insecure)
		v.want(t, "a.bogus.", Bogus)
	}
	if n := asked.Load() - before; n > 0 {
		t.Errorf("the upstream was asked %d times more", n)
	}
	time.Sleep(1100 * time.Millisecond)
	if a, err := v.Validate(t.Context(), question("a.signed."), 1); err != nil || a.Msg.Answer[0].Header().Ttl >= 300 {
		t.Errorf("%v, %v", a.Msg, err)
	}
}

func TestNegativeAnchor(t *testing.T) {
	t.Parallel()
	v := rooted(t, small(t), func(c *Config) { c.Negative = []string{"lan.bogus."} })
	v.want(t, "a.bogus.", Bogus)
	v.want(t, "a.lan.bogus.", Insecure)
}

// Where no anchor is, nothing is known, also by an alias.
func TestOutsideOfAnchors(t *testing.T) {
	t.Parallel()
	tree, err := signedtree.New(
		signedtree.Zone{Name: ".", Algorithm: dns.ECDSAP256SHA256},
		signedtree.Zone{Name: "island.", Algorithm: dns.ECDSAP256SHA256, Undisclosed: true, Records: "www A 192.0.2.1\nout CNAME www.other.\n"},
		signedtree.Zone{Name: "other.", Records: "www A 192.0.2.2\n"},
	)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "island.ds")
	if err := os.WriteFile(file, []byte(tree.AnchorOf("island.")), 0o600); err != nil {
		t.Fatal(err)
	}
	v := rooted(t, tree, func(c *Config) { c.Anchors = []string{file} })
	v.want(t, "www.island.", Secure)
	v.want(t, "www.other.", Unknown)
	v.want(t, "out.island.", Unknown)
}

// An upstream that fails, or is silent, proves nothing; when it is back, so are answers.
func TestUpstreamFails(t *testing.T) {
	t.Parallel()
	tree := small(t)
	var down atomic.Bool
	v := rooted(t, tree, func(c *Config) {
		c.Upstream = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			if down.Load() {
				_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
				return
			}
			tree.ServeDNS(w, r)
		})
	})
	v.want(t, "a.plain.", Insecure)
	down.Store(true)
	for i := range 20 {
		v.want(t, fmt.Sprintf("down%d.plain.", i), Unknown)
		v.want(t, fmt.Sprintf("down%d.signed.", i), Unknown)
	}
	down.Store(false)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		a, err := v.Validate(t.Context(), question(fmt.Sprintf("n%d.signed.", time.Now().UnixNano())), 1)
		if err != nil {
			t.Fatal(err)
		}
		if a.Verdict == Secure {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %v: %s", a.Verdict, a.Why)
		}
	}
}

// Close is for all that is under way, and leaves nothing behind.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	tree := small(t)
	for range 3 {
		v := rooted(t, tree, func(c *Config) {
			c.Upstream = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
				time.Sleep(50 * time.Millisecond)
				tree.ServeDNS(w, r)
			})
		})
		var waiting sync.WaitGroup
		for i := range 100 {
			waiting.Go(func() {
				_, _ = v.Validate(t.Context(), question(fmt.Sprintf("n%d.signed.", i)), 1)
			})
		}
		time.Sleep(20 * time.Millisecond)
		v.Close()
		v.Close()
		waiting.Wait()
		if _, err := v.Validate(t.Context(), question("a.signed."), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines are left of %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// More than may wait are turned away at once.
func TestTooManyWait(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	tree := small(t)
	v := rooted(t, tree, func(c *Config) {
		c.Upstream = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { <-release; tree.ServeDNS(w, r) })
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	for ; n < 4*maxWaiting; n++ { // libunbound gives up what has waited for some 17 s: on a slow machine some have left
		if _, err := v.Validate(gone, question(fmt.Sprintf("n%d.signed.", n)), uint64(n)); errors.Is(err, ErrBusy) {
			break
		}
	}
	v.mu.Lock()
	waiting := len(v.waiting)
	v.mu.Unlock()
	close(release)
	if n < maxWaiting || n == 4*maxWaiting || waiting > maxWaiting {
		t.Errorf("%d have got a place, and %d are waiting, want %d", n, waiting, maxWaiting)
	}
}

// Who takes all places that one may have, for what the upstream does not answer, keeps nobody else from theirs.
func TestFloodOfOneAsker(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	tree := small(t)
	v := rooted(t, tree, func(c *Config) {
		c.Upstream = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			if strings.HasPrefix(r.Question[0].Name, "slow") {
				<-release
			}
			tree.ServeDNS(w, r)
		})
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	places := 0
	for ; places < maxWaiting; places++ {
		if _, err := v.Validate(gone, question(fmt.Sprintf("slow%d.plain.", places)), 1); errors.Is(err, ErrBusy) {
			break
		}
	}
	v.mu.Lock()
	held := v.held[1]
	v.mu.Unlock()
	if places != maxWaiting/2 || held != places {
		t.Errorf("one has got %d places, and has %d, want %d", places, held, maxWaiting/2)
	}
	for i := range 10 {
		if a, err := v.Validate(t.Context(), question(fmt.Sprintf("n%d.plain.", i)), 2); err != nil || a.Verdict != Insecure {
			t.Fatalf("another has got %v, %v", a, err)
		}
	}
}

// Anchors that are none, and a folder that cannot be written, are told of at the start.
func TestNewFails(t *testing.T) {
	t.Parallel()
	for _, config := range []Config{
		{State: "/proc/nowhere"},
		{State: t.TempDir(), Anchors: []string{"/nowhere/anchor"}},
		{State: t.TempDir(), Negative: []string{"a..b"}},
	} {
		if v, err := New(config); err == nil || v != nil {
			t.Errorf("%+v: %v, %v", config, v, err)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	tree, err := signedtree.New(signedtree.Zone{Name: ".", Algorithm: dns.ECDSAP256SHA256}, signedtree.Zone{Name: "signed.", Algorithm: dns.ECDSAP256SHA256, Records: "* A 192.0.2.1\n"})
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "root.ds")
	if err := os.WriteFile(file, []byte(tree.Anchor()), 0o600); err != nil {
		b.Fatal(err)
	}
	v, err := New(Config{Upstream: tree, Anchors: []string{file}, State: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.Validate(context.Background(), question("a.signed."), 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}
