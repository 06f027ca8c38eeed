package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Nobody ever asks for addresses of these networks, and no Corefile allows them:
// what arrives there got past the guard.
var (
	unlisted4 = netip.MustParsePrefix("198.19.0.0/16")
	unlisted6 = netip.MustParsePrefix("2001:db8:18:bad::/64")
)

func unlistedAddrs(n int) (ipv4, ipv6 string) {
	return fmt.Sprintf("198.19.%d.%d", n>>8&0xff, n&0xff), fmt.Sprintf("2001:db8:18:bad::%x", n&0xffff)
}

// traffic is what goes on while something is done to CoreDNS. Each of its parts
// has one expectation, and traffic fails the test when one was not met.
type traffic struct {
	*world
	ctx   context.Context
	cease context.CancelFunc
	wg    sync.WaitGroup
	began time.Time
	fresh atomic.Uint32 // addresses that were asked for

	mu     sync.Mutex
	faults []string
	count  map[string]int
	worst  map[string]time.Duration
}

// traffic begins without any; end it.
func (w *world) traffic() *traffic {
	w.Helper()
	w.countUnlisted()
	ctx, cancel := context.WithCancel(context.Background())
	t := &traffic{world: w, ctx: ctx, cease: cancel, began: time.Now(), count: map[string]int{}, worst: map[string]time.Duration{}}
	w.Cleanup(func() { t.cease(); t.wg.Wait() })
	return t
}

// end ends all of it, and says what went wrong and how much went well.
func (t *traffic) end() {
	t.Helper()
	t.cease()
	t.wg.Wait()
	for _, f := range t.faults {
		t.Error(f)
	}
	if n := t.unlistedArrived(); n > 0 {
		t.Errorf("%d packets arrived at addresses that nobody has looked up", n)
	}
	var counts []string
	for _, k := range slices.Sorted(maps.Keys(t.count)) {
		counts = append(counts, fmt.Sprintf("%d %s", t.count[k], k))
	}
	for _, k := range slices.Sorted(maps.Keys(t.worst)) {
		counts = append(counts, fmt.Sprintf("%s within %v", k, t.worst[k].Round(time.Microsecond)))
	}
	t.Logf("in %v: %s", time.Since(t.began).Round(time.Millisecond), strings.Join(counts, ", "))
}

func (t *traffic) fault(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count["faults"]++; len(t.faults) < 20 {
		t.faults = append(t.faults, fmt.Sprintf("%8.3fs: ", time.Since(t.began).Seconds())+fmt.Sprintf(format, args...))
	}
}

func (t *traffic) counted(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count[what]++
}

func (t *traffic) counts(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count[what]
}

func (t *traffic) took(what string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count[what]++
	t.worst[what] = max(t.worst[what], d)
}

// every runs f over and over, in its own goroutine.
func (t *traffic) every(pause time.Duration, f func(n int)) {
	t.wg.Go(func() {
		for n := 0; t.ctx.Err() == nil; n++ {
			f(n)
			select {
			case <-time.After(pause):
			case <-t.ctx.Done():
			}
		}
	})
}

// neverOpen tries to reach unlisted addresses from a host: a thousand UDP packets
// a second, whose arrival the world counts, and TCP connections.
func (t *traffic) neverOpen(from *netlab.Host) {
	t.Helper()
	conn, err := from.ListenPacket("udp", ":0")
	t.must(err)
	t.Cleanup(func() { conn.Close() })
	t.every(time.Millisecond, func(n int) {
		ipv4, ipv6 := unlistedAddrs(n)
		for _, addr := range []string{ipv4, ipv6} {
			_, _ = conn.WriteTo([]byte("unlisted"), &net.UDPAddr{IP: net.ParseIP(addr), Port: echoPort}) // EPERM
			t.counted("UDP packets to unlisted addresses")
		}
	})
	t.every(5*time.Millisecond, func(n int) {
		ipv4, ipv6 := unlistedAddrs(rand.Int())
		addr := []string{ipv4, ipv6}[n%2]
		switch err := t.try(t.ctx, from, addr); {
		case err == nil:
			t.fault("%s: TCP to %s is open, nobody has looked it up", from.Name(), addr)
		case t.ctx.Err() == nil && !refused(err):
			t.fault("%s: TCP to %s, which nobody has looked up, fails otherwise than refused: %v", from.Name(), addr, err)
		}
		t.counted("TCP connections to unlisted addresses")
	})
}

// alwaysOpen makes connection after connection to an address that is open.
func (t *traffic) alwaysOpen(from sender, addr string) {
	t.every(2*time.Millisecond, func(int) {
		began := time.Now()
		if err := t.connect(from, "tcp", addr); err != nil {
			t.fault("%s: a connection to %s, which is open, failed after %v: %v", from.Name(), addr, time.Since(began), err)
		}
		t.took("TCP connections to open addresses", time.Since(began))
	})
}

// ofAll is all that the guard's machine and its clients can do.
func (t *traffic) ofAll() {
	t.Helper()
	for _, p := range []party{t.self(), t.behind()} {
		t.lookup(p.Host, p.resolver4, p.addr4(1), 600)
		t.neverOpen(p.Host)
		t.alwaysOpen(p.Host, p.addr4(1))
		t.asks(p.Host, p.resolver4, false)
	}
}

// flood sends UDP packets to an address that is open, as fast as it goes, each of
// them the first of a connection to the kernel, since nobody answers. What the
// guard refuses is told to the sender, on the guard itself. None may be refused.
func (t *traffic) flood(addr string) {
	t.Helper()
	conn, err := t.guard.ListenPacket("udp", ":0")
	t.must(err)
	t.Cleanup(func() { conn.Close() })
	to, packet := &net.UDPAddr{IP: net.ParseIP(addr), Port: 9}, []byte("open")
	t.wg.Go(func() {
		sent, failed := 0, 0
		for ; t.ctx.Err() == nil; sent++ {
			if _, err := conn.WriteTo(packet, to); err != nil {
				failed++
			}
		}
		if failed > 0 {
			t.fault("%d of %d packets to %s, which is open, were refused", failed, sent, addr)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.count["packets to "+addr], t.count["packets to "+addr+" that were refused"] = sent, failed
	})
}

// alive talks over connections that must not be cut.
func (t *traffic) alive(conns ...net.Conn) {
	for _, conn := range conns {
		t.wg.Go(func() {
			for t.ctx.Err() == nil {
				began := time.Now()
				if err := echo(conn); err != nil {
					t.fault("the live connection from %s to %s was cut: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
					return
				}
				t.took("words over live connections", time.Since(began))
				select {
				case <-time.After(10 * time.Millisecond):
				case <-t.ctx.Done():
				}
			}
		})
	}
}

// asks asks one question after the other, for names never asked for before and
// for names of before, and tries each address of an answer at once: it must be
// open. Every question has an answer, unless some may be lost.
func (t *traffic) asks(from sender, server string, someAreLost bool) {
	const ttl = 600
	timeout := 5 * time.Second
	if someAreLost {
		timeout = 300 * time.Millisecond
	}
	var before []string
	t.every(time.Millisecond, func(n int) {
		var addr string
		if n%2 == 1 && len(before) > 0 {
			addr = before[rand.IntN(len(before))]
		} else {
			i := t.fresh.Add(1)
			addr = fmt.Sprintf("198.18.%d.%d", 20+i>>8%160, i&0xff)
			if i%2 == 0 {
				addr = fmt.Sprintf("2001:db8:18:f::%x", i)
			}
			before = append(before, addr)
		}
		began := time.Now()
		answer, err := t.exchange(from, net.JoinHostPort(server, "53"), nameOf(ttl, addr), timeout)
		switch {
		case t.ctx.Err() != nil:
			return
		case err != nil && someAreLost:
			what := "no answer"
			if errors.Is(err, unix.ECONNREFUSED) {
				what = "connection refused"
			}
			t.counted("questions: " + what)
			return
		case err != nil:
			t.fault("%s: no answer to a question after %v: %v", from.Name(), time.Since(began), err)
			return
		case answer.Rcode != dns.RcodeSuccess && someAreLost:
			t.counted("questions: " + dns.RcodeToString[answer.Rcode])
			return
		case answer.Rcode != dns.RcodeSuccess || len(answer.Answer) == 0:
			t.fault("%s: no address: %v", from.Name(), answer)
			return
		}
		t.took("answers", time.Since(began))
		if err := t.connect(from, "tcp", addr); err != nil && t.ctx.Err() == nil {
			t.fault("%s: %s is refused although it was just answered: %v", from.Name(), addr, err)
		}
	})
}

// try opens a connection to what is most likely shut. An application may not hear
// of a refusal before TCP sends its second SYN, after a second: nobody waits for
// that here.
func (w *world) try(ctx context.Context, from sender, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(echoPort)))
	if err == nil {
		conn.Close()
	}
	return err
}

// wantShut is wantRefused in a hurry.
func (w *world) wantShut(from sender, addr string) {
	w.Helper()
	if err := w.try(context.Background(), from, addr); err == nil {
		w.Errorf("%s: TCP to %s is open, it should be refused", from.Name(), addr)
	} else if !refused(err) {
		w.Errorf("%s: TCP to %s fails otherwise than refused: %v", from.Name(), addr, err)
	}
}

// exchange asks a question over UDP and waits no longer than told.
func (w *world) exchange(from sender, server, name string, timeout time.Duration) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	if strings.Contains(name, "aaaa-") {
		m.Question[0].Qtype = dns.TypeAAAA
	}
	m.SetEdns0(1232, false)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := from.Dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, _, err := (&dns.Client{Timeout: timeout}).ExchangeWithConn(m, &dns.Conn{Conn: conn})
	return answer, err
}

const watchTable = "arrivals"

// countUnlisted has the world count what arrives at unlisted addresses, from now
// on.
func (w *world) countUnlisted() {
	w.Helper()
	w.nftablesOf(w.world, func(c *nftables.Conn) error {
		table := &nftables.Table{Name: watchTable, Family: nftables.TableFamilyINet}
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "in", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
		})
		for _, p := range []netip.Prefix{unlisted4, unlisted6} {
			family, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
			if p.Addr().Is6() {
				family, offset, size = unix.NFPROTO_IPV6, 24, 16
			}
			mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
				&expr.Counter{},
			}})
		}
		return c.Flush()
	})
}

// unlistedArrived is how many packets the world has counted.
func (w *world) unlistedArrived() (packets uint64) {
	w.Helper()
	w.nftablesOf(w.world, func(c *nftables.Conn) error {
		table := &nftables.Table{Name: watchTable, Family: nftables.TableFamilyINet}
		rules, err := c.GetRules(table, &nftables.Chain{Name: "in", Table: table})
		if err != nil {
			return err
		}
		counters := 0
		for _, r := range rules {
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					packets += counter.Packets
					counters++
				}
			}
		}
		if counters != 2 {
			return fmt.Errorf("the world has %d counters, want 2", counters)
		}
		return nil
	})
	return packets
}

// nftablesOf is nftables for any host.
func (w *world) nftablesOf(h *netlab.Host, f func(*nftables.Conn) error) {
	w.Helper()
	w.must(h.Do(func() error {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.CloseLasting())
	}))
}

// firewall is the guard's host's ruleset as text, without grants. Handles are
// part of it, so what was replaced by its like differs; and so is the generation,
// which tells of every transaction.
func (w *world) firewall() string {
	w.Helper()
	var b strings.Builder
	generation := w.generation()
	w.nftables(func(c *nftables.Conn) error {
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			fmt.Fprintf(&b, "table %v %s\n", t.Family, t.Name)
			sets, err := c.GetSets(t)
			if err != nil {
				return err
			}
			for _, s := range sets {
				fmt.Fprintf(&b, "\tset %s timeout %v size %d\n", s.Name, s.HasTimeout, s.Size)
				if s.HasTimeout {
					continue
				}
				elements, err := c.GetSetElements(s)
				if err != nil {
					return err
				}
				for _, e := range elements {
					fmt.Fprintf(&b, "\t\t%x %v\n", e.Key, e.IntervalEnd)
				}
			}
		}
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, ch := range chains {
			fmt.Fprintf(&b, "chain %s %s", ch.Table.Name, ch.Name)
			if ch.Hooknum != nil {
				fmt.Fprintf(&b, " hook %v priority %v policy %v", *ch.Hooknum, *ch.Priority, *ch.Policy)
			}
			fmt.Fprintln(&b)
			rules, err := c.GetRules(ch.Table, ch)
			if err != nil {
				return err
			}
			for _, r := range rules {
				fmt.Fprintf(&b, "\trule %d %q\n", r.Handle, r.UserData)
			}
		}
		return nil
	})
	fmt.Fprintf(&b, "generation %d\n", generation)
	return b.String()
}

// rules is the firewall without the generation: grants may come and go.
func (w *world) rules() string {
	w.Helper()
	text, _, _ := strings.Cut(w.firewall(), "generation ")
	return text
}

// generation counts the transactions on the guard's host.
func (w *world) generation() (g uint32) {
	w.Helper()
	const getGen, genID = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, unix.NFTA_GEN_ID
	w.must(w.guard.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		request := slices.Concat(
			binaryutil.NativeEndian.PutUint32(20), binaryutil.NativeEndian.PutUint16(getGen), binaryutil.NativeEndian.PutUint16(unix.NLM_F_REQUEST),
			make([]byte, 8+4))
		if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		reply := make([]byte, 4096)
		n, _, err := unix.Recvfrom(fd, reply, 0)
		if err != nil {
			return err
		}
		if n < 28 || binaryutil.NativeEndian.Uint16(reply[22:])&0xff != genID {
			return fmt.Errorf("not the generation: %x", reply[:n])
		}
		g = binaryutil.BigEndian.Uint32(reply[24:])
		return nil
	}))
	return g
}

// grants returns the kernel's grants and when it ends each, give or take the
// time that reading took.
func (w *world) grants() map[netip.Addr]period {
	w.Helper()
	all := map[netip.Addr]period{}
	w.nftables(func(c *nftables.Conn) error {
		sets, err := c.GetSets(&nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet})
		if err != nil {
			return err
		}
		for _, set := range sets {
			if !strings.HasPrefix(set.Name, "granted") {
				continue
			}
			before := time.Now()
			elements, err := c.GetSetElements(set)
			if err != nil {
				return err
			}
			after := time.Now()
			for _, e := range elements {
				size := 16
				if strings.HasSuffix(set.Name, "4") {
					size = 4
				}
				addr, _ := netip.AddrFromSlice(e.Key[len(e.Key)-size:]) // the holder stands before it
				all[addr] = period{before.Add(e.Expires), after.Add(e.Expires)}
			}
		}
		return nil
	})
	return all
}

// brief is a grant whose end a test waits for.
type brief struct {
	party
	addr     string
	from, to time.Time // open until from at least, shut from to on
}

// brief asks for an address. The Corefile's margin is as told, and its floor not
// above the TTL.
func (w *world) brief(p party, addr string, ttl int, margin time.Duration) brief {
	w.Helper()
	w.wantShut(p.Host, addr)
	life, asked := time.Duration(ttl)*time.Second+margin, time.Now()
	w.lookup(p.Host, p.resolver(addr), addr, ttl)
	return brief{p, addr, asked.Add(life), time.Now().Add(life + expiry.Slack)}
}

// endsByItself waits for the end of a grant: not too early, and not too late.
func (w *world) endsByItself(b brief) {
	w.Helper()
	for ; ; time.Sleep(10 * time.Millisecond) {
		began := time.Now()
		err := w.try(context.Background(), b.Host, b.addr)
		switch now := time.Now(); {
		case err == nil && began.After(b.to.Add(200*time.Millisecond)):
			w.Errorf("%s: %s is open %v after the end of its grant", b.Name(), b.addr, began.Sub(b.to))
			return
		case err != nil && now.Before(b.from):
			w.Errorf("%s: %s is refused %v before the end of its TTL and margin: %v", b.Name(), b.addr, b.from.Sub(now), err)
			return
		case err != nil && !refused(err):
			w.Errorf("%s: %s fails otherwise than refused: %v", b.Name(), b.addr, err)
			return
		case err != nil:
			return
		}
	}
}

// period is when something happens: not before from, not after to.
type period struct{ from, to time.Time }

// near reports whether both may be the same moment, but for the kernel's ticks.
func (p period) near(q period) bool {
	const ticks = 50 * time.Millisecond
	return p.from.Before(q.to.Add(ticks)) && q.from.Before(p.to.Add(ticks))
}

// arming is how long the kernel still lets TCP connections go on that it does not
// know; 0 when no more.
func (w *world) arming() (left time.Duration) {
	w.Helper()
	w.nftables(func(c *nftables.Conn) error {
		set, err := c.GetSetByName(&nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}, "arming")
		if err != nil {
			return err
		}
		elements, err := c.GetSetElements(set)
		for _, e := range elements {
			left = max(left, e.Expires)
		}
		return err
	})
	return left
}

// get fetches a page from the guard's own addresses.
func (w *world) get(url string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	transport := &http.Transport{DialContext: w.guard.Dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), err
}

// ready is what CoreDNS's ready plugin says.
func (w *world) ready() bool {
	status, _, err := w.get("http://127.0.0.1:8181/ready")
	return err == nil && status == http.StatusOK
}

// scrape is what Prometheus reads.
func (w *world) scrape() (text string) {
	w.Helper()
	w.eventually("metrics are served", func() bool {
		status, body, err := w.get("http://127.0.0.1:9153/metrics")
		text = body
		return err == nil && status == http.StatusOK
	})
	return text
}

// series are the guard's variables, with their labels.
func (w *world) series() (all []string) {
	w.Helper()
	for line := range strings.Lines(w.scrape()) {
		if strings.HasPrefix(line, "coredns_ipdestinationguard_") {
			all = append(all, line[:strings.LastIndex(line, " ")])
		}
	}
	slices.Sort(all)
	return all
}

// metric is the sum of CoreDNS's variables with a name, or a name and the
// beginning of labels.
func (w *world) metric(name string) (sum float64) {
	w.Helper()
	for line := range strings.Lines(w.scrape()) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' && !strings.Contains(name, "{") {
			continue
		}
		_, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		f, err := strconv.ParseFloat(value[strings.LastIndex(value, " ")+1:], 64)
		w.must(err)
		sum += f
	}
	return sum
}
