package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A change is what somebody else may do to the guard's table.
type change struct {
	name string
	do   func(*nftables.Conn) error
}

var emptied = []change{
	{"chain flushed", func(c *nftables.Conn) error {
		c.FlushChain(&nftables.Chain{Name: "forward", Table: ours}) // its policy drops
		return c.Flush()
	}},
	{"grants flushed", func(c *nftables.Conn) error {
		c.FlushSet(&nftables.Set{Name: "granted-local4", Table: ours})
		return c.Flush()
	}},
}

// A kernel, and what somebody else may try there.
type kernel struct {
	name    string
	owners  bool // the table belongs to the guard: others are refused
	foreign []change
}

var kernels = []kernel{
	{"with owners", true, slices.Concat([]change{
		{"table deleted", deleteTable},
		{"ruleset flushed", flushRuleset},
		{"element added", func(c *nftables.Conn) error {
			if err := c.SetAddElements(&nftables.Set{Name: "granted-local4", Table: ours, HasTimeout: true, KeyType: nftables.TypeIPAddr},
				[]nftables.SetElement{{Key: net.ParseIP(stranger4).To4(), Timeout: time.Hour}}); err != nil {
				return err
			}
			return c.Flush()
		}},
		{"rule added", func(c *nftables.Conn) error {
			for _, chain := range []string{"output", "forward"} {
				c.InsertRule(&nftables.Rule{Table: ours, Chain: &nftables.Chain{Name: chain, Table: ours}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
			}
			return c.Flush()
		}},
	}, emptied)},
	{"as before 6.9", false, slices.Concat([]change{
		{"table deleted", anew(func(c *nftables.Conn) { c.DelTable(ours) })},
		{"ruleset flushed", anew((*nftables.Conn).FlushRuleset)},
	}, emptied)},
}

// prepare skips the test where the real kernel cannot play this one.
func (k kernel) prepare(w *world) {
	w.Helper()
	if k.owners && !netlab.Kernel(6, 9) {
		w.Skip("tables that outlive their owner need Linux 6.9")
	}
	if !k.owners {
		w.noOwner()
	}
}

// commit makes a change, which a table with an owner stands.
func (k kernel) commit(w *world, c change) {
	w.Helper()
	switch err := w.asSomebody(c.do); {
	case !k.owners:
		w.must(err)
	case c.name == "ruleset flushed": // passes it by
		w.must(err)
	case !errors.Is(err, unix.EPERM):
		w.Errorf("%s: %v, want EPERM", c.name, err)
	}
}

// Whatever others do to the table in the middle of questions: an answer with an
// address means that the address can be reached.
func TestAnswersWhileOthersChangeTheFirewall(t *testing.T) {
	for _, k := range kernels {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			answersWhileOthersChange(t, k)
		})
	}
}

func answersWhileOthersChange(t *testing.T, k kernel) {
	w := newWorld(t)
	k.prepare(w)
	w.start(corefile(guardBlock("nft-both")))
	var next, answers, failures, unanswered, late atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, p := range []party{w.self(), w.self(), w.self(), w.behind(), w.behind(), w.behind()} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := next.Add(1)
				addr := fmt.Sprintf("198.19.%d.%d", n>>8&0xff, n&0xff)
				m := new(dns.Msg).SetQuestion(nameOf(60, addr), dns.TypeA)
				m, err := exchange(p.Host, "udp", p.resolver4, m)
				if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
					// The question came while there was no table, and so no connection tracking: the
					// answer looked like the guard's own idea, and was refused.
					unanswered.Add(1)
					continue
				}
				if err != nil {
					t.Errorf("%s: no answer: %v", p.Name(), err)
					return
				}
				switch got := len(addresses(m)); {
				case m.Rcode == dns.RcodeServerFailure && got == 0:
					failures.Add(1)
					continue
				case m.Rcode != dns.RcodeSuccess || got != 1:
					t.Errorf("neither an address nor SERVFAIL: %v", m)
					return
				}
				answers.Add(1)
				// Between the answer and this connection the table may have gone again. The grant
				// then comes back with it, without another question.
				for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
					err := w.connect(p.Host, "tcp", addr)
					if err == nil {
						break
					}
					late.Add(1)
					if time.Since(began) > 20*time.Second {
						t.Errorf("%s: %s was in an answer and is refused: %v", p.Name(), addr, err)
						return
					}
				}
			}
		})
	}
	for i := range 5 * len(k.foreign) {
		time.Sleep(100 * time.Millisecond)
		w.eventually("the table stands", w.enforced)
		k.commit(w, k.foreign[i%len(k.foreign)])
	}
	close(stop)
	wg.Wait()
	t.Logf("%d answers, %d times SERVFAIL, %d questions unanswered, %d connections refused until the grants were back",
		answers.Load(), failures.Load(), unanswered.Load(), late.Load())
	if n := failures.Load() + unanswered.Load() + late.Load(); n > 0 && k.owners {
		t.Errorf("%d times somebody suffered, though the kernel lets nobody change the table", n)
	}

	// When all is quiet again, so is the guard.
	w.eventually("the table stands", w.enforced)
	before := w.refusals()
	for i := range 50 {
		for _, p := range []party{w.self(), w.behind()} {
			w.lookup(p.Host, p.resolver4, p.addr4(i+1), 60)
			w.wantOpen(p.Host, "tcp", p.addr4(i+1))
		}
	}
	if n := w.refusals() - before; n > 0 {
		t.Errorf("%d packets were refused", n)
	}
	w.want([]attempt{{w.self(), stranger4, false}, {w.self(), stranger6, false}, {w.behind(), stranger4, false}, {w.behind(), stranger6, false}})
}

// A table that has an owner stands whatever others do: a hundred attempts open
// nothing and refuse nothing.
func TestForeignChangesHaveNoEffect(t *testing.T) {
	t.Parallel()
	w, k := newWorld(t), kernels[0]
	k.prepare(w)
	c := w.start(corefile(guardBlock("nft-both")))
	tr := w.traffic()
	tr.ofAll()
	rules := w.rules()
	for i := range 100 {
		time.Sleep(5 * time.Millisecond)
		k.commit(w, k.foreign[i%len(k.foreign)])
	}
	if !w.ready() {
		t.Error("not ready")
	}
	tr.end()
	if after := w.rules(); after != rules {
		t.Errorf("the firewall was\n%s\nand is now\n%s", rules, after)
	}
	if n := w.metric("coredns_ipdestinationguard_repairs_total"); n != 0 || strings.Contains(c.Output(), "Somebody else") {
		t.Errorf("%v repairs:\n%s", n, c.Output())
	}
}

// What is flushed comes back soon: with all grants, and without cutting a live
// connection.
func TestForeignChangesAreRepaired(t *testing.T) {
	k := kernels[1]
	for _, f := range k.foreign {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			k.prepare(w)
			w.start(corefile(guardBlock("nft-both")))
			parties := []party{w.self(), w.behind()}
			var granted []attempt
			for _, p := range parties {
				for _, addr := range []string{p.addr4(1), p.addr6(1)} {
					w.lookup(p.Host, p.resolver4, addr, 60)
					granted = append(granted, attempt{p, addr, true})
				}
			}
			live, err := w.dial(w.client, "tcp", w.behind().addr4(1))
			w.must(err)
			defer live.Close()

			began := time.Now()
			k.commit(w, f)
			w.eventually("strangers are refused again", func() bool {
				return w.connect(w.client, "tcp", stranger4) != nil && w.connect(w.guard, "tcp", stranger4) != nil
			})
			refusedAgain := time.Since(began)
			w.eventually("the grants are back", func() bool {
				for _, a := range granted {
					if w.connect(a.Host, "tcp", a.addr) != nil {
						return false
					}
				}
				return true
			})
			t.Logf("open for %v; whole again within %v", refusedAgain, time.Since(began))
			w.want([]attempt{{w.self(), stranger4, false}, {w.self(), stranger6, false}, {w.behind(), stranger4, false}, {w.behind(), stranger6, false}})
			w.must(echo(live))
		})
	}
}

// Somebody else changes the table the very moment it is back, again and again:
// what they leave is never taken for the guard's own.
func TestForeignChangesInQuickSuccession(t *testing.T) {
	k := kernels[1]
	for _, f := range k.foreign {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			k.prepare(w)
			w.start(corefile(guardBlock("nft-both")))
			for range 50 {
				for deadline := time.Now().Add(20 * time.Second); !w.enforced(); {
					if time.Now().After(deadline) {
						t.Fatal("the rules are not put back")
					}
				}
				k.commit(w, f)
			}
			w.eventually("the rules are back", w.enforced)
			w.lookup(w.guard, "127.0.0.1", w.self().addr4(1), 60)
			w.want([]attempt{{w.self(), w.self().addr4(1), true}, {w.self(), stranger4, false}, {w.behind(), stranger6, false}})
		})
	}
}
