// Package validate finds out whether answers are signed as they have to be (DNSSEC, RFC
// 4035), with libunbound, in builds with the tag unbound.
package validate

import (
	"errors"
	"time"

	"github.com/miekg/dns"
)

// Config is what a validator starts from.
type Config struct {
	// Upstream answers what the validator has to look up: what it is asked about, and the
	// keys above that. It is asked over a socket of this machine, and must answer always.
	Upstream dns.Handler

	// Anchors are files with DS or DNSKEY records that are trusted. None is the root's
	// keys, as they are built in.
	Anchors []string

	// Negative are zones that count as unsigned.
	Negative []string

	// State is the folder where trusted keys are kept current (RFC 5011).
	State string

	// HoldDown is how long a new key has to be there before it is trusted; 0 is 30 days.
	HoldDown time.Duration
}

// A Verdict is what is known of an answer.
type Verdict int

// Verdicts.
const (
	Unknown  Verdict = iota // nobody could tell: the signatures, or keys, could not be had
	Bogus                   // it should be signed, and is not or wrongly
	Insecure                // it is proven that nobody has signed it
	Secure
)

func (v Verdict) String() string {
	return [...]string{"unknown", "bogus", "insecure", "secure"}[v]
}

// An Answer is one that has been validated.
type Answer struct {
	Verdict Verdict
	Msg     *dns.Msg // unless it is bogus or unknown
	Why     string   // it is bogus, in libunbound's words, or unknown
	Code    uint16   // the same as an Extended DNS Error (RFC 8914)
}

var (
	// ErrNotBuilt says that this program cannot validate.
	ErrNotBuilt = errors.New("this CoreDNS is built without libunbound: make build-unbound makes one that validates (it needs a C compiler and Debian's libunbound-dev)")

	// ErrClosed says that the validator is no more.
	ErrClosed = errors.New("the validator is closed")

	// ErrBusy says that more answers wait to be validated than may: all together, or for one asker.
	ErrBusy = errors.New("too many answers wait to be validated")
)
