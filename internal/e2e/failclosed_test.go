package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// While the kernel refuses, nobody gets an address; when it no longer does, all
// is well without anybody's help. Here another process owns a table of our name.
func TestKernelRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.noOwner()
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
			w.wantNoAddress(w.query(p.Host, networks[(i+j+1)%2], p.resolver6, name, "A", 0))
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

// wantWithheld checks the answer to a client that gets no address, and understands
// why (RFC 8914).
func (w *world) wantWithheld(m *dns.Msg) {
	w.Helper()
	w.wantNoAddress(m)
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok && strings.HasPrefix(ede.ExtraText, guardTable+": ") && len(ede.ExtraText) > len(guardTable)+2 {
				return
			}
		}
	}
	w.Errorf("withheld without a reason: %v", m)
}

// wantNoAddress checks that an answer is SERVFAIL, and nothing else.
func (w *world) wantNoAddress(m *dns.Msg) {
	w.Helper()
	if m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 || len(m.Ns) > 0 {
		w.Errorf("not withheld: %v", m)
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
