package backend

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// An Auditor is a backend that can let pass what it would refuse, and count it all the
// same: see AuditLocal and AuditGateway of [Rules].
type Auditor interface {
	// Trial has the enforcer refuse until then what Rules let pass in audit. It goes back
	// to audit by itself, whether this process is still there or not. A moment that is
	// past, or the zero one, ends a trial at once. A trial goes on over [Backend.Open].
	Trial(ctx context.Context, until time.Time) error

	// Tried returns until when the enforcer says that a trial lasts; zero is none.
	Tried(ctx context.Context) (time.Time, error)
}

// Denials is a backend that counts what it refuses, and what it lets pass in audit only.
type Denials interface {
	// Denied hands over all flows that the enforcer has counted lately (see [ListedFor]),
	// one by one and in no order. It changes nothing, and disturbs no other method. What happens meanwhile
	// may make a flow come twice, or not until the next time.
	Denied(ctx context.Context, each func(Denial)) error

	// Tallies returns how many packets were denied on each hook, since the enforcer began
	// to count: it outlives processes, and begins anew when somebody else has removed it.
	Tallies(ctx context.Context) ([Hooks]Tally, error)
}

// Hook is where packets are refused.
type Hook uint8

// Where packets are refused.
const (
	Output  Hook = iota // what this machine sends
	Forward             // what this machine forwards
	Hooks               // how many there are
)

// String names the hook as the table's chains are named.
func (h Hook) String() string {
	switch h {
	case Output:
		return "output"
	case Forward:
		return "forward"
	}
	return fmt.Sprint("hook ", uint8(h))
}

// A Kind of denial is where and how packets are denied.
type Kind struct {
	Hook    Hook
	Audited bool // they have passed, since the hook is in audit
	Invalid bool // they belong to no connection: forged, or late, or the other half goes another way

	// Bound: they must not leave but by their route, and that was not their way, or has gone.
	// Their Addr is the mapped one.
	Bound bool
}

// Kinds are all of them.
var Kinds = []Kind{
	{Hook: Output}, {Hook: Output, Invalid: true}, {Hook: Output, Audited: true}, {Hook: Output, Audited: true, Invalid: true}, {Hook: Output, Bound: true},
	{Hook: Forward}, {Hook: Forward, Invalid: true}, {Hook: Forward, Audited: true}, {Hook: Forward, Audited: true, Invalid: true}, {Hook: Forward, Bound: true},
}

// String names a kind, as the prefix of what is shown to an NFLOG group does:
// denied-output, audited-forward-invalid.
func (k Kind) String() string {
	name := "denied-" + k.Hook.String()
	if k.Audited {
		name = "audited-" + k.Hook.String()
	}
	if k.Invalid {
		name += "-invalid"
	}
	if k.Bound {
		name += "-bound"
	}
	return name
}

// A Flow is what packets have in common that are denied together. It says nothing of
// the packets' source ports: these are up to the sender, and as many as he likes.
type Flow struct {
	Kind
	Protocol uint8 // as in the IP header

	User      uint32     // on Output: whose program has sent them; NoUser where that is the kernel itself
	Interface uint32     // on Forward: the index of the interface that they have come in by
	Client    netip.Addr // on Forward: where they come from

	Addr netip.Addr // where they go to; never IPv4-mapped
	Port uint16     // with protocols that have ports
}

// ListedFor is how long a flow is handed over after its last packet.
const ListedFor = 2 * time.Minute

// NoUser is nobody's number: user -1.
const NoUser = ^uint32(0)

// String is a line for people.
func (f Flow) String() string {
	var from string
	switch {
	case f.Hook == Forward:
		from = fmt.Sprintf("%v at interface %d", f.Client, f.Interface)
	case f.User == NoUser:
		from = "the kernel"
	default:
		from = fmt.Sprint("user ", f.User)
	}
	what, known := portless[f.Protocol]
	if !known {
		what = Ports{f.Protocol, f.Port, f.Port}.String()
	}
	return fmt.Sprintf("%v: %s to %v, %s", f.Kind, from, f.Addr, what)
}

// portless are protocols without ports, by name.
var portless = map[uint8]string{1: "icmp", 2: "igmp", 4: "ipip", 41: "ipv6", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6"}

// A Denial is what a flow has come to.
type Denial struct {
	Flow
	Count
	Last time.Time // when its last packet came
}

// Count is packets, and their length as IP has it.
type Count struct{ Packets, Bytes uint64 }

// A Tally is what was denied on a hook. It is complete, however much that was.
type Tally struct {
	Refused  Count
	Audited  Count // would have been refused, and has passed
	Unlisted Count // of both: in no Flow, since there are as many as may be, or too many came at once
}
