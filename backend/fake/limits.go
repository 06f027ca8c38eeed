package fake

import (
	"cmp"
	"maps"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// share is what grants count for together.
type share struct {
	backend.Scope
	ipv4 bool
	name uint64
}

// A limit is how many grants there may be in a share. To make room, one goes of
// those whose own share, in the sense of from, is the same as that of the new one.
type limit struct {
	of, from func(*backend.Rules, backend.Key, held) share
	most     func(*backend.Rules, backend.Key, held) int // 0 is no limit
	atOnce   int                                         // how many may go for a new one
}

func ofName(r *backend.Rules, k backend.Key, h held) share {
	return share{r.Account(k.Scope), k.Is4(), h.name}
}
func ofHolder(r *backend.Rules, k backend.Key, _ held) share {
	return share{r.Account(k.Scope), k.Is4(), 0}
}
func ofSet(_ *backend.Rules, k backend.Key, _ held) share {
	return share{backend.Scope{Holder: k.Holder, Class: k.Class}, k.Is4(), 0}
}

// limits are those of the rules, the narrowest first.
var limits = []limit{
	{ofName, ofName, func(r *backend.Rules, _ backend.Key, h held) int {
		if h.name == 0 {
			return 0
		}
		return r.MaxGrantsName
	}, 2},
	{ofHolder, ofHolder, func(r *backend.Rules, k backend.Key, _ held) int {
		if k.Holder.Many() {
			return 0
		}
		return r.MaxGrantsClient
	}, 2},
	{ofSet, ofHolder, func(r *backend.Rules, _ backend.Key, _ held) int { return r.MaxGrants }, 1},
}

// oldLocked returns what may go, the least recently renewed first.
func (b *Backend) oldLocked(wanted map[backend.Key]held) (old []backend.Key) {
	for k := range b.kernel {
		if _, again := wanted[k]; !again {
			old = append(old, k)
		}
	}
	slices.SortFunc(old, func(k, l backend.Key) int { return cmp.Compare(b.kernel[k].renewed, b.kernel[l].renewed) })
	return old
}

// surplusLocked returns what does not fit into the sets.
func (b *Backend) surplusLocked() (surplus []backend.Key) {
	count := make(map[share]int)
	for _, k := range slices.Backward(b.oldLocked(nil)) {
		set := ofSet(b.rules, k, b.kernel[k])
		if count[set]++; b.rules.MaxGrants > 0 && count[set] > b.rules.MaxGrants {
			surplus = append(surplus, k)
		}
	}
	return surplus
}

// victimsLocked returns the grants that have to go so that there is room for those
// that are wanted, in this order, or ErrFull. It looks at all there are, and takes
// its time.
func (b *Backend) victimsLocked(order []backend.Key, wanted map[backend.Key]held) (victims []backend.Key, err error) {
	after := maps.Clone(b.kernel)
	maps.Copy(after, wanted)
	var old []backend.Key
	for _, l := range limits {
		count, asked := make(map[share]int), make(map[share]int)
		for k, h := range after {
			count[l.of(b.rules, k, h)]++
		}
		for k, h := range wanted {
			asked[l.of(b.rules, k, h)]++
		}
		for _, k := range order {
			h := wanted[k]
			if _, present := b.kernel[k]; present {
				continue
			}
			most := l.most(b.rules, k, h)
			if most > 0 && asked[l.of(b.rules, k, h)] > most {
				return nil, backend.ErrFull
			}
			for i := 0; i < l.atOnce && most > 0 && count[l.of(b.rules, k, h)] > most; i++ {
				if old == nil {
					old = b.oldLocked(wanted)
				}
				at := slices.IndexFunc(old, func(o backend.Key) bool { return l.from(b.rules, o, b.kernel[o]) == l.from(b.rules, k, h) })
				if at < 0 {
					return nil, backend.ErrFull
				}
				victim := old[at]
				count[l.of(b.rules, victim, b.kernel[victim])]--
				delete(after, victim)
				old = slices.Delete(old, at, at+1)
				victims = append(victims, victim)
			}
		}
	}
	return victims, nil
}
