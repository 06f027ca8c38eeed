// Package route keeps the book of mapped addresses: which name has which, on disk before
// anybody is told, and never one that another name has.
package route

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Errors that callers may ask for with errors.Is. What a [backend.Router] says is passed
// on.
var (
	// ErrClosed is returned after Close by what needs the file.
	ErrClosed = errors.New("the book of mapped addresses is closed")

	// ErrPoolFull means that the pools have no address left for a new name, or that as
	// many are mapped as may be.
	ErrPoolFull = errors.New("all addresses of the pool are in use, or as many as may be (max_mappings)")

	// ErrShare means that the asker has made up as many names as there are addresses left
	// for all others.
	ErrShare = errors.New("names that the asker was the first to ask for have half of the free addresses already")

	// ErrLate means that the disk, or others who wait for the same name, took too long.
	ErrLate = errors.New("the book of mapped addresses has not confirmed the address in time")

	// ErrBusy means that more new names wait for the disk than is sane.
	ErrBusy = errors.New("too many new names wait for the disk")

	// ErrName means that there cannot be such a name or route.
	ErrName = errors.New("not a name that can have mapped addresses")

	// ErrInUse means that another process has opened the book.
	ErrInUse = errors.New("in use")

	// ErrCorrupt means that the file is no book, or a damaged one.
	ErrCorrupt = errors.New("not a book of mapped addresses, or a damaged one")
)

// Route is what the book has to know of a [backend.Route]. It must not be changed once it
// has been used.
type Route struct {
	Name  string         // of the backend.Route
	Pools []netip.Prefix // two routes have the same ones, or none of the same addresses
	Slots int            // how many addresses a name may have of each IP version: 1 to MaxSlots
}

// MaxSlots is the most that Route.Slots may be.
const MaxSlots = 64

// Answer is what stands for the real addresses of a name.
type Answer struct {
	// Mapped are the addresses to answer with: each leads to one of the real ones, in
	// their order. They are as many as the real ones, up to Route.Slots, or fewer if the
	// pool has no more for the name.
	Mapped []netip.Addr

	// Stale are the addresses of the name, if live connections through them may go to where
	// the name does not lead any more: to another one than the real addresses given.
	Stale []netip.Addr
}

// A Book knows which name has which mapped addresses. All methods may be called at the
// same time.
type Book struct {
	router backend.Router
	now    func() time.Time
	start  time.Time // from now
	seed   maphash.Seed
	id     string

	shards [shards]shard
	pages  [2]pages // who has an address, by IP version
	store  *store

	tidying sync.Mutex // held by Tidy and Rehome: one at a time

	mu      sync.Mutex
	strange []netip.Prefix // see Strange
	spaces  []*space
	loose   [2][]rest // free addresses of no space
	resting []rest    // given back, and not free yet; the oldest first
	leaving []held    // of names that have others by now; still mapped
	count   [2]int    // addresses that names have or are leaving, by IP version

	max atomic.Int64 // of each count; 0 is no limit
}

// Open opens the book at path, or makes a new one where there is no file. router puts its
// mappings in force; now tells the time.
func Open(path string, router backend.Router, now func() time.Time) (*Book, error) {
	b := &Book{router: router, now: now, start: now(), seed: maphash.MakeSeed()}
	for i := range b.shards {
		b.shards[i].entries = make(map[string]*entry)
	}
	for i := range b.pages {
		b.pages[i].at = make(map[[15]byte]*page)
	}
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	if err := b.load(db, path); err != nil {
		db.Close()
		return nil, err
	}
	b.store = newStore(db)
	return b, nil
}

// ID is the book's own name, made at random together with its file: for
// [backend.Rules].Book.
func (b *Book) ID() string { return b.id }

// Strange are networks of whose addresses it is not known what others have been told: all,
// for a new file, and those that are Estranged. Live connections to them have to be ended
// before the first one is given out. They stay so, be it after a crash, until Settled.
func (b *Book) Strange() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.strange
}

// Estranged says that another book has given out addresses of these networks since.
func (b *Book) Estranged(networks ...netip.Prefix) error {
	all := slices.Clone(b.Strange())
	for _, n := range networks {
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return b.setStrange(all)
}

// Settled says that what was connected to strange addresses has been ended.
func (b *Book) Settled() error { return b.setStrange(nil) }

func (b *Book) setStrange(all []netip.Prefix) error {
	if len(all) == len(b.Strange()) {
		return nil
	}
	err := b.store.do(context.Background(), func(tx *bolt.Tx) error { return putStrange(tx, all) })
	if err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.strange = all
	}
	return err
}

// SetMax limits how many addresses of each IP version may be mapped; 0 is no limit. Those
// that are too many already stay.
func (b *Book) SetMax(n int) { b.max.Store(int64(n)) }

// Close writes what has not been written yet, and closes the file. Closing twice is
// closing once.
func (b *Book) Close() error {
	b.tidying.Lock()
	defer b.tidying.Unlock()
	err := b.writeUse(context.Background())
	if errors.Is(err, ErrClosed) {
		err = nil
	}
	return errors.Join(err, b.store.close())
}

// NameOf returns the name that a mapped address belongs to, in lower case.
func (b *Book) NameOf(mapped netip.Addr) (name string, ok bool) {
	e := b.pages[version(mapped.Unmap())].get(mapped.As16())
	if !e.real() {
		return "", false
	}
	_, name = e.names()
	return name, true
}

// A Place is what the book has of a mapped address.
type Place struct {
	Route string
	By    string     // the name that has the route, by what was last answered: mostly that of NameOf
	Real  netip.Addr // that stands behind it; none where that is not known
}

// PlaceOf returns it, if the address belongs to a name.
func (b *Book) PlaceOf(mapped netip.Addr) (p Place, ok bool) {
	at := ip(mapped.As16())
	e := b.pages[version(mapped.Unmap())].get(at)
	if !e.real() {
		return p, false
	}
	route, name := e.names()
	p.Route, p.By = route, e.ledBy(name)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.slots {
		if s.mapped == at && s.real != (ip{}) {
			p.Real = netip.AddrFrom16(s.real).Unmap()
		}
	}
	return p, true
}

// Use tells the book which routes there are now, for Len to count their free addresses and
// no others.
func (b *Book) Use(routes []*Route) {
	b.mu.Lock()
	defer b.mu.Unlock()
	used := make(map[*space]bool)
	for _, r := range routes {
		for v := range b.pages {
			used[b.spaceLocked(v, r.Pools)] = true
		}
	}
	b.dropSpacesLocked(func(s *space) bool { return !used[s] })
}

// Count is how many addresses there are of one IP version.
type Count struct {
	Mapped int // that names have
	Free   int // that new names may have: see Use
}

// Len counts the mapped addresses.
func (b *Book) Len() (ipv4, ipv6 Count) {
	b.mu.Lock()
	defer b.mu.Unlock()
	counts := [2]Count{}
	for v := range counts {
		counts[v].Mapped = b.count[v]
		var free uint64
		for _, s := range b.spaces {
			if s.version == v {
				free = add(free, s.free)
			}
		}
		counts[v].Free = int(min(free, b.roomLocked(v)))
	}
	return counts[0], counts[1]
}

// since is the time as entries have it: seconds since the book was opened, by a clock that
// nobody sets.
func (b *Book) since() int32 { return int32(b.now().Sub(b.start) / time.Second) }

// version is the index of an address's IP version.
func version(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
