package e2e

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// What somebody else may do to the guard's table.
var foreign = []struct {
	name  string
	do    func(*world)
	opens bool // until the guard has put it back
}{
	{"table deleted", (*world).deleteTable, true},
	{"ruleset flushed", (*world).flushRuleset, true},
	{"chain flushed", func(w *world) { w.flushChain("forward") }, false}, // its policy drops
	{"grants flushed", func(w *world) { w.flushSet("granted-local4") }, false},
}

// Whatever others do to the table in the middle of questions: an answer with an
// address means that the address can be reached.
func TestAnswersWhileOthersChangeTheFirewall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
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
					if time.Since(began) > 5*time.Second {
						t.Errorf("%s: %s was in an answer and is refused: %v", p.Name(), addr, err)
						return
					}
				}
			}
		})
	}
	for i := range 5 * len(foreign) {
		time.Sleep(100 * time.Millisecond)
		w.eventually("the table stands", w.enforced)
		f := foreign[i%len(foreign)]
		f.do(w)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d answers, %d times SERVFAIL, %d questions unanswered, %d connections refused until the grants were back",
		answers.Load(), failures.Load(), unanswered.Load(), late.Load())

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

// What is flushed comes back soon: with all grants, and without cutting a live
// connection.
func TestForeignChangesAreRepaired(t *testing.T) {
	for _, f := range foreign {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
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
			f.do(w)
			refusedAgain := time.Duration(0)
			for w.connect(w.client, "tcp", stranger4) == nil || w.connect(w.guard, "tcp", stranger4) == nil {
				if refusedAgain = time.Since(began); refusedAgain > 2*time.Second {
					t.Fatal("still open after 2 s")
				}
			}
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
	for _, f := range foreign {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(corefile(guardBlock("nft-both")))
			for range 50 {
				for deadline := time.Now().Add(20 * time.Second); !w.enforced(); {
					if time.Now().After(deadline) {
						t.Fatal("the rules are not put back")
					}
				}
				f.do(w)
			}
			w.eventually("the rules are back", w.enforced)
			w.lookup(w.guard, "127.0.0.1", w.self().addr4(1), 60)
			w.want([]attempt{{w.self(), w.self().addr4(1), true}, {w.self(), stranger4, false}, {w.behind(), stranger6, false}})
		})
	}
}

// While the kernel refuses, nobody gets an address; when it no longer does, all
// is well without anybody's help. Here another process owns a table of our name.
func TestKernelRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(corefile(guardBlock("nft-both")))
	parties := []party{w.self(), w.behind()}
	for _, p := range parties {
		w.lookup(p.Host, p.resolver4, p.addr4(1), 60)
	}
	usurper := w.usurpTable()
	// Soon after: the guard has to notice.
	w.eventually("an answer is withheld", func() bool {
		m := w.query(w.guard, "udp", "127.0.0.1", nameOf(60, "198.18.1.99"), "A", 1232)
		return m.Rcode == dns.RcodeServerFailure
	})
	for i, p := range parties {
		for j, name := range []string{nameOf(60, p.addr4(1)), nameOf(60, p.addr4(2)), "cname-1." + nameOf(60, p.addr4(3))} {
			w.wantWithheld(w.query(p.Host, networks[(i+j)%2], p.resolver4, name, "A", 1232))
			w.wantWithheld(w.query(p.Host, networks[(i+j+1)%2], p.resolver6, name, "A", 0))
		}
		// Answers without an address go on.
		if m := w.query(p.Host, "udp", p.resolver4, "nx.test.", "A", 1232); m.Rcode != dns.RcodeNameError {
			t.Errorf("a name that does not exist: %v", m)
		}
	}
	w.must(usurper.Close()) // its table goes with it
	w.eventually("the table stands again", w.enforced)
	for _, p := range parties {
		w.eventually("answers are given again", func() bool { return w.resolve(p.Host, p.resolver4, p.addr4(2), 60) == nil })
		w.want([]attempt{{p, p.addr4(2), true}, {p, p.addr6(2), false}})
	}
}

// usurpTable replaces the guard's table by an empty one which only the connection
// that is returned may change (NFT_TABLE_F_OWNER, Linux 5.12).
func (w *world) usurpTable() (owner *netlink.Conn) {
	w.Helper()
	w.must(w.guard.Do(func() (err error) {
		if owner, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			return err
		}
		if err := owner.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		message := func(kind uint16, flags netlink.HeaderFlags, family byte, resource uint16, attrs func(*netlink.AttributeEncoder)) netlink.Message {
			e := netlink.NewAttributeEncoder()
			if attrs != nil {
				attrs(e)
			}
			b, _ := e.Encode() // fails on none of these
			return netlink.Message{
				Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
				Data:   append([]byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}, b...),
			}
		}
		const nft = unix.NFNL_SUBSYS_NFTABLES
		name := func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, guardTable) }
		owned := func(e *netlink.AttributeEncoder) {
			name(e)
			e.Bytes(unix.NFTA_TABLE_FLAGS, []byte{0, 0, 0, 2})
		}
		_, err = owner.SendMessages([]netlink.Message{
			message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, nft, nil),
			message(nft<<8|unix.NFT_MSG_DELTABLE, 0, unix.NFPROTO_INET, 0, name),
			message(nft<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, unix.NFPROTO_INET, 0, owned),
			message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, nft, nil),
		})
		if err == nil {
			_, err = owner.Receive()
		}
		return err
	}))
	w.Cleanup(func() { _ = owner.Close() })
	return owner
}

// wantWithheld checks the answer to a client that gets no address: SERVFAIL, and
// why, if the client understands it (RFC 8914).
func (w *world) wantWithheld(m *dns.Msg) {
	w.Helper()
	if m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 || len(m.Ns) > 0 {
		w.Errorf("not withheld: %v", m)
	}
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok && strings.HasPrefix(ede.ExtraText, guardTable+": ") && len(ede.ExtraText) > len(guardTable)+2 {
				return
			}
		}
		w.Errorf("withheld without a reason: %v", m)
	}
}

// fails runs the binary on the guard until it ends with an error, and returns
// what it wrote.
func (w *world) fails(c *netlab.Cmd) string {
	w.Helper()
	if err := c.Start(); err != nil {
		w.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			w.Errorf("it ended without an error:\n%s", c.Output())
		}
	case <-time.After(20 * time.Second):
		w.Fatalf("it did not end:\n%s", c.Output())
	}
	return c.Output()
}

func TestStartWithoutTheRight(t *testing.T) {
	t.Parallel()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Fatalf("%v (it is in util-linux)", err)
	}
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "Corefile")
	w.save(path, corefile(guardBlock("nft-both")))
	out := w.fails(w.guard.Command(setpriv, "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", binary(t), "-conf", path))
	t.Logf("it said:\n%s", out)
	if !strings.Contains(out, "CAP_NET_ADMIN") {
		t.Error("it does not say what it needs")
	}
	if tables := w.tables(); len(tables) > 0 {
		t.Errorf("there are tables: %v", tables)
	}
	w.want([]attempt{{w.self(), w.self().addr4(1), true}, {w.behind(), w.behind().addr6(1), true}})
}

func TestStartWherePort53IsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.guard.ServeDNS(53, netlab.Zone()))
	path := filepath.Join(t.TempDir(), "Corefile")
	w.save(path, corefile(guardBlock("nft-both")))
	out := w.fails(w.guard.Command(binary(t), "-conf", path))
	if !strings.Contains(out, "address already in use") {
		t.Errorf("it said:\n%s", out)
	}
	if tables := w.tables(); len(tables) > 0 {
		t.Errorf("there are tables: %v", tables)
	}
	w.want([]attempt{{w.self(), w.self().addr4(1), true}, {w.behind(), w.behind().addr6(1), true}})
}
