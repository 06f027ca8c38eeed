package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Everybody may own a part of the tree, and make as many cgroups there as they like.
// So the trunk, where root alone makes them, is walked by itself, and what is further
// down apart from that: nobody waits for it whose unit is in the trunk. The parts have
// the same allowance each, and more only when all others are done with theirs.
//
// A part begins with the first unit on the way down, or cgroup that others than root
// may write to, which itself is in the trunk. What it is called, root has said.
//
// Who makes too many in a part keeps what is in that part from being found, and no more.
var mostWalked = bounds{trunk: 1 << 16, part: 1 << 12, parts: 1 << 15, share: 1 << 8}

// bounds are how many cgroups walks look at, at most. Each 256 bytes of a path count as
// one more.
type bounds struct {
	trunk int
	part  int // one of them
	parts int // all of them
	share int // what each has in any case
}

// maxDepth is how deep walks go: deep paths take the kernel long.
const maxDepth = 32

// maxRest is the most that is rested after a walk, four times as long as that took: who
// makes up cgroups takes a fifth of a core with walks of the trunk and a fifth with walks
// of the parts, unless they take longer than an eighth of a second.
const maxRest = 500 * time.Millisecond

// walked is what a walk has found.
type walked struct {
	paths map[uint64]string
	parts []string // of the trunk: those that have something in them
	cost  int
	err   error // why it may have passed over some

	began time.Time // it knows what was there then
	ended time.Time
	took  time.Duration
}

// settles reports whether there is nothing to be gained by another walk.
func (w *walked) settles(cgroup uint64, arrived time.Time) bool {
	return w.paths[cgroup] != "" || w.began.After(arrived)
}

// walks are made by one goroutine at a time, for all that wait.
type walks struct {
	turn chan struct{} // has room for one
	last atomic.Pointer[walked]
}

func (w *walks) init() {
	w.turn = make(chan struct{}, 1)
	w.last.Store(&walked{})
}

// settle returns a walk that settles where a cgroup is. It waits for that no longer than
// ctx; a walk of its own it ends, since others wait for it.
func (w *walks) settle(ctx context.Context, now func() time.Time, cgroup uint64, arrived time.Time, walk func() *walked) (*walked, error) {
	if last := w.last.Load(); last.settles(cgroup, arrived) {
		return last, nil
	}
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	last := w.last.Load()
	if last.settles(cgroup, arrived) {
		return last, nil
	}
	rest := time.NewTimer(min(4*last.took, maxRest) - now().Sub(last.ended))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	began := now()
	last = walk()
	last.ended = now()
	last.took = last.ended.Sub(began)
	w.last.Store(last)
	return last, nil
}

// walkTrunk notes what root has made, and where the parts begin.
func walkTrunk(m *mount, began time.Time, most bounds) *walked {
	w := &walked{began: began, paths: make(map[uint64]string)}
	top, err := m.stat("/")
	if err != nil {
		w.err = err
		return w
	}
	w.paths[top.Ino] = "/"
	if !w.below(m, "/", most.trunk, func(child string, st *unix.Stat_t) bool {
		if !isUnit(child) && st.Uid == top.Uid && st.Mode&0o022 == 0 {
			return true
		}
		if hasChildren(st) {
			w.parts = append(w.parts, child)
		}
		return false
	}) {
		w.err = fmt.Errorf("there are more than %d cgroups", most.trunk)
	}
	return w
}

// walkParts notes what is in the parts of a trunk: in rounds, so that none has more at
// the cost of another that has little.
func walkParts(m *mount, trunk *walked, most bounds) *walked {
	w := &walked{began: trunk.began, paths: make(map[uint64]string)}
	all := func(string, *unix.Stat_t) bool { return true }
	parts := trunk.parts
	for allowance := most.share; len(parts) > 0; allowance *= 4 {
		var larger []string
		for _, part := range parts {
			if allowance > most.share && (allowance > most.part || w.cost+allowance > most.parts) {
				w.err = fmt.Errorf("there are too many cgroups in %s", part)
				return w
			}
			if !w.below(m, part, allowance, all) {
				larger = append(larger, part)
			}
		}
		parts = larger
	}
	return w
}

// below notes what is below a cgroup, next to it first, and reports whether that was
// all that it may cost.
func (w *walked) below(m *mount, top string, most int, descend func(child string, st *unix.Stat_t) bool) bool {
	for next := []string{top}; len(next) > 0; next = next[1:] {
		for child, err := range m.children(next[0]) {
			// What is removed meanwhile counts as well: there may be no end to that.
			cost := 1 + len(child)/256
			if most -= cost; most < 0 {
				return false
			}
			w.cost += cost
			var st unix.Stat_t
			if err == nil {
				st, err = m.stat(child)
			}
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV): // was removed
			case err != nil:
				w.err = err
			default:
				w.paths[st.Ino] = child
				switch {
				case !descend(child, &st) || !hasChildren(&st):
				case levelOf(child) >= maxDepth:
					w.err = fmt.Errorf("there are cgroups deeper than %d levels", maxDepth)
				default:
					next = append(next, child)
				}
			}
		}
	}
	return true
}

// hasChildren reports whether a cgroup has others in it: reading it takes longer.
func hasChildren(st *unix.Stat_t) bool { return st.Nlink != 2 }

// children yields the cgroups in one, as the kernel has them, and no more than asked for.
func (m *mount) children(parent string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		folder, err := os.Open(m.point + parent)
		if err != nil {
			yield("", err)
			return
		}
		defer folder.Close()
		for {
			entries, err := folder.ReadDir(64)
			for _, e := range entries {
				if e.IsDir() && !yield(strings.TrimSuffix(parent, "/")+"/"+e.Name(), nil) {
					return
				}
			}
			if err != nil {
				if err != io.EOF {
					yield("", err)
				}
				return
			}
		}
	}
}
