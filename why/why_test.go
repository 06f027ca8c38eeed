package why

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

const (
	tcp  = 6
	udp  = 17
	icmp = 1
)

var (
	machine = backend.Scope{Holder: backend.Machine}
	mac     = [6]byte{2, 0, 0, 0, 0, 1}
	now     = start.Add(time.Hour)
)

// class is s in the class with this number.
func class(n backend.Class, s backend.Scope) backend.Scope { s.Class = n; return s }

func client(a string) backend.Scope { return backend.ClientScope(addr(a)) }

// known is what the tests ask about: everything that can stand in a Corefile.
func known(grants map[backend.Key]time.Duration, answers ...Answer) *Knowledge {
	slices.Reverse(answers)
	return &Knowledge{
		Rules: backend.Rules{
			Local: true, Gateway: true,
			LocalHolders:   []backend.Holder{backend.Everyone, backend.Machine, backend.User, backend.Unit},
			GatewayHolders: []backend.Holder{backend.Everyone, backend.Client, backend.Link},
			Allowed:        prefixes("198.51.100.0/25"), AllowedLocal: prefixes("198.51.100.128/26"), AllowedGateway: prefixes("2001:db8:a::/48"),
			Interfaces: []string{"lan0"}, OnLink: prefixes("192.168.0.0/24", "fd00::/64"), Capture: 53,
			Upstream: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.53:53")}, Self: backend.Program{User: 53},
			Classes: map[backend.Class]backend.Predicates{
				1: {Ports: []backend.Ports{{Protocol: tcp, First: 443, Last: 443}}},
				2: {Users: []uint32{1000}},
				3: {Units: []backend.Cgroup{{Path: "/system.slice/backup.service", ID: 77, Level: 2}}},
			},
		},
		InForce: func(k backend.Key) (time.Time, bool) {
			left, ok := grants[k]
			if !ok {
				return time.Time{}, false
			}
			return now.Add(left), true
		},
		Answers: func(a netip.Addr) (of []Answer) {
			for _, answer := range answers {
				if answer.Addr == a {
					of = append(of, answer)
				}
			}
			return of
		},
		Own:    func(a netip.Addr) bool { return a == addr("192.168.0.1") },
		Margin: 30 * time.Second,
		Now:    now,
	}
}

func TestExplain(t *testing.T) {
	const to = "192.0.2.1"
	local := func(to string, protocol uint8, port uint16) Flow {
		return Flow{To: addr(to), Protocol: protocol, Port: port, Program: &Program{User: 1000, Cgroups: []uint64{7, 77}}}
	}
	through := func(from, to string, protocol uint8, port uint16) Flow {
		return Flow{To: addr(to), Protocol: protocol, Port: port, Forwarded: true, Client: addr(from), In: "lan0"}
	}
	by := func(f Flow, change func(*Flow)) Flow { change(&f); return f }
	holds := func(s backend.Scope, left time.Duration) map[backend.Key]time.Duration {
		return map[backend.Key]time.Duration{s.Key(addr(to)): left}
	}
	answer := func(name string, s backend.Scope, until time.Duration) Answer {
		return Answer{Name: name, Addr: addr(to), Scope: s, At: now.Add(-time.Minute), Until: now.Add(until)}
	}
	stripped := func(s backend.Scope) Answer {
		return Answer{Name: "evil.example.", Addr: addr(to), Scope: s, At: now.Add(-time.Second), Stripped: "private-use (RFC 1918)"}
	}
	for _, tt := range []struct {
		name   string
		k      *Knowledge
		change func(*backend.Rules)
		flow   Flow
		passes bool
		want   Reason
		text   string // or how it begins
	}{
		{name: "nothing known", k: known(nil), flow: local(to, tcp, 443), want: NeverResolved, text: "never resolved here"},
		{name: "opened", k: known(holds(machine, 31*time.Second), answer("api.example.com.", machine, 31*time.Second)), flow: local(to, tcp, 443),
			passes: true, want: Granted, text: "opened by the answer for api.example.com, for 31s more"},
		{name: "opened, nobody knows by what", k: known(holds(machine, 31*time.Second)), flow: local(to, icmp, 0),
			passes: true, want: Granted, text: "opened by an answer that is not remembered, for 31s more"},
		{name: "opened to everyone", k: known(holds(backend.Scope{}, time.Second)), flow: through("10.0.0.7", to, udp, 1), passes: true, want: Granted},
		{name: "opened to the user", k: known(holds(backend.UserScope(1000), time.Second)), flow: local(to, tcp, 443), passes: true, want: Granted},
		{name: "opened to a cgroup above", k: known(holds(backend.UnitScope(77), time.Second)), flow: local(to, tcp, 443), passes: true, want: Granted},
		{name: "opened to another cgroup", k: known(holds(backend.UnitScope(78), time.Second), answer("api.example.com.", backend.UnitScope(78), time.Second)), flow: local(to, tcp, 443),
			want: OtherHolder, text: "granted to cgroup 78, not to user 1000 (the answer for api.example.com)"},
		{name: "applications are not told apart", k: known(holds(backend.UserScope(1000), time.Second)), change: func(r *backend.Rules) { r.LocalHolders = []backend.Holder{backend.Machine} },
			flow: local(to, tcp, 443), want: NeverResolved},
		{name: "opened to the client", k: known(holds(client("10.0.0.7"), time.Second)), flow: through("10.0.0.7", to, tcp, 443), passes: true, want: Granted},
		{name: "opened to the client's Ethernet address", k: known(holds(backend.LinkScope(3, mac), time.Second)),
			flow: by(through("192.168.0.7", to, tcp, 443), func(f *Flow) { f.Link = backend.LinkScope(3, mac) }), passes: true, want: Granted},
		{name: "what a neighbour forwards", k: known(holds(backend.LinkScope(3, mac), time.Second)),
			flow: by(through("10.0.0.7", to, tcp, 443), func(f *Flow) { f.Link = backend.LinkScope(3, mac) }), want: NeverResolved},
		{name: "opened to another client", k: known(holds(client("10.0.0.7"), time.Minute), answer("api.example.com.", client("10.0.0.7"), time.Minute)),
			flow: through("10.0.0.9", to, tcp, 443), want: OtherHolder, text: "granted to 10.0.0.7, not to 10.0.0.9 (the answer for api.example.com)"},
		{name: "opened to another Ethernet address", k: known(holds(backend.LinkScope(3, mac), time.Minute), func() Answer {
			a := answer("api.example.com.", backend.LinkScope(3, mac), time.Minute)
			a.Asker = addr("192.168.0.7")
			return a
		}()), flow: through("192.168.0.9", to, tcp, 443), want: OtherHolder, text: "granted to 192.168.0.7, not to 192.168.0.9"},
		{name: "what this machine asked is not its clients'", k: known(holds(machine, time.Minute), answer("api.example.com.", machine, time.Minute)),
			flow: through("10.0.0.9", to, tcp, 443), want: OtherHolder, text: "granted to this machine, not to 10.0.0.9"},
		{name: "another's, and expired", k: known(nil, answer("api.example.com.", client("10.0.0.7"), -time.Minute)),
			flow: through("10.0.0.9", to, tcp, 443), want: OtherHolder, text: "was granted to 10.0.0.7, not to 10.0.0.9, and expired 1m0s ago"},
		{name: "expired", k: known(nil, answer("api.example.com.", machine, -12*time.Second)), flow: local(to, tcp, 443),
			want: Expired, text: "expired 12s ago, was api.example.com (margin 30s)"},
		{name: "expired a moment ago", k: known(nil, answer(".", machine, -1500*time.Microsecond)), flow: local(to, tcp, 443),
			want: Expired, text: "expired 2ms ago, was . (margin 30s)"},
		{name: "expired, and somebody else has it", k: known(holds(client("10.0.0.7"), time.Minute), answer("a.example.", client("10.0.0.9"), -time.Second), answer("b.example.", client("10.0.0.7"), time.Minute)),
			flow: through("10.0.0.9", to, tcp, 443), want: Expired},
		{name: "gone before its time", k: known(nil, answer("api.example.com.", machine, time.Minute)), flow: local(to, tcp, 443), want: EndedEarly, text: "ended early, was api.example.com"},
		{name: "stripped", k: known(nil, stripped(machine)), flow: local(to, tcp, 443), want: Stripped, text: "stripped: private-use (RFC 1918), in the answer for evil.example"},
		{name: "stripped for another", k: known(nil, stripped(client("10.0.0.7"))), flow: through("10.0.0.9", to, tcp, 443), want: Stripped},
		{name: "stripped after it expired", k: known(nil, answer("api.example.com.", machine, -time.Second), stripped(machine)), flow: local(to, tcp, 443), want: Stripped},
		{name: "lingers", k: known(nil, answer("api.example.com.", machine, -12*time.Second)), change: func(r *backend.Rules) { r.Linger = time.Minute },
			flow: local(to, tcp, 443), want: Expired, text: "expired 12s ago, was api.example.com (margin 30s); while it is used it stays open (linger 1m0s)"},

		{name: "the port of the block", k: known(holds(class(1, machine), time.Minute)), flow: local(to, tcp, 443), passes: true, want: Granted},
		{name: "another port", k: known(holds(class(1, machine), time.Minute), answer("api.example.com.", class(1, machine), time.Minute)), flow: local(to, tcp, 80),
			want: OtherPort, text: "port not in the block's ports: opened by the answer for api.example.com, for tcp/443 only"},
		{name: "another protocol", k: known(holds(class(1, machine), time.Minute)), flow: local(to, udp, 443), want: OtherPort},
		{name: "no port", k: known(holds(class(1, machine), time.Minute)), flow: local(to, icmp, 0), want: OtherPort},
		{name: "another port, but open to all packets too", k: known(map[backend.Key]time.Duration{class(1, machine).Key(addr(to)): time.Minute, backend.UserScope(1000).Key(addr(to)): time.Second}),
			flow: local(to, tcp, 80), passes: true, want: Granted},
		{name: "the user of the block", k: known(holds(class(2, machine), time.Minute)), flow: local(to, tcp, 80), passes: true, want: Granted},
		{name: "another user", k: known(holds(class(2, machine), time.Minute)), flow: by(local(to, tcp, 80), func(f *Flow) { f.Program = &Program{User: 1001} }),
			want: OtherProgram, text: "opened by an answer that is not remembered, for other programs only: user 1000"},
		{name: "any user", k: known(holds(class(2, machine), time.Minute)), flow: by(local(to, tcp, 80), func(f *Flow) { f.Program = nil }), want: OtherProgram},
		{name: "the unit of the block", k: known(holds(class(3, machine), time.Minute)), flow: local(to, tcp, 80), passes: true, want: Granted},
		{name: "another unit", k: known(holds(class(3, machine), time.Minute)), flow: by(local(to, tcp, 80), func(f *Flow) { f.Program.Cgroups = []uint64{7} }), want: OtherProgram},

		{name: "a resolver", k: known(holds(machine, time.Minute)), flow: local(to, udp, 53), want: DNSPort, text: "dns port"},
		{name: "DNS over TLS", k: known(holds(machine, time.Minute)), flow: local(to, tcp, 853), want: DNSPort},
		{name: "no port of DNS", k: known(holds(machine, time.Minute)), flow: local(to, 132, 53), passes: true, want: Granted},
		{name: "ports of DNS are open", k: known(holds(machine, time.Minute)), change: func(r *backend.Rules) { r.DNSPorts = true }, flow: local(to, udp, 53), passes: true, want: Granted},
		{name: "upstream", k: known(nil), flow: local("203.0.113.53", udp, 53), want: OthersAsk, text: "only CoreDNS asks upstream"},
		{name: "upstream, by a client", k: known(nil), change: func(r *backend.Rules) { r.Capture = 0 }, flow: through("10.0.0.7", "203.0.113.53", udp, 53), want: OthersAsk},
		{name: "upstream, another port", k: known(nil), flow: local("203.0.113.53", udp, 54), want: NeverResolved},
		{name: "upstream, by CoreDNS", k: known(nil), flow: by(local("203.0.113.53", udp, 53), func(f *Flow) { f.Program.User = 53 }), passes: true, want: Upstream},
		{name: "upstream, by CoreDNS's cgroup", k: known(nil), change: func(r *backend.Rules) { r.Self.Cgroup.ID = 77 }, flow: local("203.0.113.53", udp, 53), passes: true, want: Upstream},
		{name: "upstream, by its user, who is not enough", k: known(nil), change: func(r *backend.Rules) { r.Self = backend.Program{User: 1000, Cgroup: backend.Cgroup{ID: 5}} },
			flow: local("203.0.113.53", udp, 53), want: OthersAsk},
		{name: "captured", k: known(nil), flow: through("10.0.0.7", "8.8.8.8", udp, 53), passes: true, want: Captured},

		{name: "allowed", k: known(nil), flow: local("198.51.100.1", udp, 53), passes: true, want: Allowed, text: "allowedIPs"},
		{name: "allowed, for a client", k: known(nil), flow: through("10.0.0.7", "198.51.100.1", tcp, 1), passes: true, want: Allowed},
		{name: "allowed here", k: known(nil), flow: local("198.51.100.129", tcp, 1), passes: true, want: Allowed, text: "allowedLocalIPs"},
		{name: "allowed here, for a client", k: known(nil), flow: through("10.0.0.7", "198.51.100.129", tcp, 1), want: NeverResolved},
		{name: "allowed through it", k: known(nil), flow: through("fd00::7", "2001:db8:a::1", tcp, 1), passes: true, want: Allowed, text: "allowedGatewayIPs"},
		{name: "allowed through it, for itself", k: known(nil), flow: local("2001:db8:a::1", tcp, 1), want: NeverResolved},
		{name: "itself", k: known(nil), flow: local("192.168.0.1", tcp, 1), passes: true, want: Itself},
		{name: "loopback", k: known(nil), flow: local("127.0.0.1", tcp, 1), passes: true, want: Itself},
		{name: "another interface", k: known(nil), flow: by(through("10.0.0.7", to, tcp, 1), func(f *Flow) { f.In = "wan0" }), passes: true, want: Unguarded, text: "it comes in by wan0"},
		{name: "every interface", k: known(nil), change: func(r *backend.Rules) { r.Interfaces = nil }, flow: by(through("10.0.0.7", to, tcp, 1), func(f *Flow) { f.In = "wan0" }), want: NeverResolved},
		{name: "only clients", k: known(nil), change: func(r *backend.Rules) { r.Local = false }, flow: local(to, tcp, 1), passes: true, want: Unguarded, text: "what the machine sends"},
		{name: "only the machine", k: known(nil), change: func(r *backend.Rules) { r.Gateway = false }, flow: through("10.0.0.7", to, tcp, 1), passes: true, want: Unguarded, text: "what the machine forwards"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change != nil {
				tt.change(&tt.k.Rules)
			}
			got := tt.k.Explain(&tt.flow)
			if got.Passes != tt.passes || got.Reason != tt.want || !strings.HasPrefix(got.Text, tt.text) || got.Text == "" {
				t.Errorf("passes: %v, %s: %s\nwant %v, %s: %s", got.Passes, got.Reason, got.Text, tt.passes, tt.want, tt.text)
			}
		})
	}
}

// An address of a route's pool is opened by grants alone, and said to be whose it is.
func TestExplainMapped(t *testing.T) {
	const mapped, free, unknown = "100.96.0.1", "100.96.0.2", "100.96.0.3"
	k := known(map[backend.Key]time.Duration{machine.Key(addr(mapped)): time.Minute})
	k.Rules.Routes = []backend.Route{{Pools: prefixes("100.96.0.0/11")}}
	k.Rules.Allowed = prefixes("100.96.0.0/11")
	k.Mapped = func(a netip.Addr) (string, bool) { return "www.example.com", a != addr(free) }
	for _, tt := range []struct {
		to     string
		port   uint16
		passes bool
		want   Reason
		text   string
	}{
		{mapped, 853, false, DNSPort, "mapped address of www.example.com: dns port"},
		{mapped, 443, true, Granted, "mapped address of www.example.com: opened by an answer"},
		{unknown, 443, false, NeverResolved, "mapped address of www.example.com: never resolved here"},
		{free, 443, false, Unassigned, "unassigned"},
	} {
		f := Flow{To: addr(tt.to), Protocol: tcp, Port: tt.port}
		if v := k.Explain(&f); v.Passes != tt.passes || v.Reason != tt.want || !strings.HasPrefix(v.Text, tt.text) {
			t.Errorf("%s: %+v, want %s: %s", tt.to, v, tt.want, tt.text)
		}
	}
	for _, tt := range []struct {
		change func(*backend.Rules)
		flow   Flow
		text   string
	}{
		{func(r *backend.Rules) { r.Local = false }, Flow{}, "what the machine sends is not guarded in this mode"},
		{func(r *backend.Rules) { r.Gateway = false }, Flow{Forwarded: true}, "what the machine forwards is not guarded in this mode"},
		{func(*backend.Rules) {}, Flow{Forwarded: true, In: "wan0"}, "it comes in by wan0, which is not among the interfaces that are guarded"},
	} {
		unguarded, f := *k, tt.flow
		tt.change(&unguarded.Rules)
		f.To, f.Protocol, f.Port = addr(mapped), tcp, 443
		if v, want := unguarded.Explain(&f), "unassigned: no address of a route's pool is open to who is not guarded: "+tt.text; v.Passes || v.Reason != Unassigned || v.Text != want {
			t.Errorf("%+v, want %s", v, want)
		}
	}
	k.Stray = func(f *Flow) string { return f.To.String() + " strays" }
	for to, want := range map[string]Verdict{
		mapped:  {Reason: NoWay, Text: "mapped address of www.example.com: " + mapped + " strays"},
		unknown: {Reason: NeverResolved, Text: "mapped address of www.example.com: never resolved here"},
	} {
		if v := k.Explain(&Flow{To: addr(to), Protocol: tcp, Port: 443}); v.Passes || v.Reason != want.Reason || v.Text != want.Text {
			t.Errorf("%s: %+v, want %+v", to, v, want)
		}
	}
	k.Stray = nil

	// Where it leads counts as well.
	own, resolver := addr("192.0.2.1"), netip.MustParseAddrPort("9.9.9.9:443")
	k.Own = func(a netip.Addr) bool { return a == own }
	k.Rules.Upstream = []netip.AddrPort{resolver}
	for _, tt := range []struct {
		real   netip.Addr
		leads  bool
		passes bool
		want   Reason
		text   string
	}{
		{addr("192.0.2.2"), true, true, Granted, "mapped address of www.example.com: opened by an answer"},
		{netip.Addr{}, true, true, Granted, "mapped address of www.example.com: opened by an answer"},
		{netip.Addr{}, false, false, Unassigned, "unassigned: mapped address of www.example.com that leads nowhere now"},
		{own, true, false, OwnAddress, "mapped address of www.example.com: its real address is this machine's own"},
		{addr("127.1.2.3"), true, false, OwnAddress, "mapped address of www.example.com: its real address is this machine's own"},
		{resolver.Addr(), true, false, OthersAsk, "mapped address of www.example.com: its real address is a resolver's"},
	} {
		k.Leads = func(netip.Addr) (netip.Addr, bool) { return tt.real, tt.leads }
		if v := k.Explain(&Flow{To: addr(mapped), Protocol: tcp, Port: 443}); v.Passes != tt.passes || v.Reason != tt.want || !strings.HasPrefix(v.Text, tt.text) {
			t.Errorf("%v, %v: %+v, want %s: %s", tt.real, tt.leads, v, tt.want, tt.text)
		}
	}
	k.Mapped, k.Leads = nil, nil
	if v := k.Explain(&Flow{To: addr(mapped), Protocol: tcp, Port: 443}); !v.Passes {
		t.Errorf("%+v", v)
	}
}

func TestPlain(t *testing.T) {
	for name, want := range map[string]string{"www.example.com.": "www.example.com", ".": ".", "": "", `a\.b.`: `a\.b`} {
		if got := Plain(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
