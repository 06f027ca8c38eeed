package nft

import (
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m.Run) }

type quiet struct{}

func (quiet) Committed(made, renewed, removed int, took time.Duration) {}
func (quiet) Failed(op string, err error)                              {}
func (quiet) Expired(n int)                                            {}
func (quiet) Live(ipv4, ipv6 int)                                      {}
func (quiet) Repaired(what string)                                     {}
func (quiet) Enforcing(bool)                                           {}

func newBackend(t testing.TB) *Backend {
	b := New(expiry.NewTable[backend.Key](time.Now()), quiet{})
	t.Cleanup(func() {
		if err := b.Close(backend.Remove); err != nil {
			t.Error(err)
		}
	})
	return b
}
