package ipdestinationguard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// book is a book of mapped addresses that is open. There is one for a path, whatever
// server blocks and reloads use it.
type book struct {
	*route.Book
	path string

	// Until then nothing is given out of it: clients may have grants for addresses that it
	// knows nothing of. In nanoseconds of the guard's clock; 0 is now.
	from atomic.Int64
}

var errStrange = errors.New("mapped addresses that the file knows nothing of are open to clients still")

// ready reports errStrange while nothing may be given out.
func (b *book) ready(now func() time.Time) error {
	from := b.from.Load()
	if from == 0 {
		return nil
	}
	if left := time.Unix(0, from).Sub(now()); left > 0 {
		return fmt.Errorf("%w, for another %v", errStrange, left.Round(time.Second))
	}
	b.from.Store(0)
	return nil
}

// books are those of the process, by their paths.
type books struct {
	sync.Mutex
	open map[string]*book
}

// openBooks opens the books of routes that are not open yet. It makes those that there
// are not.
func (g *guard) openBooks(routes []*namedRoute) error {
	g.books.Lock()
	defer g.books.Unlock()
	for _, r := range routes {
		if b := g.books.open[r.state]; b != nil {
			r.book = b
			continue
		}
		// Of a directory that is not there, only its parents have to be.
		if err := os.MkdirAll(filepath.Dir(r.state), 0o700); err != nil {
			return r.unopened(err)
		}
		opened, err := route.Open(r.state, g.router, g.now)
		if err != nil {
			return r.unopened(err)
		}
		if g.books.open == nil {
			g.books.open = map[string]*book{}
		}
		r.book = &book{Book: opened, path: r.state}
		g.books.open[r.state] = r.book
	}
	return nil
}

// unopened says what to do.
func (r *namedRoute) unopened(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w. CoreDNS needs a place to write: StateDirectory= in its systemd unit, as deployment/ipdestinationguard-coredns.service has it, or the line: state PATH, in the route", err)
	}
	return fmt.Errorf("%s: mapped addresses cannot be kept: %w", r.place, err)
}

// closeBooks closes those that none of the routes has.
func (g *guard) closeBooks(routes []*namedRoute) {
	g.books.Lock()
	defer g.books.Unlock()
	for path, b := range g.books.open {
		if slices.ContainsFunc(routes, func(r *namedRoute) bool { return r.book == b }) {
			continue
		}
		if err := b.Close(); err != nil {
			log.Errorf("%s: %v", path, err)
		}
		delete(g.books.open, path)
	}
}

// list returns the books that are open, in the order of their paths.
func (b *books) list() (all []*book) {
	b.Lock()
	defer b.Unlock()
	for _, book := range b.open {
		all = append(all, book)
	}
	slices.SortFunc(all, func(a, b *book) int { return strings.Compare(a.path, b.path) })
	return all
}

// bookID names all books of routes together.
func bookID(routes []*namedRoute) string {
	var ids []string
	for _, r := range routes {
		ids = append(ids, r.book.ID())
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); len(ids) == 1 {
		return ids[0]
	}
	hash := sha256.Sum256([]byte(strings.Join(ids, " ")))
	return hex.EncodeToString(hash[:8])
}

// endStrangers ends the connections into the pools of a book that knows nothing of them: of
// one that is new, or that another one has been in the place of. Until their grants have
// run out as well, it gives nothing out: a client could get to the host of another name
// than it has asked for.
func (g *guard) endStrangers(routes []*namedRoute, linger time.Duration) error {
	var strange []*book
	var pools []netip.Prefix
	for _, r := range routes {
		if r.book.Fresh() || len(g.served) > 0 && !g.served[r.state] {
			strange, pools = append(strange, r.book), append(pools, r.pools...)
		}
	}
	if pools == nil {
		return nil
	}
	granted, err := g.backend.List()
	if err != nil {
		return fmt.Errorf("what is open to whom cannot be listed: %w", err)
	}
	for _, grant := range granted {
		if contains(pools, grant.Addr) {
			for _, b := range strange {
				b.from.Store(max(b.from.Load(), grant.Until.Add(linger).UnixNano()))
			}
		}
	}
	for _, b := range strange {
		if err := b.ready(g.now); err != nil {
			log.Warningf("%s: names with a route get SERVFAIL for now: %v", b.path, err)
			break
		}
	}
	ended := 0
	err = g.router.Connections(context.Background(), func(mapped, _ netip.Addr) bool {
		strange := contains(pools, mapped)
		if strange {
			ended++
		}
		return strange
	})
	if err != nil {
		return fmt.Errorf("connections to mapped addresses that %s does not know of cannot be ended: %w", routes[0].state, err)
	}
	if ended > 0 {
		log.Warningf("%d connections to mapped addresses have been ended: it is not known any more whose addresses they were", ended)
	}
	for _, r := range routes {
		if err := r.book.Settled(); err != nil {
			return fmt.Errorf("%s: %w", r.state, err)
		}
	}
	return nil
}

const (
	tidyInterval = time.Minute
	tidyUnused   = 48 * time.Hour
)

// unused is how long a name keeps addresses that nobody asks for: no less than what was
// granted with its last answer lasts, or another name's address would be open to those who
// have asked for this one.
func (s *settings) unused() time.Duration {
	return max(tidyUnused, s.lease.Ceiling+s.lease.Margin+s.linger+time.Hour)
}

// tidy takes addresses from names that nobody uses, until the guard is closed.
func (g *guard) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.tidyOnce(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (g *guard) tidyOnce(ctx context.Context) {
	for _, b := range g.books.list() {
		freed, err := b.Tidy(ctx, time.Duration(g.unused.Load()))
		mappingsFreed.Add(float64(freed))
		if err != nil && ctx.Err() == nil && !errors.Is(err, route.ErrClosed) {
			g.failures.Do(func() { log.Errorf("%s: addresses that no name uses any more cannot be freed: %v", b.path, err) })
		}
	}
}
