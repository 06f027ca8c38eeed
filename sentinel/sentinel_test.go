package sentinel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// writer is what a question came by.
type writer struct {
	test.ResponseWriter
	local, remote net.Addr
	msg           *dns.Msg
	closed        bool
}

func (w *writer) LocalAddr() net.Addr         { return w.local }
func (w *writer) RemoteAddr() net.Addr        { return w.remote }
func (w *writer) WriteMsg(m *dns.Msg) error   { w.msg = m; return nil }
func (w *writer) Close() error                { w.closed = true; return nil }
func (w *writer) Write(b []byte) (int, error) { return 0, errors.New("it is packed") }

func udp(addr string) net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 53))
}
func tcp(addr string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 53))
}

// newHandler has the machine's addresses, and nameservers that are given.
func newHandler(t *testing.T, network netip.Prefix, given ...string) *Handler {
	t.Helper()
	h := &Handler{
		Next:      test.NextHandler(dns.RcodeNotZone, nil),
		addresses: hostdns.Addresses(network),
		servers:   &nameservers{given: given, config: new(tls.Config), warn: t.Logf, start: time.Now()},
		askers: &askers{now: time.Now, from: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}, list: func() ([]net.Addr, error) {
			return []net.Addr{&net.IPNet{IP: net.ParseIP("192.0.2.1"), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2001:db8::1"), Mask: net.CIDRMask(64, 128)}}, nil
		}},
	}
	if len(given) > 0 {
		h.servers.look()
	}
	t.Cleanup(h.servers.close)
	return h
}

func TestServeDNS(t *testing.T) {
	answer := dnstest.NewServer(func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetReply(r))
	})
	defer answer.Close()
	const gone = "127.0.0.1:1" // a port that no other test is given
	for _, c := range []struct {
		name          string
		local, remote net.Addr
		network       netip.Prefix
		answered      bool
		truncated     bool
		rcode         int
		err           bool
		closed        bool
	}{
		{name: "from the sentinel itself", local: udp("100.100.111.1"), remote: udp("100.100.111.1"), answered: true},
		{name: "over TCP", local: tcp("100.100.111.1"), remote: tcp("100.100.111.1"), answered: true},
		{name: "from an own address", local: udp("100.100.111.1"), remote: udp("192.0.2.1"), answered: true},
		{name: "from loopback", local: udp("100.100.111.1"), remote: udp("127.0.0.1"), answered: true},
		{name: "from a container", local: udp("100.100.111.1"), remote: udp("172.17.0.9"), answered: true},
		{name: "from a stranger", local: udp("100.100.111.1"), remote: udp("192.0.2.9")},
		{name: "from a stranger over TCP", local: tcp("100.100.111.1"), remote: tcp("192.0.2.9"), closed: true},
		{name: "from nowhere", local: udp("100.100.111.1"), remote: &net.UnixAddr{Name: "x", Net: "unix"}},
		{name: "to another address", local: udp("192.0.2.1"), remote: udp("192.0.2.9"), rcode: dns.RcodeNotZone},
		{name: "a nameserver that is gone", local: udp("100.100.111.2"), remote: udp("100.100.111.2"), err: true},
		{name: "a nameserver that is gone, over TCP", local: tcp("100.100.111.2"), remote: tcp("100.100.111.2"), err: true, closed: true},
		{name: "no nameserver", local: udp("100.100.111.3"), remote: udp("100.100.111.3")},
		{name: "IPv6 over UDP", network: hostdns.IPv6, local: udp("fd00:2021:1111:8000:100:100:111:1"), remote: udp("2001:db8::1"), answered: true, truncated: true},
		{name: "IPv6 over TCP", network: hostdns.IPv6, local: tcp("fd00:2021:1111:8000:100:100:111:1"), remote: tcp("2001:db8::1"), answered: true},
		{name: "IPv6 from a stranger", network: hostdns.IPv6, local: udp("fd00:2021:1111:8000:100:100:111:1"), remote: udp("2001:db8::9")},
	} {
		t.Run(c.name, func(t *testing.T) {
			network := hostdns.IPv4
			if c.network.IsValid() {
				network = c.network
			}
			h := newHandler(t, network, answer.Addr, gone)
			w := &writer{local: c.local, remote: c.remote}
			rcode, err := h.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion("www.example.", dns.TypeA))
			if rcode != c.rcode || (err != nil) != c.err {
				t.Errorf("code %d, error %v", rcode, err)
			}
			if (w.msg != nil) != c.answered || w.closed != c.closed {
				t.Errorf("answer %v, closed %v", w.msg, w.closed)
			}
			if c.answered && w.msg.Truncated != c.truncated {
				t.Errorf("truncated: %v", w.msg)
			}
		})
	}
}

// A nameserver that does not answer for long is asked no more, tells so, and is back when it is.
func TestDeadNameserver(t *testing.T) {
	var silent atomic.Bool
	var asked atomic.Int64
	server := dnstest.NewServer(func(w dns.ResponseWriter, r *dns.Msg) {
		if r.Question[0].Name == "www.example." { // and not whether it lives
			asked.Add(1)
		}
		if !silent.Load() {
			_ = w.WriteMsg(new(dns.Msg).SetReply(r))
		}
	})
	defer server.Close()
	h := newHandler(t, hostdns.IPv4, server.Addr)
	ask := func() *dns.Msg {
		w := &writer{local: udp("100.100.111.1"), remote: udp("100.100.111.1")}
		if rcode, _ := h.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion("www.example.", dns.TypeA)); rcode != dns.RcodeSuccess {
			t.Errorf("code %d, and so the server would answer", rcode)
		}
		return w.msg
	}
	state := func() string {
		w := &writer{local: udp("100.100.111.5"), remote: udp("100.100.111.5")}
		m := new(dns.Msg).SetQuestion("Sentinel.", dns.TypeTXT)
		m.Question[0].Qclass = dns.ClassCHAOS
		if _, err := h.ServeDNS(context.Background(), w, m); err != nil || w.msg == nil || len(w.msg.Answer) != 1 {
			t.Fatal(err, w.msg)
		}
		return strings.Join(w.msg.Answer[0].(*dns.TXT).Txt, " ")
	}
	if ask() == nil {
		t.Error("no answer")
	}
	if got, want := state(), "100.100.111.1 alive dns://"+server.Addr; got != want {
		t.Errorf("it tells %q, want %q", got, want)
	}
	silent.Store(true)
	for deadline := time.Now().Add(20 * time.Second); !h.servers.now()[0].dead(); {
		if ask() != nil || time.Now().After(deadline) {
			t.Fatal("it answers, or is never dead")
		}
	}
	before := asked.Load()
	if ask() != nil || asked.Load() != before || before == 0 {
		t.Errorf("asked %d times before it was dead, and %d times since", before, asked.Load()-before)
	}
	if !strings.Contains(state(), " dead ") {
		t.Errorf("it tells %q", state())
	}
	silent.Store(false)
	for deadline := time.Now().Add(20 * time.Second); ask() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come back")
		}
	}
}

// No more than so many questions wait.
func TestQuestionsAreBounded(t *testing.T) {
	s := newNameserver("192.0.2.1:53", new(tls.Config))
	defer s.close()
	s.open.Store(maxOpen)
	rcode, err := s.serve(context.Background(), &writer{local: udp("100.100.111.1"), remote: udp("100.100.111.1")}, new(dns.Msg).SetQuestion("a.", dns.TypeA))
	if err != errBusy || rcode != dns.RcodeServerFailure || s.open.Load() != maxOpen {
		t.Errorf("code %d, error %v, %d wait", rcode, err, s.open.Load())
	}
}

// The machine's nameservers are followed; those that stay keep what is known of them, and who has to open them hears of
// it first.
func TestNameserversAreFollowed(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	var warnings []string
	n := &nameservers{files: []string{first, second}, config: new(tls.Config), start: time.Now(),
		warn: func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }}
	defer n.close()
	h := &Handler{servers: n}
	var told []string
	h.FollowUpstream(func(list []netip.AddrPort) {
		before := 0
		if n.list.Load() != nil {
			before = len(*n.list.Load())
		}
		told = append(told, fmt.Sprint(before, list))
	})
	generation := 0
	save := func(path, text string) {
		t.Helper()
		generation++
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		n.look()
	}
	want := func(servers string) {
		t.Helper()
		if got := n.text(); got != servers {
			t.Errorf("nameservers %q, want %q", got, servers)
		}
	}

	n.look()
	want("")
	if len(warnings) != 1 || !strings.Contains(warnings[0], "there is no "+first) {
		t.Errorf("warnings %q", warnings)
	}
	save(second, "nameserver 10.0.0.1\n")
	want("dns://10.0.0.1:53")
	save(first, "nameserver 100.100.111.1\nnameserver 127.0.0.53\n")
	want("dns://10.0.0.1:53")
	save(first, "nameserver 10.0.0.2\nnameserver 10.0.0.1\n")
	want("dns://10.0.0.2:53 dns://10.0.0.1:53")
	kept := (*n.list.Load())[1]
	save(first, "nameserver 10.0.0.1\nnameserver fe80::1%eth0\n")
	want("dns://10.0.0.1:53 dns://[fe80::1%eth0]:53")
	if (*n.list.Load())[0] != kept {
		t.Error("the one that stays is another")
	}
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	save(first, "# gone\n")
	n.look()
	want("dns://10.0.0.1:53 dns://[fe80::1%eth0]:53")
	if len(warnings) != 2 || !strings.Contains(warnings[1], first+" names none") {
		t.Errorf("warnings %q", warnings)
	}
	wantTold := []string{"0 []", "0 [10.0.0.1:53]", "1 [10.0.0.1:53]", "1 [10.0.0.2:53 10.0.0.1:53]", "2 [10.0.0.1:53 [fe80::1]:53]"}
	if !slices.Equal(told, wantTold) {
		t.Errorf("told %q, want %q", told, wantTold)
	}
	n.close()
	save(first, "nameserver 10.0.0.9\n")
	want("dns://10.0.0.1:53 dns://[fe80::1%eth0]:53")
}

// Strangers do not make the machine look at its addresses again and again.
func TestAskersAreLookedAtOnceASecond(t *testing.T) {
	now, looks := time.Unix(1000, 0), 0
	a := &askers{now: func() time.Time { return now }, list: func() ([]net.Addr, error) {
		looks++
		if looks > 2 {
			return []net.Addr{&net.IPNet{IP: net.ParseIP("192.0.2.7"), Mask: net.CIDRMask(24, 32)}}, nil
		}
		return nil, errors.New("no addresses")
	}}
	sentinel := netip.MustParseAddr("100.100.111.1")
	for range 100 {
		if a.may(netip.MustParseAddr("192.0.2.7"), sentinel) {
			t.Error("who cannot be told from a stranger may ask")
		}
		now = now.Add(15 * time.Millisecond)
	}
	if looks != 2 {
		t.Errorf("it looked %d times", looks)
	}
	now = now.Add(time.Second)
	if !a.may(netip.MustParseAddr("192.0.2.7"), sentinel) || a.may(netip.MustParseAddr("192.0.2.8"), sentinel) {
		t.Error("a new address is not known, or another is")
	}
}
