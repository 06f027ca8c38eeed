//go:build !unbound

package validate

import (
	"context"

	"github.com/miekg/dns"
)

// Built says whether this program can validate.
const Built = false

// Validator validates nothing here.
type Validator struct{}

// New returns ErrNotBuilt.
func New(Config) (*Validator, error) { return nil, ErrNotBuilt }

// Validate returns ErrNotBuilt.
func (*Validator) Validate(context.Context, dns.Question, uint64) (*Answer, error) {
	return nil, ErrNotBuilt
}

// Close does nothing.
func (*Validator) Close() {}
