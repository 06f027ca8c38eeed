package route

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// kernelHas reports whether addresses lead to one of the real ones each, in their order.
func (m *model) kernelHas(mapped, reals []netip.Addr) bool {
	last := -1
	for _, a := range mapped {
		n := slices.Index(reals, m.mapped[a].Real)
		if n <= last {
			return false
		}
		last = n
	}
	return true
}

// look compares whose addresses are with what it was.
func (m *model) look(what string) {
	m.Helper()
	connected := map[netip.Addr]bool{}
	for c := range m.live {
		connected[c[0]] = true
	}
	for _, pool := range slices.Concat(m.pools[1], m.pools[2]) {
		prefix := netip.MustParsePrefix(pool)
		for a := prefix.Addr(); prefix.Contains(a); a = a.Next() {
			now, _ := m.NameOf(a)
			was := m.owner[a]
			switch {
			case now == was:
			case was == "":
				if connected[a] || m.time.Before(m.free[a]) {
					m.Errorf("%s: %v is %s's: connected %v, to be free only %v later", what, a, now, connected[a], m.free[a].Sub(m.time))
				}
			case now == "":
				m.gone(what, a, was, connected[a])
			default:
				m.Errorf("%s: %v was %s's and is %s's", what, a, was, now)
			}
			m.owner[a] = now
		}
	}
	m.late = map[netip.Addr]bool{}
	for _, h := range m.leaving {
		a := addrOf(h.version, h.addr)
		m.retired[a], m.late[a] = true, true
	}
}

// gone checks that an address may have left its name.
func (m *model) gone(what string, a netip.Addr, name string, connected bool) {
	m.Helper()
	m.free[a] = m.time.Add(time.Minute)
	if m.late[a] {
		m.free[a] = m.time.Add(long)
	}
	delete(m.owner, a)
	defer delete(m.retired, a)
	for key, slots := range m.slots {
		m.slots[key] = slices.DeleteFunc(slots, func(s netip.Addr) bool { return s == a })
	}
	if what == "restart" || what == "crash" { // one that rests, as is known now
		return
	}
	var i int
	fmt.Sscanf(name, "name%d", &i)
	asked := m.asked[fmt.Sprint(name, a.Is4())]
	if what != "tidy" || contains(m.routes[m.home[i]].Pools, a) && !m.retired[a] && (connected || m.time.Sub(asked) < long) {
		m.Errorf("%s: %v is not %s's any more: connected %v, asked for %v before", what, a, name, connected, m.time.Sub(asked))
	}
}
