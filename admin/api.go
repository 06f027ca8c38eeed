// Package admin is the guard's admin socket: what can be asked and changed there, by
// whom, and how programs do so. docs/admin-api.md describes it for people.
package admin

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Version is the first part of every path. It changes when what is there changes its
// meaning; fields and paths may be added to it.
const Version = "/v1"

// DefaultPath is where the socket is unless the Corefile says otherwise.
const DefaultPath = "/run/ipdestinationguard/admin.sock"

// Group is the group of those who may use it, beside root and CoreDNS's own user.
const Group = "ipdestinationguard"

// MaxList is how many entries a list has at most.
const MaxList = 10_000

// A Guard is what stands behind the socket.
type Guard interface {
	Status(context.Context) (Status, error)
	Grants(context.Context, GrantsQuery) (Grants, error)
	Explain(context.Context, ExplainQuery) (Explanation, error)
	Answers(context.Context, AnswersQuery) (Answers, error)
	Denied(context.Context, DeniedQuery) (DeniedList, error)
	Directives(context.Context) (Directives, error)

	// Blocks asks upstream of each server block, which may take some seconds.
	Blocks(context.Context) (Blocks, error)

	// Follow hands over each flow that is denied, when it begins and then at most once a
	// minute, until ctx ends or each fails.
	Follow(ctx context.Context, each func(Denied) error) error

	Revoke(context.Context, RevokeRequest) (Revoked, error)
	SetAudit(context.Context, AuditRequest) (Status, error)
	Trial(context.Context, TrialRequest) (Status, error)
	Confirm(context.Context) (Status, error)
	Disarm(context.Context) (Status, error)
}

// Errors that calls are answered with: by their status.
var (
	ErrInvalid     = errors.New("invalid")                           // 400: of the request
	ErrConflict    = errors.New("conflict")                          // 409: the guard is in no state for that
	ErrUnsupported = errors.New("not supported")                     // 501: by what enforces
	ErrDenied      = errors.New("not allowed to use this socket")    // 403
	ErrUnavailable = errors.New("the guard has not started or ends") // 503
)

// Status is how the guard is.
type Status struct {
	Version   string    `json:"version"` // of the program
	Started   time.Time `json:"started"`
	Now       time.Time `json:"now"`
	Mode      string    `json:"mode"`
	Table     string    `json:"table"`
	Scope     string    `json:"scope"`
	Enforcing bool      `json:"in_force"` // the rules stand in the kernel, and all grants
	Disarmed  bool      `json:"disarmed"` // nothing is guarded until CoreDNS is restarted
	Hooks     []Hook    `json:"hooks"`    // that are guarded
	Grants    Changes   `json:"grants"`
	Results   Results   `json:"answers"`
	Hold      Hold      `json:"hold"`

	Remembered int `json:"remembered"` // answers
}

// Hook is where packets are refused, or only counted.
type Hook struct {
	Name  string     `json:"name"`            // output or forward
	State State      `json:"state"`           // what is done with what no grant covers
	By    string     `json:"by"`              // who says so: corefile, or guardctl if the Corefile says otherwise
	Until *time.Time `json:"until,omitempty"` // the end of a trial

	Refused  Count `json:"refused"`
	Audited  Count `json:"audited"`
	Unlisted Count `json:"unlisted"` // in no flow: there were too many at once
}

// State is what is done with what no grant covers.
type State string

// The states of a hook.
const (
	Enforced State = "enforced" // it is refused
	Audited  State = "audit"    // it passes, and is counted
	Tried    State = "trial"    // it is refused until the trial ends, and passes then
)

// Count is of packets.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Changes of grants since CoreDNS started, and how many there are.
type Changes struct {
	IPv4    int    `json:"ipv4"`
	IPv6    int    `json:"ipv6"`
	Made    uint64 `json:"made"`
	Renewed uint64 `json:"renewed"`
	Expired uint64 `json:"expired"`
	Evicted uint64 `json:"evicted"`
	Revoked uint64 `json:"revoked"`
}

// Results of answers since CoreDNS started.
type Results struct {
	Passed  uint64 `json:"passed"`
	Held    uint64 `json:"held"`
	Failed  uint64 `json:"failed"`
	Refused uint64 `json:"refused"`
}

// Hold is how long answers were held: how many no longer than each bound.
type Hold struct {
	Count   uint64   `json:"count"`
	Seconds float64  `json:"seconds"` // all together
	Buckets []Bucket `json:"buckets"`
}

// Bucket is one of a histogram, with all below it.
type Bucket struct {
	Below float64 `json:"below"` // seconds
	Count uint64  `json:"count"`
}

// Directives are those of the Corefile that is in force: one for each server block that has any.
type Directives struct {
	Directives []Directive `json:"directives"`
}

// Directive is one, as CoreDNS has read it: without comments, and with what is imported.
type Directive struct {
	Place string   `json:"place"` // file:line
	Lines []string `json:"lines"` // from its name to its last bracket, indented
}

// Blocks are the server blocks that have the directive, in the Corefile that is in force.
type Blocks struct {
	Blocks []Block `json:"blocks"`
}

// Block is one.
type Block struct {
	Place    string    `json:"place"`   // of its directive, file:line
	Listens  []string  `json:"listens"` // dns://192.0.2.1:53, or dns://:53 for every address
	Forwards []Forward `json:"forwards"`
}

// Forward is by whom a server block has questions answered, and what became of one just now, past
// all caches: for a name that nobody has.
type Forward struct {
	Place   string  `json:"place"`            // file:line
	Line    string  `json:"line"`             // forward . 192.0.2.53
	Answer  string  `json:"answer,omitempty"` // NXDOMAIN, ...; none if there was no answer
	Text    string  `json:"text,omitempty"`   // what the answer says for people, or why there was none
	Seconds float64 `json:"seconds"`
}

// GrantsQuery says which grants are wanted: those that match all that is given.
type GrantsQuery struct {
	Name    string       `json:"name,omitempty"`
	Address netip.Prefix `json:"address,omitzero"`
	Client  string       `json:"client,omitempty"` // as [Grant].For has it, or an address
}

// Grants are some.
type Grants struct {
	Grants []Grant `json:"grants"`
	More   bool    `json:"more"` // there are more than a list has
}

// Grant is one.
type Grant struct {
	Address netip.Addr `json:"address"`
	For     string     `json:"for"`            // who may use it
	Only    string     `json:"only,omitempty"` // for what: ports, users, units
	Until   time.Time  `json:"until"`
	Names   []string   `json:"names"` // whose answers have opened it, as far as they are remembered
}

// ExplainQuery asks about packets to an address, or to those of a name.
type ExplainQuery struct {
	Name     string     `json:"name,omitempty"`
	Address  netip.Addr `json:"address,omitzero"`
	Protocol string     `json:"protocol,omitempty"` // tcp unless it is said
	Port     uint16     `json:"port,omitempty"`     // 443 unless it is said, with protocols that have any

	// Who sends: a client behind this machine, or a user or unit of this machine. Without
	// any, it is all that this machine sends, and every client.
	Client    netip.Addr `json:"client,omitzero"`
	Interface string     `json:"interface,omitempty"` // that the client's packets come in by
	User      string     `json:"user,omitempty"`
	Unit      string     `json:"unit,omitempty"`
}

// Explanation is of each address.
type Explanation struct {
	Addresses []Explained `json:"addresses"`
	Text      string      `json:"text,omitempty"` // if there are none, or more to say of the name
}

// Explained is what becomes of packets to one address, who has grants for it, and what is
// remembered of it.
type Explained struct {
	Address  netip.Addr `json:"address"`
	Mapped   *Mapped    `json:"mapped,omitempty"` // if it is of a route's pool
	Verdicts []Verdict  `json:"verdicts"`
	Grants   []Grant    `json:"grants"`
	Answers  []Answer   `json:"answers"`
}

// Mapped is where a mapped address leads, and how what is sent there leaves.
type Mapped struct {
	Name   string     `json:"name,omitempty"`   // that has it
	To     netip.Addr `json:"to,omitzero"`      // the real address; none is nowhere
	Egress netip.Addr `json:"egress,omitzero"`  // the source address, if the route says so
	Out    string     `json:"out,omitempty"`    // the interface, if the route says so
	Mark   uint32     `json:"fwmark,omitempty"` // of the packets, if the route says so
	Route  string     `json:"route,omitempty"`  // file:line
	Text   string     `json:"text"`             // all of it
}

// Verdict is what becomes of packets.
type Verdict struct {
	Hook    string     `json:"hook"`
	For     string     `json:"for"`             // who sends
	To      string     `json:"to"`              // where to: tcp/443
	Passes  bool       `json:"passes"`          // also in audit
	Refused bool       `json:"refused"`         // by the rules: in audit it passes all the same
	Reason  string     `json:"reason"`          // a word, see docs/admin-api.md
	Text    string     `json:"text"`            // a sentence
	Name    string     `json:"name,omitempty"`  // whose answer it is about
	Until   *time.Time `json:"until,omitempty"` // when the grant ends, or has ended
}

// AnswersQuery says which remembered answers are wanted: those that match all that is
// given.
type AnswersQuery struct {
	Name    string     `json:"name,omitempty"`
	Address netip.Addr `json:"address,omitzero"`
	Since   time.Time  `json:"since,omitzero"`
}

// Answers are some, the latest first.
type Answers struct {
	Answers []Answer `json:"answers"`
	More    bool     `json:"more"`
}

// Answer is what the answer for a name has done with an address, the last time.
type Answer struct {
	Name     string     `json:"name"`
	Address  netip.Addr `json:"address"`
	For      string     `json:"for"`
	At       time.Time  `json:"at"`
	Until    *time.Time `json:"until,omitempty"`    // when the grant ends, or has ended
	Stripped string     `json:"stripped,omitempty"` // why the address was taken out
	Line     string     `json:"line,omitempty"`     // what the directive needs so that the name may have it
}

// DeniedQuery says which denied flows are wanted.
type DeniedQuery struct {
	Since time.Time `json:"since,omitzero"` // with a packet since then
}

// DeniedList are flows, those with the latest packet first.
type DeniedList struct {
	Flows []Denied `json:"flows"`
	More  bool     `json:"more"`
}

// Denied is a flow that was refused, or that passed in audit only.
type Denied struct {
	First     time.Time  `json:"first"`
	Last      time.Time  `json:"last"`
	Hook      string     `json:"hook"`
	Audit     bool       `json:"audit"` // it has passed
	Interface string     `json:"interface,omitempty"`
	Client    netip.Addr `json:"client,omitzero"`   // of what is forwarded
	User      string     `json:"user,omitempty"`    // of what this machine sends: name, or number
	Unit      string     `json:"unit,omitempty"`    // if it is known
	Program   string     `json:"program,omitempty"` // if it is known: what it calls itself
	Protocol  string     `json:"protocol"`          // tcp, udp, ...
	Address   netip.Addr `json:"address"`           // where to
	Port      uint16     `json:"port,omitempty"`    // of protocols that have any
	Packets   uint64     `json:"packets"`           // so far
	Bytes     uint64     `json:"bytes"`             // so far
	Reason    string     `json:"reason"`            // a word
	Text      string     `json:"text"`              // a sentence
	Name      string     `json:"name,omitempty"`    // whose answer it is about
}

// RevokeRequest says whose grants are to end: those that match all that is given, and
// with All everything. Cut ends live connections to these addresses as well, of these
// clients.
type RevokeRequest struct {
	GrantsQuery
	All bool `json:"all,omitempty"`
	Cut bool `json:"cut,omitempty"`
}

// Revoked is how many grants have ended, and connections.
type Revoked struct {
	Grants      int `json:"grants"`
	Connections int `json:"connections"`
}

// AuditRequest puts a hook, or with the empty name each that is guarded, in audit or has
// it enforced.
type AuditRequest struct {
	Hook  string `json:"hook,omitempty"` // output or forward
	Audit bool   `json:"audit"`
}

// TrialRequest enforces for so long what is in audit, unless it is confirmed by then.
type TrialRequest struct {
	Seconds float64 `json:"seconds"`
}
