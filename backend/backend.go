// Package backend is what the guard wants from whatever enforces its grants.
package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// Backend puts rules and grants in force. All methods may be called at the same
// time.
//
// A backend keeps the [InForce] table it was made with: it enters a grant when
// the kernel has acknowledged it, takes a grant out before it removes it, and
// removes by itself what has run out.
type Backend interface {
	// Check finds out, changing nothing, whether Open would succeed.
	Check(Rules) error

	// Open brings the enforced rules to the wanted ones in one step, creating
	// or adopting; grants that live survive it. From then on the backend
	// repairs what others break. Open may be called again with other rules,
	// but for the same table.
	Open(Rules) error

	// Grant returns when all grants are in force at least until their time,
	// or why not all of them are, or with ctx, or with ErrLate when it has
	// waited for others for so long. A grant never gets shorter, but it may
	// end to make room: see Rules.
	Grant(ctx context.Context, grants []Grant, within time.Duration) error

	// List returns the grants that the enforcer itself knows. It is for
	// people, not for a query's path: it may take long when there are many.
	List() ([]Grant, error)

	// Close ends the backend's work and leaves the rules to stand (the grants
	// run out by themselves) or removes them. Later calls of any method
	// return ErrClosed.
	Close(Leave) error
}

// Leave is what Close leaves behind.
type Leave bool

// What Close leaves behind.
const (
	Keep   Leave = true  // the rules go on refusing what nothing allows
	Remove Leave = false // no trace: everything passes
)

// Rules say what is refused and what always passes.
type Rules struct {
	Table   string // name of the table that is ours
	Local   bool   // guard what this machine sends
	Gateway bool   // guard what this machine forwards

	Allowed        []netip.Prefix // for every guarded chain
	AllowedLocal   []netip.Prefix // for what this machine sends
	AllowedGateway []netip.Prefix // for what this machine forwards

	// LocalHolders and GatewayHolders are whose grants open the one chain and
	// the other. Grants of other kinds are refused; Open ends those that live.
	LocalHolders, GatewayHolders []Holder

	// OnLink are the networks of this machine's own wires. A Link holds grants
	// for what comes from there only: what a neighbour forwards for others has
	// the neighbour's Ethernet address too.
	OnLink []netip.Prefix

	// Interfaces limits the guard of forwarded traffic to what comes in by
	// these; empty means by any.
	Interfaces []string

	// Classes of grants that are not for all packets, by their numbers. A number
	// means the same as long as the backend is open.
	Classes map[Class]Predicates

	// DNSPorts lets grants open the ports of DNS, 53 and 853, as well.
	DNSPorts bool

	// Upstream is open, over TCP and UDP, to what Self sends.
	Upstream []netip.AddrPort
	Self     Program

	// Capture is the port of this machine that gets the plain DNS, to whatever
	// address, of those whose traffic is forwarded and guarded; 0 is none.
	Capture uint16

	// Routes translate mapped addresses, where the backend is a [Router]. There may be
	// MaxMappings of each IP version; 0 is no limit. Book names the list that they are
	// from, by letters and digits: what is mapped from another one is not any more. Origins
	// say, also without routes, where mapped addresses that somebody may know are from.
	Routes      []Route
	MaxMappings int
	Book        string
	Origins     []Origin

	// AuditLocal and AuditGateway let pass what would be refused of what this machine
	// sends, and forwards, where the backend is an [Auditor]. It counts that apart.
	AuditLocal, AuditGateway bool

	// LogGroup is the NFLOG group that some of the packets are shown to that are denied;
	// 0 is none.
	LogGroup uint16

	// Linger is how long an address stays open to the holder of a grant after the
	// holder's last packet to it; 0 is no longer than the grant.
	Linger time.Duration

	// How many grants of each IP version there may be: MaxGrants of a kind of holder
	// in a class, MaxGrantsClient of one client or application in a class,
	// MaxGrantsName of one holder in a class because of one name. 0 is no limit.
	//
	// A new grant that is one too many ends, at once with its own beginning, the one
	// of the same name or holder that was renewed least recently. Where MaxGrants
	// is reached, too, that is one of the same holder: others never make room for
	// it, and if it has none there, the grant is refused. A call of Grant that by
	// itself wants more than one of the limits is refused, and ends nothing. After
	// limits got lower, each new grant ends two, until they are kept.
	MaxGrants, MaxGrantsClient, MaxGrantsName int
}

// Know reports whether such holders have grants, be it for a chain that only a
// reload brings.
func (r *Rules) Know(s Scope) bool {
	local, gateway := slices.Contains(r.LocalHolders, s.Holder), slices.Contains(r.GatewayHolders, s.Holder)
	if s.Class == 0 {
		return local || gateway
	}
	p, ok := r.Classes[s.Class]
	return ok && (local || gateway && !p.Local())
}

// Account is whose limit the grants of a scope count for: mostly its own. Clients that may
// be one, under addresses as many as they like, have one together: those on a wire whose
// Ethernet address is not known, and routed ones with IPv6 addresses of the same 64 bits.
func (r *Rules) Account(s Scope) Scope {
	if s.Holder != Client {
		return s
	}
	addr := netip.AddrFrom16(s.ID).Unmap()
	for _, wire := range r.OnLink {
		if wire.Contains(addr) {
			s.ID = wire.Addr().As16()
			return s
		}
	}
	if !addr.Is4() {
		clear(s.ID[8:])
	}
	return s
}

// Grantable returns ErrScope, in words, if there cannot be such a grant.
func (r *Rules) Grantable(g Grant) error {
	if !r.Know(g.Scope) || !g.CanReach(g.Addr) {
		return fmt.Errorf("%w: %v to %v", ErrScope, g.Scope, g.Addr)
	}
	return nil
}

// Grant is permission for somebody to reach an address until a moment.
type Grant struct {
	Scope
	Addr  netip.Addr // never IPv4-mapped: see Unmap
	Until time.Time

	// Name is a hash of the name that was asked for; 0 is none. A grant that a
	// second name renews counts for neither any more, only for its holder: what a
	// name needs is not ended because of another one. Nor does a grant that an
	// earlier process has made.
	Name uint64
}

// Key returns the name of g in tables.
func (g Grant) Key() Key { return g.Scope.Key(g.Addr) }

// Key names a grant in tables, whenever it ends.
type Key struct {
	Scope
	IP [16]byte // the address; IPv4 in mapped form
}

// KeyOf returns the key of everyone's grant for addr.
func KeyOf(addr netip.Addr) Key { return Scope{}.Key(addr) }

// Grant returns what k is the name of.
func (k Key) Grant(until time.Time) Grant { return Grant{Scope: k.Scope, Addr: k.Addr(), Until: until} }

// Addr returns the address that k is for.
func (k Key) Addr() netip.Addr { return netip.AddrFrom16(k.IP).Unmap() }

// Is4 reports whether the address that k is for is IPv4.
func (k Key) Is4() bool {
	return [12]byte(k.IP[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// InForce is the table of what is in force, kept by the backend and read by the
// guard on every answer.
type InForce = expiry.Table[Key]

// Observer hears what a backend does. Its methods are called one at a time, from
// the backend's goroutines and those of its callers, and must not block.
type Observer interface {
	// Committed: one transaction, with so many grants made and renewed and so
	// many removals, was acknowledged after took.
	Committed(made, renewed, removed int, took time.Duration)

	// Expired: so many grants have run out.
	Expired(n int)

	// Evicted: so many grants have ended early, to make room for newer ones:
	// see Rules. They are not among those that have expired.
	Evicted(n int)

	// Failed: the operation op ("commit", "read", "open", ...) was refused.
	Failed(op string, err error)

	// Live: so many grants stand in the kernel now.
	Live(ipv4, ipv6 int)

	// Repaired: somebody else had removed or changed the rules, or emptied
	// the sets, and they have been put back.
	Repaired(what string)

	// Withstood: somebody else has removed the rules of all others, and could
	// not remove these.
	Withstood()

	// Enforcing: the rules and all grants are in force, or no longer are.
	Enforcing(bool)
}

// Errors that callers may ask for with errors.Is.
var (
	// ErrClosed is returned by every method after Close.
	ErrClosed = errors.New("the backend is closed")

	// ErrFull means that there are as many grants as there may be, and none that
	// could make room: see Rules.
	ErrFull = errors.New("as many addresses are open as may be (max_grants), or more are asked for at once than one may have")

	// ErrScope means that the rules know no such holder of grants, or that one
	// cannot have a grant for an address of that IP version.
	ErrScope = errors.New("nobody like the asker can have such a grant")

	// ErrNoAudit means that there is nothing to try out.
	ErrNoAudit = errors.New("nothing is in audit: all is enforced already")

	// ErrYoung means that what would be cut is taken for a connection older than the guard.
	ErrYoung = errors.New("until 30 s after the guard has made its table, TCP connections that it has not seen begin go on, and so would those that are cut: try again then")

	// ErrLate means that Grant has waited as long as it may.
	ErrLate = errors.New("the firewall has not confirmed the address in time")

	// ErrBusy means that more answers wait for the kernel than is sane.
	ErrBusy = errors.New("too many answers wait for the kernel")
)

// PermissionError means that the process lacks a right.
type PermissionError struct {
	Need string // for example CAP_NET_ADMIN
	Err  error
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("%v: the process needs %s", e.Err, e.Need)
}

func (e *PermissionError) Unwrap() error { return e.Err }
