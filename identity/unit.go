package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"
)

// Unit returns the systemd unit or the container that a cgroup (version 2) belongs
// to: the deepest of its ancestors, itself included, that is called .service or
// .scope, or else the deepest called .slice, or else itself. The path begins with a
// slash and is below the mount of cgroup2, id is the unit's own cgroup, as nft's
// `socket cgroupv2` and [UnitID] have it, and level counts the path's parts: /a/b
// is at level 2, and the root, /, at level 0.
//
// A name proves nothing: whom a part of the tree was delegated to (a user's session,
// a container) may call cgroups below as they like, and make as many. The path above
// the delegated part is beyond them.
//
// With CAP_DAC_READ_SEARCH it takes some 10 us (open_by_handle_at); without, the first
// time and for each cgroup that is new, all are walked, some 20 us for each there is,
// in a fifth of a core at most. What was found is kept, and looked after once a
// second. The error is [ErrGone] if the cgroup was removed or is not to be seen from
// here (from another cgroup namespace), and [ErrUnsupported] where cgroup2 is not
// mounted.
func (a *Askers) Unit(cgroup uint64) (path string, id uint64, level int, err error) {
	u, err := a.unit(cgroup)
	if err != nil {
		return "", 0, 0, fmt.Errorf("unit of cgroup %d: %w", cgroup, err)
	}
	return u.path, u.id, levelOf(u.path), nil
}

// UnitID returns the id and the level of the cgroup at a path below the mount of
// cgroup2, with or without a slash at the beginning. On a machine whose mount is
// /sys/fs/cgroup/unified the path may begin with unified/, as it has to for nft.
//
// The id is good for as long as the cgroup lives: systemd makes a new one, with
// another id, whenever a unit starts. The error of a path without a cgroup is
// [fs.ErrNotExist], and [ErrUnsupported] where cgroup2 is not mounted.
func UnitID(path string) (id uint64, level int, err error) {
	m, err := findMount()
	if err == nil {
		path = m.relative(path)
		id, err = m.id(path)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return id, levelOf(path), nil
}

func levelOf(path string) int {
	if path == "/" {
		return 0
	}
	return strings.Count(path, "/")
}

// relative turns what people write into a path below the mount.
func (m *mount) relative(p string) string {
	p = path.Clean("/" + p)
	if path.Base(m.point) == "unified" {
		if p == "/unified" {
			return "/"
		}
		if below, ok := strings.CutPrefix(p, "/unified/"); ok {
			return "/" + below
		}
	}
	return p
}

// unitPath returns the part of a cgroup's path that is the unit.
func unitPath(cgroup string) string {
	slice := cgroup
	found := false
	for p := cgroup; p != "/"; p = path.Dir(p) {
		if strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope") {
			return p
		}
		if !found && strings.HasSuffix(p, ".slice") {
			slice, found = p, true
		}
	}
	return slice
}

type unit struct {
	path    string // empty: the cgroup is gone
	id      uint64
	checked time.Time // that the unit is still there
}

// units remembers the units of cgroups. An id is never used again while the kernel
// runs: kernfs counts on, 64 bits wide (kernfs_new_node, idr_alloc_cyclic).
type units struct {
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

func (u *units) init(now func() time.Time) {
	u.now, u.finder.now = now, now
	u.known = make(map[uint64]unit)
	u.finder.byHandle = mayOpenByHandle()
}

func (u *units) get(cgroup uint64) (unit, bool) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	found, ok := u.known[cgroup]
	return found, ok
}

func (u *units) set(cgroup uint64, found unit) {
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
func (u *units) check(m *mount, cgroup uint64, found unit) (unit, error) {
	if found.path == "" {
		return unit{}, ErrGone
	}
	now := u.now()
	if now.Sub(found.checked) < checkEvery {
		return found, nil
	}
	id, err := m.id(found.path)
	switch {
	case err == nil && id == found.id:
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
func (u *units) find(m *mount, cgroup uint64, arrived time.Time) (unit, error) {
	p, err := u.finder.path(m, cgroup, arrived)
	if err != nil {
		return unit{}, err
	}
	found := unit{path: unitPath(p), checked: u.now()}
	if found.id, err = m.id(found.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unit{}, err
	}
	// Only now: if the cgroup is there, then its ancestors have been all the while.
	if id, err := m.id(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unit{}, err
	} else if id != cgroup || found.id == 0 {
		return unit{}, ErrGone
	}
	return found, nil
}
