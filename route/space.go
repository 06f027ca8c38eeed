package route

import (
	"math"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// space is the addresses of one IP version that some routes take theirs from.
type space struct {
	version int
	pools   []netip.Prefix // in order

	// Which address comes next that nobody has had; those of pools before are done with.
	pool int
	next netip.Addr

	back   []rest // what has been given back and is free, the oldest first
	free   uint64 // how many nobody has, these and those to come
	shares map[uint32]uint64
}

// rest is an address that nobody has any more.
type rest struct {
	addr   ip
	at     int32 // since when it is free, or can be at the earliest
	mapped bool  // the router may still translate it
}

// held is an address that its name has no use for.
type held struct {
	version int
	addr    ip
	asker   uint32
	late    bool // it was the name's until a moment ago, so clients may still have it
}

// What means something else, and belongs to no name.
var reserved = append([]netip.Prefix{
	// Metadata and name servers of a cloud, for machines in it.
	netip.MustParsePrefix("100.100.100.200/32"),
	netip.MustParsePrefix("100.100.2.136/32"),
	netip.MustParsePrefix("100.100.2.138/32"),
}, backend.Sentinels...)

// skipped reports whether an address of a pool is never a name's. The first one of a
// network, and with IPv4 the last, mean something else to machines that believe the pool to
// be on their wire.
func skipped(pool netip.Prefix, a netip.Addr) bool {
	if contains(reserved, a) {
		return true
	}
	if a.BitLen()-pool.Bits() < 2 {
		return false
	}
	return a == pool.Addr() || a.Is4() && !pool.Contains(a.Next())
}

// Room is how many addresses names can have of pools that do not overlap.
func Room(pools []netip.Prefix) (n uint64) {
	for _, p := range pools {
		n = add(n, size(p))
	}
	return n
}

// size is how many addresses of a pool names can have.
func size(pool netip.Prefix) uint64 {
	n := addresses(pool)
	for _, s := range reserved {
		if s.Overlaps(pool) {
			n -= min(n, addresses(s))
		}
	}
	if pool.Addr().BitLen()-pool.Bits() < 2 || n == 0 {
		return n
	}
	ends := []netip.Addr{pool.Addr()}
	if pool.Addr().Is4() {
		ends = append(ends, last4(pool))
	}
	for _, a := range ends {
		if !contains(reserved, a) {
			n--
		}
	}
	return n
}

func last4(pool netip.Prefix) netip.Addr {
	a := pool.Addr().As4()
	for i := pool.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

func addresses(pool netip.Prefix) uint64 {
	if free := pool.Addr().BitLen() - pool.Bits(); free < 63 {
		return 1 << free
	}
	return 1 << 63
}

// spaceLocked finds or makes the space of these pools. Spaces that overlap it are from
// before a reload, and go.
func (b *Book) spaceLocked(version int, of []netip.Prefix) *space {
	pools := make([]netip.Prefix, 0, len(of))
	for _, p := range of {
		if p.Addr().Is4() == (version == 0) {
			pools = append(pools, p.Masked())
		}
	}
	slices.SortFunc(pools, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	for _, s := range b.spaces {
		if s.version == version && slices.Equal(s.pools, pools) {
			return s
		}
	}
	s := &space{version: version, pools: pools, shares: make(map[uint32]uint64)}
	if len(pools) > 0 {
		s.next = pools[0].Addr()
	}
	b.dropSpacesLocked(func(old *space) bool { return old.version == version && overlap(old.pools, pools) })
	b.spaces = append(b.spaces, s)
	b.loose[version] = slices.DeleteFunc(b.loose[version], func(r rest) bool {
		if !contains(pools, addrOf(version, r.addr)) {
			return false
		}
		s.back = append(s.back, r)
		return true
	})
	slices.SortStableFunc(s.back, func(a, b rest) int { return int(a.at) - int(b.at) })
	for _, p := range pools {
		s.free = add(s.free, size(p))
	}
	b.pages[version].each(func(a ip, e *entry) {
		if e == isFree || !contains(pools, addrOf(version, a)) {
			return
		}
		s.free -= min(s.free, 1)
		if e.real() && e.asker != 0 {
			s.shares[e.asker]++
		}
	})
	return s
}

func (b *Book) dropSpacesLocked(which func(*space) bool) {
	b.spaces = slices.DeleteFunc(b.spaces, func(s *space) bool {
		if !which(s) {
			return false
		}
		b.loose[s.version] = append(b.loose[s.version], s.back...)
		return true
	})
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.ContainsFunc(b, p.Overlaps) })
}

// add is a sum that stays at the most there is.
func add(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}

// takeLocked takes an address that nobody has.
func (s *space) takeLocked(p *pages) (a ip, ok bool) {
	for s.pool < len(s.pools) {
		pool, next := s.pools[s.pool], s.next
		if !next.IsValid() || !pool.Contains(next) {
			if s.pool++; s.pool < len(s.pools) {
				s.next = s.pools[s.pool].Addr()
			}
			continue
		}
		s.next = next.Next()
		if a := next.As16(); !skipped(pool, next) && p.get(a) == nil {
			return a, true
		}
	}
	if len(s.back) == 0 {
		return a, false
	}
	a = s.back[0].addr
	s.back = s.back[1:]
	return a, true
}

// roomLocked is how many more addresses of an IP version may be mapped.
func (b *Book) roomLocked(version int) uint64 {
	most := b.max.Load()
	if most == 0 {
		return math.MaxInt64
	}
	return uint64(max(0, most-int64(b.count[version])))
}

// reserve takes up to n addresses that nobody has for an entry, at least one. The caller
// has its turn.
func (b *Book) reserve(e *entry, pools []netip.Prefix, n int, asker uint32) (addrs []ip, err error) {
	v := e.version()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(e.slots) == 0 {
		e.asker = asker
	}
	s := b.spaceLocked(v, pools)
	for len(addrs) < n {
		free := min(s.free, b.roomLocked(v))
		switch {
		case free == 0:
			err = ErrPoolFull
		case e.asker != 0 && s.shares[e.asker] >= free:
			err = ErrShare
		}
		if err != nil {
			break
		}
		a, ok := s.takeLocked(&b.pages[v])
		if !ok {
			err = ErrPoolFull
			break
		}
		b.pages[v].set(a, e)
		s.free--
		b.count[v]++
		if e.asker != 0 {
			s.shares[e.asker]++
		}
		addrs = append(addrs, a)
	}
	if addrs != nil {
		return addrs, nil
	}
	return nil, err
}

// unreserve gives back what nobody has been told of.
func (b *Book) unreserve(e *entry, addrs []ip) {
	v := e.version()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(addrs) - 1; i >= 0; i-- {
		b.count[v]--
		b.unshareLocked(held{version: v, addr: addrs[i], asker: e.asker})
		b.freeLocked(v, rest{addr: addrs[i], at: math.MinInt32})
	}
}

// leaveLocked: an entry has no use for these any more.
func (b *Book) leaveLocked(e *entry, slots []slot, late bool) {
	for _, s := range slots {
		b.leaving = append(b.leaving, held{e.version(), s.mapped, e.asker, late})
	}
}

// unshareLocked: an address does not count for its asker any more.
func (b *Book) unshareLocked(h held) {
	s := b.spaceOfLocked(h.version, h.addr)
	if s == nil || s.shares[h.asker] == 0 {
		return
	}
	if s.shares[h.asker]--; s.shares[h.asker] == 0 {
		delete(s.shares, h.asker)
	}
}

// freeLocked: anybody may have the address.
func (b *Book) freeLocked(version int, r rest) {
	b.pages[version].set(r.addr, isFree)
	s := b.spaceOfLocked(version, r.addr)
	if s == nil {
		b.loose[version] = append(b.loose[version], r)
		return
	}
	s.free++
	if r.at == math.MinInt32 {
		s.back = slices.Insert(s.back, 0, r)
	} else {
		s.back = append(s.back, r)
	}
}

func (b *Book) spaceOfLocked(version int, a ip) *space {
	for _, s := range b.spaces {
		if s.version == version && contains(s.pools, addrOf(version, a)) {
			return s
		}
	}
	return nil
}
