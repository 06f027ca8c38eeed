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
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// book is a book of mapped addresses that is open. There is one for a path, whatever
// server blocks and reloads use it.
type book struct {
	*route.Book
	path string
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
		r.book = &book{opened, r.state}
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
// one that is new, or that another one has been in the place of.
func (g *guard) endStrangers(routes []*namedRoute) error {
	var pools []netip.Prefix
	for _, r := range routes {
		if g.strange(r) {
			pools = append(pools, r.pools...)
		}
	}
	if pools == nil {
		return nil
	}
	ended := 0
	err := g.router.Connections(context.Background(), func(mapped, _ netip.Addr) bool {
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
	if err := g.shunStrangers(routes); err != nil {
		return err
	}
	for _, r := range routes {
		if err := r.book.Settled(); err != nil {
			return fmt.Errorf("%s: %w", r.state, err)
		}
	}
	return nil
}

// strange reports whether the book of a route does not know what has been said of its
// addresses.
func (g *guard) strange(r *namedRoute) bool {
	return r.book.Fresh() || len(g.served) > 0 && !g.served[r.state]
}

// shunStrangers keeps such a book from giving out addresses to which somebody may connect
// because of what was said by another one: he would get to another name's server.
func (g *guard) shunStrangers(routes []*namedRoute) error {
	open := make(map[*book][]netip.Addr)
	err := g.router.Granted(context.Background(), func(mapped netip.Addr) {
		for _, r := range routes {
			if g.strange(r) && contains(r.pools, mapped) {
				open[r.book] = append(open[r.book], mapped)
				return
			}
		}
	})
	for b, addrs := range open {
		err = errors.Join(err, b.Shun(context.Background(), addrs))
		log.Warningf("%d mapped addresses are not given out before what opens them to somebody has run out: it is not known any more whose they were", len(addrs))
	}
	if err != nil {
		return fmt.Errorf("mapped addresses that are open to somebody, and that %s does not know of, cannot be told: %w", routes[0].state, err)
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
