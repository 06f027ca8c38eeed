package ipdestinationguard

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// A withholding is an answer that somebody has not got, and why.
type withholding struct {
	name string // in lower case
	at   time.Time
	why  string
}

// withholdings are those of late: one of each name, and of names that hash alike the last.
type withholdings struct {
	mu sync.Mutex // guards what follows
	at [1 << 10]withholding
}

func (w *withholdings) place(seed maphash.Seed, name string) *withholding {
	return &w.at[maphash.String(seed, name)%uint64(len(w.at))]
}

// withhold remembers for people why there was no answer for a name.
func (g *guard) withhold(name string, reason error) {
	name = strings.ToLower(name)
	w := withholding{name, g.now(), reason.Error()}
	g.withholdings.mu.Lock()
	defer g.withholdings.mu.Unlock()
	*g.withholdings.place(g.seed, name) = w
}

// withheld says when the last answer for a name was withheld, and why; nothing if none was
// lately, or one has come since that had these addresses.
func (a *administration) withheld(name string, addrs []netip.Addr) string {
	g := a.guard
	g.withholdings.mu.Lock()
	w := *g.withholdings.place(g.seed, name)
	g.withholdings.mu.Unlock()
	since := func(addr netip.Addr) bool {
		return slices.ContainsFunc(g.history.Of(addr), func(x why.Answer) bool { return x.Name == name && x.At.After(w.at) })
	}
	if w.name != name || slices.ContainsFunc(addrs, since) {
		return ""
	}
	return fmt.Sprintf("%s was asked for %v ago: withheld, %s", why.Plain(name), why.Round(g.now().Sub(w.at)), w.why)
}
