package ipdestinationguard

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// from is a client at an address.
type from struct {
	test.ResponseWriter
	addr net.Addr
}

func (f *from) RemoteAddr() net.Addr { return f.addr }

func (r *rig) clientAt(addr string) *client {
	c := r.client()
	c.ResponseWriter = &from{addr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))}
	return c
}

// What an application has asked for is granted to it; whoever cannot be found gets
// SERVFAIL that says so, and whoever is not guarded here an answer without a grant.
func TestScopeApplication(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-local\nscope application\n}")
	r.programs[netip.MustParseAddrPort("127.0.0.1:1")] = program{identity.Asker{UID: 7, Cgroup: 71}, "/system.slice/a.service"}
	for _, tt := range []struct {
		from    string
		rcode   int
		ede     string
		granted []string
	}{
		{"127.0.0.1:2", dns.RcodeServerFailure, "ipdestinationguard: who asks cannot be found: gone", nil},
		{"192.168.0.2:1", dns.RcodeSuccess, "", nil},
		{"127.0.0.1:1", dns.RcodeSuccess, "", []string{"192.0.2.1 to cgroup 71 for 5m30.5s"}},
	} {
		c := r.clientAt(tt.from)
		m := request(t, "a.test. A")
		m.SetEdns0(1232, false)
		if _, err := c.serve(m, answering(t, "a.test. 300 A 192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		ede := ""
		if opt := c.Msg.IsEdns0(); opt != nil && len(opt.Option) > 0 {
			ede = opt.Option[0].(*dns.EDNS0_EDE).ExtraText
		}
		if c.Msg.Rcode != tt.rcode || ede != tt.ede || (len(c.Msg.Answer) > 0) != (tt.rcode == dns.RcodeSuccess) {
			t.Errorf("from %s: %v", tt.from, c.Msg)
		}
		r.wantGrants(tt.granted...)
	}
}

// Grants are of their server block's class, and the rules follow its units.
func TestClasses(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-local\nports tcp/443\nunits cron.service\n}")
	c := r.client()
	if _, err := c.serve(request(t, "a.test. A"), answering(t, "a.test. 300 A 192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	r.wantGrants("192.0.2.1 (class 1) for 5m30.5s")
	const class = "\tclass 1 tcp/443, unit /system.slice/cron.service\n"
	if got := r.kernel.String(); !strings.Contains(got, class) || strings.Contains(got, "/system.slice/cron.service 4") {
		t.Errorf("got %s", got)
	}
	for _, line := range []string{"\t/system.slice/cron.service 41\n", "\t/system.slice/cron.service 42\n"} {
		var id uint64 = 41
		if strings.Contains(line, "42") {
			id = 42
		}
		r.units.have("/system.slice/cron.service", id)
		for end := time.Now().Add(10 * time.Second); !strings.Contains(r.kernel.String(), class+line); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("got %s", r.kernel.String())
			}
		}
	}
	followed := r.units
	r.arm("ipdestinationguard {\nmode nft-local\nports tcp/443\nunits cron.service a.service\n}")
	if !followed.closed || r.units.closed || len(r.units.paths) != 2 {
		t.Errorf("followed are %v (%v), %v (%v)", followed.paths, followed.closed, r.units.paths, r.units.closed)
	}
	r.arm("ipdestinationguard nft-local")
	if !r.units.closed {
		t.Error("units are followed that no block names")
	}
	r.wantGrants()
}

// The same predicates are the same class, in whatever block and after every reload.
func TestClassesKeepTheirNumbers(t *testing.T) {
	r := newRig(t, "ipdestinationguard nft-local")
	of := func(options string) int {
		r.arm("ipdestinationguard {\nmode nft-local\n" + options + "\n}")
		return int(r.policy.class)
	}
	for _, tt := range []struct {
		options string
		want    int
	}{
		{"", 0}, {"ports tcp/443", 1}, {"ports udp/443", 2}, {"ports tcp/443\nusers 1", 3},
		{"users 1\nports tcp/443 tcp/443", 3}, {"ports tcp/443", 1}, {"", 0},
	} {
		if got := of(tt.options); got != tt.want {
			t.Errorf("%q is class %d, want %d", tt.options, got, tt.want)
		}
	}
	for i := 4; i <= maxClass; i++ {
		if got := of("users " + string(rune('0'+i/100)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10))); got != i {
			t.Fatalf("class %d, want %d", got, i)
		}
	}
	if _, err := r.class(r.policyOf("ipdestinationguard {\nusers 9999\n}").predicates); err == nil || !strings.Contains(err.Error(), "use fewer, or restart it") {
		t.Errorf("one too many: %v", err)
	}
}

// An answer is cut to the addresses that it may open.
func TestMostAddressesOfAnAnswer(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-local\nmax_addresses_answer 2\n}")
	c := r.client()
	if _, err := c.serve(request(t, "a.test. A"), answering(t, `
		a.test. 300 A 192.0.2.1
		a.test. 300 A 10.0.0.1
		a.test. 300 A 192.0.2.2
		a.test. 300 A 192.0.2.3`)); err != nil {
		t.Fatal(err)
	}
	if len(c.Msg.Answer) != 2 {
		t.Errorf("answered: %v", c.Msg.Answer)
	}
	r.wantGrants("192.0.2.1 for 5m30.5s", "192.0.2.2 for 5m30.5s")
}

// What an answer has that is open already does not make room for the rest of it.
func TestAnswerDoesNotMakeRoomForItself(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-local\nmax_grants 100\nmax_grants_name 4\n}")
	for _, last := range [][]int{{1, 2, 3, 4}, {1, 5, 6, 7}} {
		var lines, want []string
		for _, n := range last {
			lines = append(lines, fmt.Sprintf("a.test. 300 A 192.0.2.%d", n))
			want = append(want, fmt.Sprintf("192.0.2.%d for 5m30.5s", n))
		}
		c := r.client()
		if _, err := c.serve(request(t, "a.test. A"), answering(t, strings.Join(lines, "\n"))); err != nil || len(c.Msg.Answer) != 4 {
			t.Fatalf("%v: %v", err, c.Msg)
		}
		r.wantGrants(want...)
	}
}

func TestUnitPath(t *testing.T) {
	for unit, want := range map[string]string{
		"cron.service":            "/system.slice/cron.service",
		"cron":                    "/system.slice/cron",
		"user.slice":              "/user.slice",
		"user-1000.slice":         "/user.slice/user-1000.slice",
		"a-b-c.slice":             "/a.slice/a-b.slice/a-b-c.slice",
		"init.scope":              "/init.scope",
		"docker-0123.scope":       "/system.slice/docker-0123.scope",
		"postgresql@15.service":   "/system.slice/system-postgresql.slice/postgresql@15.service",
		"open-vpn@client.service": `/system.slice/system-open\x2dvpn.slice/open-vpn@client.service`,
	} {
		if got := unitPath(unit); got != want {
			t.Errorf("%s is at %s, want %s", unit, got, want)
		}
	}
}
