package e2e

import (
	"context"
	endian "encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

const briefMargin = time.Second

// briefly is a Corefile under which grants may be short.
func briefly(options ...string) string {
	return corefile(guardBlock("nft-both", append(options, "margin 1s", "ttl 1s 24h")...))
}

// kill ends the binary as a crash does.
func (w *world) kill(c *coredns) {
	w.Helper()
	w.must(c.Signal(syscall.SIGKILL))
	_ = w.exits(c)
}

// A crash opens nothing, closes nothing that is open before its time, and loses
// nothing.
func TestKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := briefly()
	began := time.Now()
	c := w.start(file)
	starting := time.Since(began)
	parties := []party{w.self(), w.behind()}
	tr := w.traffic()
	var live []net.Conn
	for _, p := range parties {
		w.lookup(p.Host, p.resolver4, p.addr4(1), 3600)
		w.lookup(p.Host, p.resolver6, p.addr6(1), 3600)
		live = append(live, w.connected(p.Host, p.addr4(1)), w.connected(p.Host, p.addr6(1)))
		tr.neverOpen(p.Host)
		tr.alwaysOpen(p.Host, p.addr4(1))
		tr.alwaysOpen(p.Host, p.addr6(1))
		tr.asks(p.Host, p.resolver4, true)
	}
	tr.alive(live...)
	const rounds = 8
	for round := range rounds {
		if round%2 == 0 {
			time.Sleep(rand.N(300 * time.Millisecond))
		}
		w.kill(c)
		time.Sleep(rand.N(100 * time.Millisecond))
		c = w.launch(file)
		if round%2 == 0 {
			time.Sleep(rand.N(starting)) // while it starts
			continue
		}
		w.inForce(c)
		p := parties[round/2%2]
		w.lookup(p.Host, p.resolver4, p.addr4(10+round), 60) // new answers work at once
		w.wantOpen(p.Host, "tcp", p.addr4(10+round))
	}
	w.inForce(c)

	// With nobody there to end them, the kernel ends grants.
	short := []brief{
		w.brief(parties[0], parties[0].addr4(3), 1, briefMargin), w.brief(parties[0], parties[0].addr6(3), 2, briefMargin),
		w.brief(parties[1], parties[1].addr4(3), 1, briefMargin), w.brief(parties[1], parties[1].addr6(3), 2, briefMargin),
	}
	w.kill(c)
	for _, b := range short {
		w.endsByItself(b)
	}
	tr.end()
	if tr.count["answers"] == 0 {
		t.Error("nothing was ever answered")
	}
}

// inForce waits until the binary has put its rules in force.
func (w *world) inForce(c *coredns) {
	w.Helper()
	w.eventually("the rules are in force", func() bool { return strings.Contains(c.Output(), "In force: ") })
}

// After a restart the grants that an earlier process has made are known, with
// the life that they have left.
func TestRestartAdoptsGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := briefly()
	c := w.start(file)
	p := w.self()
	for i := range 20 {
		w.lookup(p.Host, p.resolver4, p.addr4(1+i), 600+i)
		w.lookup(p.Host, p.resolver4, p.addr6(1+i), 700+i)
	}
	short := w.brief(p, p.addr4(200), 3, briefMargin)
	w.kill(c)

	// What many users leave behind. Nobody asks for these addresses here.
	const crowd = 20_000
	w.nftables(func(conn *nftables.Conn) error {
		table := &nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}
		set := &nftables.Set{Name: "granted-local4", Table: table, HasTimeout: true, KeyType: nftables.TypeIPAddr}
		for from := 0; from < crowd; from += 1000 {
			var elements []nftables.SetElement
			for i := from; i < from+1000; i++ {
				elements = append(elements, nftables.SetElement{Key: []byte{203, 0, byte(i >> 8), byte(i)}, Timeout: time.Hour})
			}
			if err := conn.SetAddElements(set, elements); err != nil {
				return err
			}
			if err := conn.Flush(); err != nil {
				return err
			}
		}
		return nil
	})
	before, rules := w.grants(), w.rules()
	if len(before) < crowd+40 {
		t.Fatalf("%d grants, want %d and more", len(before), crowd+40)
	}

	began := time.Now()
	c = w.start(file)
	inForce := time.Since(began)
	// Answers do not wait for the rest.
	count := func() int { return int(w.metric(`coredns_ipdestinationguard_grants`)) }
	for i := range 40 {
		addr := fmt.Sprintf("203.0.%d.7", 2*i)
		w.lookup(p.Host, p.resolver4, addr, 7200+i)
		if i == 0 && count() >= crowd+40 {
			t.Error("all are adopted before the first answer")
		}
		if got := w.left(addr); got < 2*time.Hour {
			t.Errorf("%s was answered with 2h and is open for %v", addr, got)
		}
		delete(before, netip.MustParseAddr(addr))
	}
	for count() < crowd+40 { // it takes its time, so as not to take that of others
		if time.Since(began) > 5*time.Minute {
			t.Fatalf("%d grants are known after five minutes", count())
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("in force after %v with %d grants, all adopted after %v", inForce, len(before), time.Since(began))

	w.endsByItself(short)
	after := w.grants()
	lost, renewed := 0, 0
	for addr, was := range before {
		is, found := after[addr]
		switch {
		case !found && was.from.After(time.Now().Add(time.Second)): // the last half second is not counted upon
			lost++
		case found && !is.near(was):
			renewed++
		}
	}
	if lost > 0 || renewed > 0 {
		t.Errorf("%d grants were lost and %d have another life than before", lost, renewed)
	}
	if w.rules() == rules {
		t.Error("the rules are the old ones") // not wrong, but then this test proves nothing
	}
	w.eventually("those that have ended are forgotten", func() bool { return count() == crowd+40 })
	// A grant that was adopted is renewed when an answer needs it longer, not else.
	addr := p.addr4(1)
	w.lookup(p.Host, p.resolver4, addr, 30)
	if got := w.left(addr); got > 602*time.Second {
		t.Errorf("%s is open for %v, though nothing asked for more", addr, got)
	}
	w.lookup(p.Host, p.resolver4, addr, 5000)
	if got := w.left(addr); got < 5000*time.Second {
		t.Errorf("%s is open for %v, want 5000 s and more", addr, got)
	}
	for _, variable := range []string{"kernel_errors_total", "repairs_total"} {
		if got := w.metric("coredns_ipdestinationguard_" + variable); got != 0 {
			t.Errorf("%s is %v", variable, got)
		}
	}
	w.must(c.Stop())
}

// left is how long the kernel still lets an IPv4 address be reached.
func (w *world) left(addr string) time.Duration {
	w.Helper()
	return time.Until(w.grants()[netip.MustParseAddr(addr)].to)
}

// SIGTERM leaves what on_exit says, and on the way no answer is a lie.
func TestTerminate(t *testing.T) {
	for _, leave := range []string{"keep", "remove"} {
		t.Run(leave, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			file := briefly("on_exit " + leave)
			parties := []party{w.self(), w.behind()}
			var live []net.Conn
			for round := range 4 {
				c := w.start(file)
				shut := w.traffic()
				for _, p := range parties {
					w.wantShut(p.Host, p.addr4(2))
					if round == 0 {
						w.lookup(p.Host, p.resolver4, p.addr4(1), 3600)
						live = append(live, w.connected(p.Host, p.addr4(1)))
					}
					if leave == "keep" {
						shut.neverOpen(p.Host)
						shut.alwaysOpen(p.Host, p.addr4(1))
					}
				}
				shut.alive(live...)
				for _, p := range parties {
					for range 2 {
						shut.asks(p.Host, p.resolver4, true)
					}
				}
				time.Sleep(100*time.Millisecond + rand.N(200*time.Millisecond))
				p := parties[round%2]
				short := w.brief(p, p.addr4(10+round), 1, briefMargin)
				before, began := w.rules(), time.Now()
				w.must(c.Signal(syscall.SIGTERM))
				if err := w.exits(c); err != nil {
					t.Errorf("exit: %v", err)
				}
				took := time.Since(began)
				time.Sleep(100 * time.Millisecond)
				t.Logf("ended %v after SIGTERM", took.Round(time.Millisecond))
				if leave == "keep" {
					w.endsByItself(short)
					shut.end()
					if after := w.rules(); after != before {
						t.Errorf("the firewall was\n%s\nand is now\n%s", before, after)
					}
					continue
				}
				shut.end()
				if tables := w.tables(); len(tables) > 0 {
					t.Errorf("left behind: %v", tables)
				}
				for _, p := range parties {
					w.wantOpen(p.Host, "tcp", p.addr4(2))
				}
			}
		})
	}
}

// Connections that were there before the guard go on; new ones do not slip in
// with them.
func TestFirstArmingCutsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.guard.Echo(22)) // somebody is logged in
	login, err := dialPort(w.world, "192.0.2.1", 22)
	w.must(err)
	defer login.Close()
	old, idle := []net.Conn{login}, map[string]net.Conn{}
	for _, p := range []party{w.self(), w.behind()} {
		for i, addr := range []string{p.addr4(1), p.addr6(1)} {
			old = append(old, w.connected(p.Host, addr))
			idle[fmt.Sprint(p.Name(), i)] = w.connected(p.Host, addr)
		}
	}
	c := w.start(briefly())
	if left := w.arming(); left <= 0 || left > 30*time.Second {
		t.Errorf("connections that are older than the guard may go on for %v, want up to 30s", left)
	}
	tr := w.traffic()
	tr.neverOpen(w.guard)
	tr.neverOpen(w.client)
	tr.alive(old...)
	time.Sleep(time.Second)

	// Neither a reload nor a restart gives them more time. The 30 seconds are
	// shortened while nobody owns the table.
	before := time.Now().Add(w.arming())
	w.mustReload(c, briefly("hold 2s"))
	if after := time.Now().Add(w.arming()); after.After(before.Add(time.Second)) {
		t.Errorf("old connections had until %v, and after a reload until %v", before, after)
	}
	w.must(c.Stop())
	w.nftables(func(conn *nftables.Conn) error {
		set := &nftables.Set{Name: "arming", Table: ours, HasTimeout: true, KeyType: nftables.TypeNFProto}
		all := []nftables.SetElement{{Key: []byte{unix.NFPROTO_IPV4}}, {Key: []byte{unix.NFPROTO_IPV6}}}
		if err := conn.SetDeleteElements(set, all); err != nil {
			return err
		}
		for i := range all {
			all[i].Timeout = 3 * time.Second
		}
		return errors.Join(conn.SetAddElements(set, all), conn.Flush())
	})
	before = time.Now().Add(3 * time.Second)
	c = w.start(briefly())
	if after := time.Now().Add(w.arming()); after.After(before.Add(time.Second)) {
		t.Errorf("old connections had until %v, and after a restart until %v", before, after)
	}
	w.eventually("the arming has ended", func() bool { return w.arming() == 0 })
	time.Sleep(100 * time.Millisecond)
	if left := w.arming(); left != 0 {
		t.Errorf("the arming has begun anew, for %v", left)
	}
	for name, conn := range idle {
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := conn.Write([]byte("ping"))
		if err == nil {
			_, err = conn.Read(make([]byte, 4))
		}
		if err == nil {
			t.Errorf("%s: a connection that nobody knows was let through after the arming", name)
		}
	}
	for _, p := range []party{w.self(), w.behind()} {
		w.wantShut(p.Host, p.addr4(1)) // what was open is not open for others
	}
	time.Sleep(200 * time.Millisecond)
	tr.end()
	if n := w.metric("coredns_ipdestinationguard_repairs_total"); n != 0 {
		t.Errorf("%v repairs, though nothing of ours was missing", n)
	}
	if strings.Contains(c.Output(), "Somebody else") {
		t.Error("an element that ended was taken for somebody's change")
	}
}

func dialPort(from sender, addr string, port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(addr, fmt.Sprint(port)))
	if err == nil {
		err = echo(conn)
	}
	return conn, err
}

// Somebody flushes the ruleset, and the table had no owner.
func TestForeignFlush(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.noOwner()
	c := w.start(briefly())
	parties := []party{w.self(), w.behind()}
	addrs := map[netip.Addr]period{}
	for _, p := range parties {
		for i := range 20 {
			w.lookup(p.Host, p.resolver4, p.addr4(1+i), 3600+i)
			w.lookup(p.Host, p.resolver6, p.addr6(1+i), 3600+i)
		}
	}
	maps.Copy(addrs, w.grants())
	live := []net.Conn{w.connected(w.guard, w.self().addr4(1)), w.connected(w.client, w.behind().addr6(1))}
	tr := w.traffic()
	tr.alive(live...)
	began := time.Now()
	const rounds = 6
	var shut, back [rounds]time.Duration
	for round := range rounds {
		time.Sleep(rand.N(100 * time.Millisecond))
		p := parties[round%2]
		flushed := time.Now()
		w.nftables(anew((*nftables.Conn).FlushRuleset))
		for n := 0; ; n++ {
			addr, _ := unlistedAddrs(n)
			tried := time.Now()
			if w.try(t.Context(), p.Host, addr) != nil {
				shut[round] = tried.Sub(flushed)
				break
			}
			if time.Since(flushed) > 20*time.Second {
				t.Fatal("open for twenty seconds after a flush")
			}
		}
		w.eventually("the grants are back", func() bool { return len(w.grants()) >= len(addrs) })
		back[round] = time.Since(flushed)
		for i := range 20 {
			w.wantOpen(p.Host, "tcp", p.addr4(1+i))
		}
		w.wantShut(p.Host, p.addr4(200))
		w.lookup(p.Host, p.resolver4, p.addr4(100+round), 60)
		w.wantOpen(p.Host, "tcp", p.addr4(100+round))
	}
	took := time.Since(began)
	for addr, was := range addrs {
		if is, found := w.grants()[addr]; !found || !is.near(was) {
			t.Errorf("%s ended at %v and now ends at %v", addr, was.from, is.from)
			break
		}
	}
	t.Logf("shut after %v, grants back after %v", shut, back)
	if n := w.metric("coredns_ipdestinationguard_repairs_total"); n < rounds {
		t.Errorf("%v repairs, want %d", n, rounds)
	}
	lines := strings.Count(c.Output(), "Somebody else has changed table inet ipdestinationguard")
	if most := 1 + int(took/(10*time.Second)); lines < 1 || lines > most {
		t.Errorf("told %d times, want once in 10s:\n%s", lines, c.Output())
	}
	if !w.ready() {
		t.Error("not ready")
	}
	tr.cease()
	tr.wg.Wait()
	for _, f := range tr.faults {
		t.Error(f)
	}
}

// Ready means that the rules are in force.
func TestReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := strings.Replace(briefly(), "ready 127.0.0.1:8181", "ready 127.0.0.1:8181 {\n monitor continuously\n}", 1)
	for round := range 4 {
		if round == 3 {
			w.noOwner() // nobody could take it away
		}
		c := w.launch(file)
		// CoreDNS's ready listens a moment before it knows whom to ask, and says
		// yes to everybody until then: once does not count.
		for twice := 0; twice < 2; {
			if w.ready() {
				twice++
				continue
			}
			twice = 0
			if strings.Count(c.Output(), "\n") > 1000 {
				t.Fatal("never ready")
			}
		}
		if !slices.Contains(w.tables(), guardTable) {
			t.Fatal("ready before the rules were in force")
		}
		w.wantShut(w.guard, "198.18.1.9")
		if round < 3 {
			w.kill(c)
			w.nftables(deleteTable)
			continue
		}
		// Somebody takes the table away and keeps the guard from putting it back.
		thief := w.steal()
		w.eventually("it is not ready any more", func() bool { return !w.ready() })
		answer, err := w.ask(w.guard, "127.0.0.1", nameOf(60, "198.18.1.10"), 1)
		if err != nil || len(answer.Answer) > 0 {
			t.Errorf("an address was given away although nothing guards: %v, %v", answer, err)
		}
		if n := w.metric("coredns_ipdestinationguard_enforcing"); n != 0 {
			t.Errorf("enforcing is %v, want 0", n)
		}
		_ = unix.Close(thief) // and the table with it
		w.eventually("it is ready again", w.ready)
		w.wantShut(w.guard, "198.18.1.9")
		w.lookup(w.guard, "127.0.0.1", "198.18.1.10", 60)
		w.wantOpen(w.guard, "tcp", "198.18.1.10")
	}
}

// steal replaces the guard's table by one that belongs to the socket returned:
// the kernel lets nobody else change it, and deletes it with the socket.
func (w *world) steal() (fd int) {
	w.Helper()
	message := func(typ uint16, family byte, resource uint16, attrs ...byte) []byte {
		b := make([]byte, 20, 20+len(attrs))
		endian.NativeEndian.PutUint32(b, uint32(20+len(attrs)))
		endian.NativeEndian.PutUint16(b[4:], typ)
		endian.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_CREATE)
		b[16], b[18], b[19] = family, byte(resource>>8), byte(resource)
		return append(b, attrs...)
	}
	name := append([]byte(guardTable), 0)
	for len(name)%4 != 0 {
		name = append(name, 0)
	}
	attr := func(typ, size int, value ...byte) []byte {
		b := make([]byte, 4)
		endian.NativeEndian.PutUint16(b, uint16(4+size))
		endian.NativeEndian.PutUint16(b[2:], uint16(typ))
		return append(b, value...)
	}
	nameAttr := attr(unix.NFTA_TABLE_NAME, len(guardTable)+1, name...)
	const owner = 2 // NFT_TABLE_F_OWNER
	batch := message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFNL_SUBSYS_NFTABLES)
	batch = append(batch, message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NFPROTO_INET, 0, nameAttr...)...)
	batch = append(batch, message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NFPROTO_INET, 0,
		append(slices.Clone(nameAttr), attr(unix.NFTA_TABLE_FLAGS, 4, 0, 0, 0, owner)...)...)...)
	batch = append(batch, message(unix.NFNL_MSG_BATCH_END, 0, unix.NFNL_SUBSYS_NFTABLES)...)
	w.must(w.guard.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		return unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}))
	return fd
}

// The ruleset that is loaded at boot keeps the machine shut until CoreDNS takes
// over, and then hands over without a gap.
func TestBootRuleset(t *testing.T) {
	t.Parallel()
	nft, err := exec.LookPath("nft")
	if err != nil {
		nft = "/usr/sbin/nft" // not in the PATH of an ordinary user
		if _, err := os.Stat(nft); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	for _, test := range []struct {
		file, mode string
		guarded    func(*world) []party
	}{
		{"boot-server.nft", "nft-local", func(w *world) []party { return []party{w.self()} }},
		{"boot-gateway.nft", "nft-both", func(w *world) []party { return []party{w.self(), w.behind()} }},
	} {
		t.Run(test.mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.must(w.guard.Echo(22))
			load := w.guard.Command(nft, "-f", "../../deployment/"+test.file)
			if err := load.Run(); err != nil {
				t.Fatalf("%v\n%s", err, load.Output())
			}
			tr := w.traffic()
			for _, p := range test.guarded(w) {
				tr.neverOpen(p.Host)
				w.wantShut(p.Host, p.addr4(1))
				w.wantShut(p.Host, p.addr6(1))
			}
			login, err := dialPort(w.world, "192.0.2.1", 22)
			w.must(err)
			defer login.Close()
			tr.alive(login)
			file := corefile(guardBlock(test.mode))
			for range 3 {
				time.Sleep(50 * time.Millisecond)
				c := w.start(file)
				for _, p := range test.guarded(w) {
					w.wantShut(p.Host, p.addr4(1))
					w.lookup(p.Host, p.resolver4, p.addr4(2), 600)
					w.wantOpen(p.Host, "tcp", p.addr4(2))
				}
				time.Sleep(50 * time.Millisecond)
				if tables := w.tables(); len(tables) != 1 {
					t.Errorf("tables: %v", tables)
				}
				w.must(c.Stop())
				// As the boot unit would on another boot, with the table there: it changes nothing.
				before := w.firewall()
				again := w.guard.Command(nft, "-f", "../../deployment/"+test.file)
				var exit *exec.ExitError
				if err := again.Run(); !errors.As(err, &exit) {
					t.Errorf("loaded over CoreDNS's rules: %v\n%s", err, again.Output())
				}
				if after := w.firewall(); after != before {
					t.Errorf("the firewall was\n%s\nand is now\n%s", before, after)
				}
			}
			tr.end()
		})
	}
}
