package identity

import (
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
// With CAP_DAC_READ_SEARCH it takes some 10 us (open_by_handle_at); without, the first
// time and for each cgroup that is new, all are walked, some 20 us for each there is,
// in a fifth of a core at most. What was found is kept (then it takes some 0.15 us),
// and looked after once a second. The error is [ErrGone] if the cgroup was removed or
// is not to be seen from here (from another cgroup namespace), and [ErrUnsupported]
// where cgroup2 is not mounted.
func (a *Askers) Unit(cgroup uint64) (backend.Cgroup, error) {
	u, err := a.unit(cgroup)
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
		if strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope") {
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

type unit struct {
	backend.Cgroup           // without a path: it is gone
	checked        time.Time // that the unit is still there
}

// knownUnits remembers the units of cgroups. An id is never used again while the kernel
// runs: kernfs counts on, 64 bits wide (kernfs_new_node, idr_alloc_cyclic).
type knownUnits struct {
	now     func() time.Time
	finding sync.Mutex // held while a unit is searched, so before mu
	finder  finder

	mu    sync.RWMutex // guards known
	known map[uint64]unit
}

const (
	maxUnits   = 1 << 14
	checkEvery = time.Second
)

func (u *knownUnits) init(now func() time.Time) {
	u.now, u.finder.now = now, now
	u.known = make(map[uint64]unit)
	u.finder.byHandle = mayOpenByHandle()
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

func (a *Askers) unit(cgroup uint64) (unit, error) {
	m, err := a.mount()
	if err != nil {
		return unit{}, err
	}
	u := &a.units
	arrived := u.now()
	if found, ok := u.get(cgroup); ok {
		return u.check(&m, cgroup, found)
	}
	u.finding.Lock()
	defer u.finding.Unlock()
	if found, ok := u.get(cgroup); ok {
		return u.check(&m, cgroup, found)
	}
	found, err := u.find(&m, cgroup, arrived)
	if err == nil || errors.Is(err, ErrGone) {
		u.set(cgroup, found)
	}
	return found, err
}

// check looks now and then whether a unit is still there.
func (u *knownUnits) check(m *mount, cgroup uint64, found unit) (unit, error) {
	if found.Path == "" {
		return unit{}, ErrGone
	}
	now := u.now()
	if now.Sub(found.checked) < checkEvery {
		return found, nil
	}
	id, err := m.id(found.Path)
	switch {
	case err == nil && id == found.ID:
		found.checked = now
	case err == nil || errors.Is(err, fs.ErrNotExist):
		found, err = unit{}, ErrGone // and so is the cgroup, as only what is empty can be removed
	default:
		return unit{}, err
	}
	u.set(cgroup, found)
	return found, err
}

// find searches a cgroup's unit.
func (u *knownUnits) find(m *mount, cgroup uint64, arrived time.Time) (unit, error) {
	p, err := u.finder.path(m, cgroup, arrived)
	if err != nil {
		return unit{}, err
	}
	found := unit{checked: u.now()}
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
