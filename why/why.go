package why

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A Flow is what begins a connection: who sends what where to.
type Flow struct {
	To       netip.Addr // never IPv4-mapped
	Protocol uint8      // as in the IP header
	Port     uint16     // 0 for protocols that have none

	// Forwarded is what others send through this machine: Client, and by what interface
	// it comes in, as far as that is known. Link is the client by its Ethernet address, or
	// the zero value.
	Forwarded bool
	Client    netip.Addr
	In        string
	Link      backend.Scope

	// Program has sent what is not forwarded; nil is any.
	Program *Program
}

// Program is one of this machine.
type Program struct {
	User    uint32
	Cgroups []uint64 // its own and those above it, or none if that is not known
	Unit    string   // how to call it, or empty
}

// A Reason is why a flow passes or does not, as metrics and scripts have it.
type Reason string

// What lets a flow pass.
const (
	Granted   Reason = "granted"
	Allowed   Reason = "allowed"
	Upstream  Reason = "upstream"  // CoreDNS asks its resolvers
	Itself    Reason = "itself"    // to this machine
	Captured  Reason = "captured"  // CoreDNS answers it
	Unguarded Reason = "unguarded" // the mode or the interface
)

// What does not.
const (
	NeverResolved Reason = "never_resolved"
	Expired       Reason = "expired"
	EndedEarly    Reason = "ended_early"
	OtherHolder   Reason = "other_holder"
	OtherPort     Reason = "other_port"    // than those of the server block
	OtherProgram  Reason = "other_program" // than those of the server block
	Stripped      Reason = "stripped"
	DNSPort       Reason = "dns_port"
	OthersAsk     Reason = "others_ask"  // resolvers that only CoreDNS may ask
	Unassigned    Reason = "unassigned"  // an address of a route's pool that no name has
	OwnAddress    Reason = "own_address" // stands behind a mapped one: a route leads away from this machine
	NoWay         Reason = "no_way"      // than another one than that of its route, which it must not take
)

// Refusals are all reasons why a flow does not pass.
var Refusals = []Reason{NeverResolved, Expired, EndedEarly, OtherHolder, OtherPort, OtherProgram, Stripped, DNSPort, OthersAsk, Unassigned, OwnAddress, NoWay}

// A Verdict is what becomes of a flow, and why.
type Verdict struct {
	Passes bool
	Reason Reason
	Text   string // a sentence for people

	// Lingers is true where it would be refused, had nothing been sent there lately: what
	// is in use stays open, and only the kernel knows that.
	Lingers bool

	Holder backend.Scope // whose grant it is
	Until  time.Time     // when that ends
	Answer *Answer       // that it is about, if it is known
}

// Knowledge is what verdicts go by.
type Knowledge struct {
	Rules   backend.Rules
	InForce func(backend.Key) (until time.Time, confirmed bool) // see expiry.Table.Lookup
	Answers func(netip.Addr) []Answer                           // the latest first
	Own     func(netip.Addr) bool                               // addresses of this machine

	// Mapped returns whose address of a route's pool it is. Without it, each such address is
	// taken for somebody's.
	Mapped func(netip.Addr) (name string, ok bool)

	// Leads returns where an address leads that is somebody's, as far as that is known, and
	// whether it leads anywhere. Without it, each does.
	Leads func(mapped netip.Addr) (real netip.Addr, ok bool)

	// Stray says why what begins a connection to a mapped address would not leave by its route,
	// or nothing where it would, or that is not known. Nil is never.
	Stray func(*Flow) string

	Margin time.Duration              // for the text
	Call   func(backend.Scope) string // what people call a holder; nil is as it is
	Now    time.Time
}

// Explain says what becomes of a flow. It takes the way of the packet through the chain.
func (k *Knowledge) Explain(f *Flow) Verdict {
	guarded := k.Rules.Local
	if f.Forwarded {
		guarded = k.Rules.Gateway
	}
	switch {
	case k.Own != nil && k.Own(f.To), f.To.IsLoopback():
		return pass(Itself, "it goes to this machine itself, which is not guarded")
	case !guarded:
		return k.unguarded(f, fmt.Sprintf("what the machine %s is not guarded in this mode", f.does()))
	case f.Forwarded && f.In != "" && len(k.Rules.Interfaces) > 0 && !slices.Contains(k.Rules.Interfaces, f.In):
		return k.unguarded(f, fmt.Sprintf("it comes in by %s, which is not among the interfaces that are guarded", f.In))
	case k.pooled(f.To) && !(f.Forwarded && k.Rules.Capture != 0 && f.asks() && f.Port == 53):
		return k.mapped(f)
	case f.Forwarded && k.Rules.Capture != 0 && f.asks() && f.Port == 53:
		return pass(Captured, "CoreDNS answers it itself (capture)")
	case contains(k.Rules.Allowed, f.To):
		return pass(Allowed, "allowedIPs")
	case !f.Forwarded && contains(k.Rules.AllowedLocal, f.To):
		return pass(Allowed, "allowedLocalIPs")
	case f.Forwarded && contains(k.Rules.AllowedGateway, f.To):
		return pass(Allowed, "allowedGatewayIPs")
	case f.asks() && slices.Contains(k.Rules.Upstream, netip.AddrPortFrom(f.To, f.Port)):
		if !f.Forwarded && f.Program.is(k.Rules.Self) {
			return pass(Upstream, "CoreDNS asks upstream")
		}
		return refuse(OthersAsk, "only CoreDNS asks upstream")
	}
	return k.opened(f)
}

// unguarded is what becomes of packets of who is not guarded, and why he is not.
func (k *Knowledge) unguarded(f *Flow, why string) Verdict {
	if k.pooled(f.To) {
		return refuse(Unassigned, "unassigned: no address of a route's pool is open to who is not guarded: %s", why)
	}
	return pass(Unguarded, "%s", why)
}

// opened is what becomes of packets that only a grant can open the way to.
func (k *Knowledge) opened(f *Flow) Verdict {
	if f.asks() && (f.Port == 53 || f.Port == 853) && !k.Rules.DNSPorts {
		return refuse(DNSPort, "dns port: no answer opens another resolver")
	}
	return k.grants(f)
}

// pooled reports whether an address is of a route's pool.
func (k *Knowledge) pooled(addr netip.Addr) bool {
	return slices.ContainsFunc(k.Rules.Routes, func(r backend.Route) bool { return contains(r.Pools, addr) })
}

// mapped is what becomes of packets to an address of a pool: only a grant opens it.
func (k *Knowledge) mapped(f *Flow) Verdict {
	if k.Mapped == nil {
		return k.opened(f)
	}
	name, ok := k.Mapped(f.To)
	if !ok {
		return refuse(Unassigned, "unassigned: an address of a route's pool that no name has now")
	}
	v := k.opened(f)
	if v.Passes {
		real, leads := netip.Addr{}, true
		if k.Leads != nil {
			real, leads = k.Leads(f.To)
		}
		if !leads {
			return refuse(Unassigned, "unassigned: mapped address of %s that leads nowhere now, since its route has changed: the name has to be asked for again", Plain(name))
		}
		if reason, text := k.translated(f, real); reason != "" {
			v.Passes, v.Reason, v.Text = false, reason, text
		}
	}
	v.Text = fmt.Sprintf("mapped address of %s: %s", Plain(name), v.Text)
	return v
}

// translated is why what goes to a mapped address is refused though that is open, if it is.
func (k *Knowledge) translated(f *Flow, real netip.Addr) (reason Reason, text string) {
	switch {
	case real.IsLoopback(), real.IsValid() && k.Own != nil && k.Own(real):
		return OwnAddress, "its real address is this machine's own, which no route leads to"
	case f.asks() && slices.Contains(k.Rules.Upstream, netip.AddrPortFrom(real, f.Port)):
		return OthersAsk, "its real address is a resolver's: only CoreDNS asks upstream"
	case k.Stray != nil:
		if text = k.Stray(f); text != "" {
			return NoWay, text
		}
	}
	return "", ""
}

func pass(r Reason, format string, args ...any) Verdict {
	return Verdict{Passes: true, Reason: r, Text: fmt.Sprintf(format, args...)}
}

func refuse(r Reason, format string, args ...any) Verdict {
	return Verdict{Reason: r, Text: fmt.Sprintf(format, args...)}
}

// asks reports whether it can be a question to a resolver.
func (f *Flow) asks() bool {
	return f.Protocol == backend.Protocols["tcp"] || f.Protocol == backend.Protocols["udp"]
}

func (f *Flow) does() string {
	if f.Forwarded {
		return "forwards"
	}
	return "sends"
}

func (p *Program) is(q backend.Program) bool {
	switch {
	case p == nil:
		return false
	case q.Cgroup.ID != 0:
		return slices.Contains(p.Cgroups, q.Cgroup.ID)
	}
	return p.User == q.User
}

func contains(networks []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// holders are the scopes of any packet that the sender can use grants of.
func (k *Knowledge) holders(f *Flow) []backend.Scope {
	can := []backend.Scope{{Holder: backend.Everyone}}
	known := k.Rules.LocalHolders
	if f.Forwarded {
		known = k.Rules.GatewayHolders
		if f.Client.IsValid() {
			can = append(can, backend.ClientScope(f.Client))
		}
		if f.Link.Holder == backend.Link && contains(k.Rules.OnLink, f.Client) {
			can = append(can, f.Link)
		}
	} else {
		can = append(can, backend.Scope{Holder: backend.Machine})
		if f.Program != nil {
			can = append(can, backend.UserScope(f.Program.User))
			for _, id := range f.Program.Cgroups {
				can = append(can, backend.UnitScope(id))
			}
		}
	}
	return slices.DeleteFunc(can, func(s backend.Scope) bool { return !slices.Contains(known, s.Holder) })
}

// mismatch says which predicate of a class a flow does not match, or nothing.
func (f *Flow) mismatch(p *backend.Predicates) Reason {
	if len(p.Ports) > 0 && !slices.ContainsFunc(p.Ports, func(r backend.Ports) bool {
		return r.Protocol == f.Protocol && r.First <= f.Port && f.Port <= r.Last
	}) {
		return OtherPort
	}
	if !p.Local() {
		return ""
	}
	if f.Forwarded || f.Program == nil ||
		len(p.Users) > 0 && !slices.Contains(p.Users, f.Program.User) ||
		len(p.Units) > 0 && !slices.ContainsFunc(p.Units, func(u backend.Cgroup) bool {
			return u.ID != 0 && slices.Contains(f.Program.Cgroups, u.ID)
		}) {
		return OtherProgram
	}
	return ""
}
