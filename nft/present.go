package nft

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// present is what stands in the kernel under the name of our table.
type present struct {
	exists bool
	flags  uint32 // of the table: its owner; a dormant one has no effect
	sets   map[string]*nftables.Set
	chains map[string]*nftables.Chain
	rules  map[string][]uint64 // handles, by chain
	fixed  map[string][]string // elements that do not end by themselves, by set

	counters map[string]backend.Count
	bound    bool // some mapped addresses are
}

// adoptable reports whether the table's grants can be kept: nothing in it
// stands in the way of the wanted sets and chains.
func (rs ruleset) adoptable(p present) bool {
	for _, have := range p.sets {
		if have.IsMap && have.DataType.Name == nftables.TypeVerdict.Name {
			return false // none of ours; its verdicts would hold on to chains
		}
	}
	for _, s := range rs.sets {
		if have := p.sets[s.name]; have != nil && s.lasts() && !s.standsAs(have) {
			return false
		}
	}
	for _, c := range rs.chains {
		if have := p.chains[c.name]; have != nil && !c.base.standsAs(have) {
			return false
		}
	}
	return true
}

// standsAs reports whether packets come through a chain in the kernel as they should.
func (b *base) standsAs(have *nftables.Chain) bool {
	if b == nil || have.Hooknum == nil || have.Priority == nil {
		return b == nil && have.Hooknum == nil
	}
	return *have.Hooknum == *b.hook && *have.Priority == *b.priority && have.Type == b.kind
}

// readTimeout bounds the wait for an answer of the kernel that got lost.
const readTimeout = 2 * time.Second

// readTable reads the outline of our table, and of no other.
func readTable(name string) (present, error) {
	p := present{sets: map[string]*nftables.Set{}, chains: map[string]*nftables.Chain{}, rules: map[string][]uint64{}, fixed: map[string][]string{}}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(readTimeout))
	}))
	if err != nil {
		return p, err
	}
	defer func() { _ = c.CloseLasting() }()
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return p, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	if i < 0 {
		return p, nil
	}
	p.exists = true
	table := tables[i]
	p.flags = flagsOf(table)
	sets, err := c.GetSets(table)
	if err != nil {
		return p, err
	}
	for _, s := range sets {
		p.sets[s.Name] = s
		if s.HasTimeout || s.Anonymous || s.IsMap || strings.HasPrefix(s.Name, setRoute) || strings.HasPrefix(s.Name, setBound) {
			continue // they change by themselves, or never, or there may be very many
		}
		elements, err := c.GetSetElements(s)
		if err != nil {
			return p, err
		}
		p.fixed[s.Name] = outline(elements)
	}
	own, err := openSocket()
	if err != nil {
		return p, err
	}
	defer own.close()
	if p.counters, err = own.counters(name); err != nil {
		return p, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return p, err
	}
	for _, ch := range chains {
		if ch.Table.Name != name {
			continue
		}
		p.chains[ch.Name] = ch
	}
	if p.rules, err = own.rulesOf(name); err != nil {
		return p, err
	}
	for _, ipv4 := range versions {
		if set := forVersion(setBound, ipv4); p.sets[set] != nil && !p.bound {
			err = own.dumpSet(name, set, func(data []byte) bool {
				for range elementsIn(data) {
					p.bound = true
				}
				return !p.bound // the first ones are enough, and the socket is of no more use
			})
		}
	}
	return p, err
}

// hasGrants reports whether sets for grants stand there.
func (p present) hasGrants() bool {
	for name := range p.sets {
		if strings.HasPrefix(name, setGranted) {
			return true
		}
	}
	return false
}

// holds reports whether a set without timeouts stands there with all that it is to hold.
func (p present) holds(s set) bool {
	return !s.lasts() && s.standsAs(p.sets[s.name]) && slices.Equal(p.fixed[s.name], outline(s.elements()))
}

// same reports whether p and q have the same sets, chains and rules, and the
// same in sets that only we change. The kernel gives no handle twice, so a rule
// that was replaced differs.
func (p present) same(q present) bool {
	return p.exists == q.exists && p.flags == q.flags && sameKeys(p.sets, q.sets) && sameKeys(p.counters, q.counters) &&
		maps.EqualFunc(p.chains, q.chains, func(a, b *nftables.Chain) bool { return drops(a) == drops(b) }) &&
		maps.EqualFunc(p.rules, q.rules, slices.Equal[[]uint64]) &&
		maps.EqualFunc(p.fixed, q.fixed, slices.Equal[[]string])
}

// drops reports whether the chain's policy is to drop.
func drops(c *nftables.Chain) bool {
	return c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
}

func sameKeys[V any](a, b map[string]V) bool {
	return maps.EqualFunc(a, b, func(V, V) bool { return true })
}
