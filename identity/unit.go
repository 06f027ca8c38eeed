package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Unit returns the systemd unit or the container that a cgroup (version 2) belongs
// to: the deepest of its ancestors, itself included, that is called .service or
// .scope, or else the deepest called .slice, or else itself. If that lies deeper than
// [backend.MaxLevel], it is the ancestor at that level. The ID is that of the unit's
// own cgroup.
//
// The root is no unit, and nothing can be granted to it as one, since every program is
// below it: for what is in the root itself, the result has the path / and the level 0.
// A container that has a cgroup namespace of its own sees its own cgroup so.
//
// A name proves nothing: whom a part of the tree was delegated to (a user's session,
// a container) may call cgroups below as they like, and make as many. The path above
// the delegated part is beyond them.
//
// With CAP_DAC_READ_SEARCH it takes some 10 us (open_by_handle_at). Without, the first
// time and for each cgroup that is new, the tree is walked: at first where root alone
// makes cgroups, down to the services and to what belongs to others; and what is in
// these only for whom is not found yet, within bounds for each, so that nobody can hide
// others by making many. What was found is kept (then it takes some 0.15 us), and looked
// after once a second. Why something is not found is kept for a second as well.
//
// The error is [ErrGone] if the cgroup was removed or is not to be seen from here (from
// another cgroup namespace), [ErrUnsupported] where cgroup2 is not mounted, [ErrLate] if
// the search took too long, and what ended ctx if that did.
func (a *Askers) Unit(ctx context.Context, cgroup uint64) (backend.Cgroup, error) {
	u, err := a.unit(ctx, cgroup)
	if err != nil {
		return backend.Cgroup{}, fmt.Errorf("unit of cgroup %d: %w", cgroup, err)
	}
	return u.Cgroup, nil
}

func levelOf(path string) int {
	if path == "/" {
		return 0
	}
	return strings.Count(path, "/")
}

// unitPath returns the part of a cgroup's path that is the unit.
func unitPath(cgroup string) string {
	unit, named := cgroup, false
	for p := cgroup; p != "/"; p = path.Dir(p) {
		if isUnit(p) {
			unit = p
			break
		}
		if !named && strings.HasSuffix(p, ".slice") {
			unit, named = p, true
		}
	}
	for levelOf(unit) > backend.MaxLevel {
		unit = path.Dir(unit)
	}
	return unit
}

func isUnit(path string) bool {
	return strings.HasSuffix(path, ".service") || strings.HasSuffix(path, ".scope")
}

type unit struct {
	backend.Cgroup
	err     error     // why it was not found
	checked time.Time // that this is still so
}

// knownUnits remembers the units of cgroups. An id is never used again while the kernel
// runs: kernfs counts on, 64 bits wide (kernfs_new_node, idr_alloc_cyclic).
type knownUnits struct {
	now    func() time.Time
	finder finder

	mu    sync.RWMutex // guards known
	known map[uint64]unit
}

const (
	maxUnits   = 1 << 14
	checkEvery = time.Second
	findWithin = 2 * time.Second // clients ask again after five
)

func (u *knownUnits) init(now func() time.Time) {
	u.now = now
	u.known = make(map[uint64]unit)
	u.finder.init(now)
}

func (u *knownUnits) get(cgroup uint64) (unit, bool) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	found, ok := u.known[cgroup]
	return found, ok
}

func (u *knownUnits) set(cgroup uint64, found unit) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.known[cgroup]; !known && len(u.known) >= maxUnits {
		for some := range u.known {
			delete(u.known, some)
			break
		}
	}
	u.known[cgroup] = found
}

func (a *Askers) unit(ctx context.Context, cgroup uint64) (unit, error) {
	m, err := a.mount()
	if err != nil {
		return unit{}, err
	}
	u := &a.units
	arrived := u.now()
	found, ok := u.get(cgroup)
	fresh := arrived.Sub(found.checked) < checkEvery
	switch {
	case ok && (fresh || errors.Is(found.err, ErrGone)):
		return found, found.err
	case ok && found.err == nil:
		return u.check(&m, cgroup, found)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, findWithin, ErrLate)
	defer cancel()
	found, err = u.find(ctx, &m, cgroup, arrived)
	if err == nil || ctx.Err() == nil {
		found.err, found.checked = err, u.now()
		u.set(cgroup, found)
	}
	return found, err
}

// check looks whether a unit is still there.
func (u *knownUnits) check(m *mount, cgroup uint64, found unit) (unit, error) {
	id, err := m.id(found.Path)
	switch {
	case err == nil && id == found.ID:
		found.checked = u.now()
	case err == nil || errors.Is(err, fs.ErrNotExist):
		found = unit{err: ErrGone} // and so is the cgroup, as only what is empty can be removed
	default:
		return unit{}, err
	}
	u.set(cgroup, found)
	return found, found.err
}

// find searches a cgroup's unit.
func (u *knownUnits) find(ctx context.Context, m *mount, cgroup uint64, arrived time.Time) (found unit, err error) {
	p, err := u.finder.path(ctx, m, cgroup, arrived)
	if err != nil {
		return unit{}, err
	}
	found.Path = unitPath(p)
	found.Level = levelOf(found.Path)
	if found.ID, err = m.id(found.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unit{}, err
	}
	// Only now: if the cgroup is there, then its ancestors have been all the while.
	if id, err := m.id(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unit{}, err
	} else if id != cgroup || found.ID == 0 {
		return unit{}, ErrGone
	}
	return found, nil
}
