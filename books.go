package ipdestinationguard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
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
	if errors.Is(err, syscall.EISDIR) {
		err = fmt.Errorf("%w: name a file, as in: state %s", err, filepath.Join(r.state, "mappings.db"))
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

// origins are those of the routes' addresses, and of what was before for all others: which
// book knows the most of an address is the one that had it last, however long ago. All that is
// not among what is routed has gone.
func origins(routes []*namedRoute, before []backend.Origin, routed *netipx.IPSet) (all []backend.Origin) {
	sets := make(map[string]*netipx.IPSetBuilder)
	of := func(book string) *netipx.IPSetBuilder {
		if sets[book] == nil {
			sets[book] = new(netipx.IPSetBuilder)
		}
		return sets[book]
	}
	for _, o := range before {
		of(o.Book).AddPrefix(o.Pool)
	}
	for _, r := range routes {
		for _, pool := range r.pools {
			for _, set := range sets {
				set.RemovePrefix(pool)
			}
		}
	}
	for _, r := range routes {
		for _, pool := range r.pools {
			of(r.book.ID()).AddPrefix(pool)
		}
	}
	for _, book := range slices.Sorted(maps.Keys(sets)) {
		set := ipSet(sets[book])
		gone := minus(set, routed)
		for _, pool := range minus(set, gone).Prefixes() {
			all = append(all, backend.Origin{Book: book, Pool: pool})
		}
		for _, pool := range gone.Prefixes() {
			all = append(all, backend.Origin{Book: book, Pool: pool, Gone: true})
		}
	}
	return all
}

// findStrangers finds out which addresses of new routes another book has given out last, be
// it in an earlier process, and puts that down: once the new rules are in force, nothing else
// tells.
func (g *guard) findStrangers(s *settings) (err error) {
	if !g.armed() && g.router != nil {
		if g.rules.Origins, err = g.router.Origins(s.table); err != nil {
			return err
		}
	}
	for _, r := range s.found.routes {
		for _, o := range g.rules.Origins {
			if o.Book == r.book.ID() || !slices.ContainsFunc(r.pools, o.Pool.Overlaps) {
				continue
			}
			if err := r.book.Estranged(o.Pool); err != nil {
				return fmt.Errorf("%s: %w", r.state, err)
			}
		}
	}
	return nil
}

// strangers are the addresses of a route that its book does not know whose they were.
type strangers struct {
	*namedRoute
	networks []netip.Prefix // among others
}

func (s *strangers) has(mapped netip.Addr) bool {
	return contains(s.pools, mapped) && contains(s.networks, mapped)
}

// strangersOf are those of routes whose book is new, or another one has been in its place.
func strangersOf(routes []*namedRoute) (all []strangers) {
	for _, r := range routes {
		if networks := r.book.Strange(); networks != nil {
			all = append(all, strangers{r, networks})
		}
	}
	return all
}

// endStrangers ends the connections to addresses that books know nothing of. Nobody may give
// out any meanwhile.
func (g *guard) endStrangers(all []strangers) error {
	ended := 0
	err := g.router.Connections(context.Background(), func(mapped, _ netip.Addr) bool {
		strange := slices.ContainsFunc(all, func(s strangers) bool { return s.has(mapped) })
		if strange {
			ended++
		}
		return strange
	})
	if err != nil {
		return fmt.Errorf("connections to mapped addresses that %s does not know of cannot be ended: %w", all[0].state, err)
	}
	if ended > 0 {
		log.Warningf("Ended %s to mapped addresses: it is not known any more whose addresses they were", why.Number(ended, "connection"))
	}
	if err := g.shun(all); err != nil {
		return err
	}
	for _, s := range all {
		if err := s.book.Settled(); err != nil {
			return fmt.Errorf("%s: %w", s.state, err)
		}
	}
	return nil
}

// shun keeps books from giving out strange addresses to which somebody may connect: he would
// get to another name's server.
func (g *guard) shun(all []strangers) error {
	open := make(map[*book][]netip.Addr)
	err := g.router.Granted(context.Background(), func(mapped netip.Addr) {
		if i := slices.IndexFunc(all, func(s strangers) bool { return s.has(mapped) }); i >= 0 {
			open[all[i].book] = append(open[all[i].book], mapped)
		}
	})
	for b, addrs := range open {
		err = errors.Join(err, b.Shun(context.Background(), addrs))
		log.Warningf("Not given out before what opens them to somebody has run out, as it is not known any more whose they were: %s", why.Number(len(addrs), "mapped address"))
	}
	if err != nil {
		return fmt.Errorf("mapped addresses that are open to somebody, and that %s does not know of, cannot be told: %w", all[0].state, err)
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
	tick := time.NewTicker(g.interval)
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
