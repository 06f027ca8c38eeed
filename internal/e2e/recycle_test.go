package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/nft"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// A recycling is the book of mapped addresses and the kernel, between real hosts, with a
// clock that a test sets: names are not forgotten before they have been unused for two days.
//
//	client --- here --- world
type recycling struct {
	*world
	kernel *nft.Backend
	book   *route.Book
	route  *route.Route
	skew   atomic.Int64 // how far the clock is ahead
	meddle atomic.Pointer[func()]
	recycled
}

// What is recycled: the addresses of a pool of eight, which lead to others.
type recycled struct {
	pool, reals  string // the latter of two numbers
	own, outside string // who asks, and as servers see that
}

var (
	recycled4 = recycled{"100.96.7.0/29", "198.18.%d.%d", client4, guard4}
	recycled6 = recycled{"fd00:2021:1111:8000::700/125", "2001:db8:18:%x::%x", client6, guard6}
)

// eachRecycled runs a test for each kind of connection.
func eachRecycled(t *testing.T, f func(r *recycling, network string)) {
	for version, which := range map[string]recycled{"IPv4": recycled4, "IPv6": recycled6} {
		for _, network := range append(slices.Clone(networks), "ping") {
			t.Run(network+" "+version, func(t *testing.T) { f(newRecycling(t, which, 0), network) })
		}
	}
}

const twoDays = 48 * time.Hour

// meddler is a router in whose work somebody interferes.
type meddler struct {
	backend.Router
	before *atomic.Pointer[func()]
}

// Unmap implements [backend.Router].
func (m meddler) Unmap(ctx context.Context, mapped []netip.Addr) error {
	if f := m.before.Load(); f != nil {
		(*f)()
	}
	return m.Router.Unmap(ctx, mapped)
}

func newRecycling(t *testing.T, which recycled, linger time.Duration) *recycling {
	t.Helper()
	r := &recycling{world: emptyWorld(t), recycled: which}
	var err error
	r.guard, err = r.lab.Here()
	r.must(err)
	r.client, r.world.world = r.host("client"), r.host("world")
	r.must(r.lab.Link(r.client, "eth0", r.guard, "lan0"))
	r.must(r.lab.Link(r.guard, "wan0", r.world.world, "eth0"))
	r.addrs(r.client, "eth0", client4+"/24", client6+"/64")
	r.addrs(r.guard, "lan0", gateway4+"/24", gateway6+"/64")
	r.addrs(r.guard, "wan0", guard4+"/24", guard6+"/64")
	r.addrs(r.world.world, "eth0", resolver4+"/24", resolver6+"/64")
	for _, route := range [][2]string{{"198.18.0.0/15", resolver4}, {"2001:db8:18::/48", resolver6}} {
		r.must(r.guard.Route(route[0], route[1]))
		r.must(r.world.world.Local(route[0]))
	}
	r.must(r.client.Route("0.0.0.0/0", gateway4))
	r.must(r.client.Route("::/0", gateway6))
	r.must(r.guard.Forward())
	r.letPing()
	r.must(r.world.world.Echo(echoPort))
	r.mirror(r.world.world)

	r.kernel = nft.New(expiry.NewTable[backend.Key](time.Now()), backendtest.Quiet{})
	t.Cleanup(func() { r.must(r.kernel.Close(backend.Remove)) })
	pools := []netip.Prefix{netip.MustParsePrefix(r.pool)}
	clock := func() time.Time { return time.Now().Add(time.Duration(r.skew.Load())) }
	r.book, err = route.Open(filepath.Join(t.TempDir(), "routes.db"), meddler{r.kernel, &r.meddle}, clock)
	r.must(err)
	t.Cleanup(func() { r.must(r.book.Close()) })
	r.route = &route.Route{Name: "shop", Pools: pools, Slots: 1}
	r.must(r.kernel.Open(backend.Rules{
		Table: guardTable, Gateway: true, GatewayHolders: []backend.Holder{backend.Client},
		Routes: []backend.Route{{Name: "shop", Pools: pools}},
		Book:   r.book.ID(), MaxMappings: 100, MaxGrants: 1000, MaxGrantsClient: 1000, MaxGrantsName: 1000, Linger: linger,
	}))
	return r
}

// forgetful has the kernel forget connections within seconds that have ended, or that nobody
// uses.
func (r *recycling) forgetful() {
	r.Helper()
	for _, timeout := range []string{"tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream", "icmp_timeout", "icmpv6_timeout"} {
		r.must(r.guard.Sysctl("net/netfilter/nf_conntrack_"+timeout, "3"))
	}
}

// passes has time pass, for the book.
func (r *recycling) passes(d time.Duration) { r.skew.Add(int64(d)) }

// real is where the n-th name leads.
func (r *recycling) real(n int) string {
	return netip.MustParseAddr(fmt.Sprintf(r.reals, n/200%250, n%200+1)).String()
}

// assign gives the n-th name an address, as when it is answered.
func (r *recycling) assign(n int) (string, error) {
	answer, err := r.book.Assign(r.Context(), r.route, fmt.Sprintf("n%d.shop.test.", n), "", 0, []netip.Addr{netip.MustParseAddr(r.real(n))}, 5*time.Second)
	if err != nil || len(answer.Mapped) != 1 {
		return "", fmt.Errorf("name %d: %v %w", n, answer, err)
	}
	return answer.Mapped[0].String(), nil
}

// grant opens a mapped address to the client, for so long.
func (r *recycling) grant(addr string, life time.Duration) {
	r.Helper()
	r.must(r.kernel.Grant(r.Context(), []backend.Grant{{
		Scope: backend.ClientScope(netip.MustParseAddr(r.own)), Addr: netip.MustParseAddr(addr), Until: time.Now().Add(life),
	}}, 5*time.Second))
}

// shut ends all that is open to anybody.
func (r *recycling) shut() {
	r.Helper()
	_, err := r.kernel.Revoke(r.Context(), func(backend.Grant) bool { return true })
	r.must(err)
	r.must(r.kernel.Granted(r.Context(), func(mapped netip.Addr) { r.Fatalf("%v is open still", mapped) }))
}

// tidy is the housekeeping, some minutes after the one before.
func (r *recycling) tidy() int {
	r.Helper()
	r.passes(5 * time.Minute)
	freed, err := r.book.Tidy(r.Context(), twoDays)
	r.must(err)
	return freed
}

// fill gives addresses to names until there are none, and says how many names have one.
func (r *recycling) fill(from int) (names map[int]string) {
	r.Helper()
	names = map[int]string{}
	for n := from; ; n++ {
		addr, err := r.assign(n)
		if errors.Is(err, route.ErrPoolFull) {
			return names
		}
		r.must(err)
		names[n] = addr
	}
}

// An address on which a connection lives does not get another name, however long its own
// has not been asked for, and however many wait for one.
func TestAddressInUseIsNotRecycled(t *testing.T) {
	eachRecycled(t, func(r *recycling, network string) {
		x := r.tap()
		first := r.fill(0)
		if len(first) < 4 {
			r.Fatalf("a pool of 8 has %d addresses", len(first))
		}
		used := first[0]
		r.grant(used, time.Minute)
		live, err := r.dials(network, used)
		r.must(err)
		defer live.Close()
		r.must(echo(live))
		r.must(live.SetDeadline(time.Time{}))
		r.shut() // or the grant would keep the address
		arrivesAt := func() (at []string) {
			word := fmt.Sprintf("word at %d", time.Now().UnixNano())
			_, err := live.Write([]byte(word))
			r.must(err)
			x.seen(func(p packet) bool {
				if source := p.source.String(); contains(p.payload, word) && (source == r.outside || source == r.own) {
					at = append(at, p.destination.String())
				}
				return false
			})
			return at
		}

		// Days pass. All names are forgotten but the one that is in use.
		owners := map[string]int{}
		for n, addr := range first {
			owners[addr] = n
		}
		next := 100
		for round := range 5 {
			r.passes(3 * twoDays)
			for range 3 {
				r.tidy()
			}
			now := r.fill(next)
			if len(now) != len(first)-1 {
				r.Errorf("round %d: %d addresses have become free, want all but one of %d", round, len(now), len(first))
			}
			for n, addr := range now {
				if addr == used {
					r.Fatalf("round %d: name %d has %s, on which a connection of another name lives", round, n, addr)
				}
			}
			if at := arrivesAt(); len(at) == 0 || slices.ContainsFunc(at, func(a string) bool { return a != r.real(0) }) {
				r.Fatalf("round %d: what the connection sends arrives at %v, want %s", round, at, r.real(0))
			}
			next += 100
		}

		// It ends. Then its address is another's, and nothing of before gets there.
		r.forgetful()
		arrivesAt() // as of its last packet
		r.passes(3 * twoDays)
		r.must(live.Close())
		heir := -1
		deadline := time.Now().Add(time.Minute)
		for heir < 0 && time.Now().Before(deadline) {
			r.tidy()
			for n, addr := range r.fill(next) {
				if addr == used {
					heir = n
				}
			}
			next += 100
			r.passes(3 * twoDays)
			time.Sleep(300 * time.Millisecond)
		}
		if heir < 0 {
			r.Fatalf("%s, to which nothing is connected any more, never gets free", used)
		}
		r.grant(used, time.Minute)
		if s := r.sees(r.client, used); s.real != r.real(heir) {
			r.Errorf("%s is of name %d and leads to %v", used, heir, s)
		}
	})
}

// An address that is still open to somebody, by a grant or because of linger, does not get
// another name: who has remembered it for two days would be let through to that one's
// server.
func TestAddressThatIsOpenToSomebodyIsNotRecycled(t *testing.T) {
	const open = 12 * time.Second // longer than a connection is remembered that nobody uses
	for name, linger := range map[string]time.Duration{"by a grant": 0, "by linger": open} {
		t.Run(name, func(t *testing.T) {
			r := newRecycling(t, recycled4, linger)
			r.forgetful()
			first := r.fill(0)
			used := first[0]
			began := time.Now()
			if linger > 0 {
				r.grant(used, open/2)
				r.must(r.connect(r.client, "udp", used))
			} else {
				r.grant(used, open)
			}
			next := 100
			for freed := false; !freed; time.Sleep(100 * time.Millisecond) {
				r.passes(3 * twoDays)
				r.tidy()
				for n, addr := range r.fill(next) {
					if addr != used {
						continue
					}
					freed = true
					if err := r.connect(r.client, "udp", used); err == nil {
						t.Fatalf("after %v %s is of name %d, and still open to who asked for another", time.Since(began), used, n)
					}
				}
				next += 100
				if time.Since(began) > time.Minute {
					t.Fatalf("%s is never free", used)
				}
			}
		})
	}
}

// contains reports whether there is a word in a packet.
func contains(payload []byte, word string) bool {
	for i := 0; i+len(word) <= len(payload); i++ {
		if string(payload[i:i+len(word)]) == word {
			return true
		}
	}
	return false
}

// Who connects at the moment at which an address is taken from its name is never connected
// with the next name's server: the connection is ended, and the address waits.
func TestConnectionWhileAnAddressIsTaken(t *testing.T) {
	eachRecycled(t, func(r *recycling, network string) {
		x := r.tap()
		first := r.fill(0)
		used := first[0]
		r.passes(3 * twoDays)
		var late net.Conn
		connect := func() { // as who has just asked for the name
			r.meddle.Store(nil)
			r.grant(used, time.Hour)
			var err error
			late, err = r.dials(network, used)
			if err == nil {
				err = echo(late)
			}
			if err != nil {
				r.Errorf("the test's own connection: %v", err)
			}
		}
		r.meddle.Store(&connect)
		r.tidy()
		if late == nil {
			r.Fatal("nobody has connected")
		}
		defer late.Close()
		if err := echo(late); err == nil {
			r.Error("who has connected while the address was taken is still connected")
		}

		// It tries and tries, while the address is still open to it, gets free and another's.
		const word = "for the first name"
		say := r.saying(late, word)
		heir, next := -1, 100
		tries := func(rounds int) {
			for round := 0; round < rounds && heir < 0; round++ {
				say()
				r.tidy()
				say()
				for n, addr := range r.fill(next) {
					if addr == used {
						heir = n
					}
				}
				next += 100
				say()
				r.passes(3 * twoDays)
			}
		}
		tries(5)
		if heir >= 0 {
			r.Errorf("%s is of another name, and still open to who asked for the first", used)
		}
		r.shut() // in two days all that was open by the first name's answers is
		tries(20)
		if heir < 0 {
			r.Fatalf("%s never gets free", used)
		}
		say()
		if network == "tcp" { // also when the client asks for the next name; of others nobody can tell
			r.grant(used, time.Hour)
			say()
			if s := r.sees(r.client, used); s.real != r.real(heir) {
				r.Errorf("%s is of name %d and leads to %v", used, heir, s)
			}
		}
		if n := x.seen(func(p packet) bool { return contains(p.payload, word) }); n > 0 {
			r.Errorf("%d packets of a connection with the first name have gone on", n)
		}
	})
}

// dials connects to the echo port, or to what answers pings.
func (r *recycling) dials(network, addr string) (conn net.Conn, err error) {
	if network != "ping" {
		return r.dial(r.client, network, addr)
	}
	err = r.client.Do(func() error {
		a := netip.MustParseAddr(addr)
		family, protocol, request := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(echoRequest)
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: a.As16()}
		if a.Is4() {
			family, protocol, request = unix.AF_INET, unix.IPPROTO_ICMP, 8
			to = &unix.SockaddrInet4{Addr: a.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "ping")
		defer file.Close()
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		inner, err := net.FileConn(file)
		conn = pinger{inner, []byte{request, 0, 0, 0, 0, 0, 0, 1}}
		return err
	})
	return conn, err
}

// A pinger has words echoed by pings.
type pinger struct {
	net.Conn
	header []byte
}

func (p pinger) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(slices.Concat(p.header, b))
	return max(n-len(p.header), 0), err
}

func (p pinger) Read(b []byte) (int, error) {
	answer := make([]byte, len(p.header)+len(b))
	n, err := p.Conn.Read(answer)
	return copy(b, answer[min(n, len(p.header)):n]), err
}

// saying returns what sends a word over a connection that has been ended, which the client's
// kernel may have heard of: of TCP it sends segments by itself then.
func (r *recycling) saying(conn net.Conn, word string) (say func()) {
	r.Helper()
	r.must(conn.SetDeadline(time.Time{}))
	if _, tcp := conn.(*net.TCPConn); tcp {
		from, to := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
		segment := newTCP(from.Addr().String(), to.Addr().String(), from.Port(), to.Port(), psh|ack, []byte(word)...)
		return func() { r.Helper(); r.must(send(r.client, "eth0", segment)) }
	}
	return func() {
		r.Helper()
		_, err := conn.Write([]byte(word))
		if errors.Is(err, syscall.ECONNREFUSED) { // of the one before
			_, err = conn.Write([]byte(word))
		}
		r.must(err)
	}
}
