package ipdestinationguard

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/names"
	"github.com/destination-guard/coredns-ip-destination-guard/reach"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// A routeOption is a line in the block of a route.
type routeOption struct {
	read       func(*parser, *namedRoute, []string) error
	repeatable bool
}

var routeOptions = map[string]routeOption{
	"pool": {repeatable: true, read: func(p *parser, r *namedRoute, args []string) error { return p.addPools(&r.pools, args) }},
	"slots": {read: func(p *parser, r *namedRoute, args []string) error {
		text, err := p.only("slots", args)
		if err != nil {
			return err
		}
		if r.slots, err = strconv.Atoi(text); err != nil || r.slots < 1 || r.slots > maxSlots {
			return p.Errf("slots %q is not a number between 1 and %d", text, maxSlots)
		}
		return nil
	}},
	"egress": {read: (*parser).setEgress},
	"out": {read: func(p *parser, r *namedRoute, args []string) (err error) {
		if r.out, err = p.only("out", args); err != nil {
			return err
		}
		if r.out == "lo" {
			return p.Errf("out lo: traffic leaves this machine by another interface")
		}
		return p.interfaceName(r.out)
	}},
	"fwmark": {read: func(p *parser, r *namedRoute, args []string) error {
		text, err := p.only("fwmark", args)
		if err != nil {
			return err
		}
		mark, err := strconv.ParseUint(text, 0, 32)
		if err != nil || mark == 0 {
			return p.Errf("fwmark %q is not a number between 1 and 0xffffffff, as in 7 or 0x100; without a mark leave the line out", text)
		}
		r.mark = uint32(mark)
		return nil
	}},
	"ttl": {read: func(p *parser, r *namedRoute, args []string) error {
		floor, ceiling, err := p.ttl(args)
		r.floor, r.ceiling = uint32((floor+time.Second-1)/time.Second), uint32(ceiling/time.Second)
		return err
	}},
	"family": {read: func(p *parser, r *namedRoute, args []string) (err error) {
		r.family, err = p.oneOf("family", args, "both, ipv4 or ipv6", familyBoth, familyIPv4, familyIPv6)
		return err
	}},
	"ports": {repeatable: true, read: func(p *parser, r *namedRoute, args []string) error { return p.addPorts(&r.ports, args) }},
	"on_change": {read: func(p *parser, r *namedRoute, args []string) error {
		change, err := p.oneOf("on_change", args, "keep (connections to an address that the name no longer has go on) or cut", "keep", "cut")
		r.cut = change == "cut"
		return err
	}},
	"state": {read: func(p *parser, r *namedRoute, args []string) (err error) {
		path, err := p.only("state", args)
		if err != nil {
			return err
		}
		if root := dnsserver.GetConfig(p.Controller).Root; root != "" && !filepath.IsAbs(path) {
			path = filepath.Join(root, path)
		}
		r.state, err = filepath.Abs(path)
		return err
	}},
}

const (
	maxSlots     = route.MaxSlots
	defaultSlots = 4

	familyBoth = "both"
	familyIPv4 = "ipv4"
	familyIPv6 = "ipv6"
)

// defaultPools are those that a route has unless it says otherwise, of each IP version.
var defaultPools = []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:2021:1111:8000::/107")}

// addRoute reads `route PATTERN... [{ options }]`. The block is read token by token, since
// for caddy a block within a block ends like an option without values.
func (p *parser) addRoute(patterns []string) error {
	if err := p.areNames("route", patterns); err != nil {
		return err
	}
	if _, err := names.Rank(patterns); err != nil {
		return p.Errf("route: %v", err)
	}
	r := &namedRoute{place: here(p.Controller), patterns: patterns, slots: defaultSlots, floor: 1, ceiling: 60}
	seen := map[string]int{}
	for block := p.NextArg(); block; {
		if !p.Next() {
			return p.Errf("the route of %s has no end: its } is missing", r.place)
		}
		word := p.Val()
		if word == "}" {
			break
		}
		option, known := routeOptions[word]
		if !known {
			return p.unknown(word, inRoute, r.place)
		}
		if first := seen[word]; first != 0 && !option.repeatable {
			return p.Errf("%s is given twice, first in line %d", word, first)
		}
		seen[word] = p.Line()
		args := p.RemainingArgs()
		switch {
		case len(args) == 0:
			return p.Errf("%s needs a value", word)
		case slices.Contains(args, "}"):
			return p.Errf("%s: the } that ends the route stands on a line of its own", word)
		}
		if err := option.read(p, r, args); err != nil {
			return err
		}
	}
	if err := r.settle(); err != nil {
		line := seen[err.option]
		if line == 0 {
			line = p.Line()
		}
		return fmt.Errorf("%s:%d - Error during parsing: %s", p.File(), line, err.text)
	}
	r.literal = !strings.ContainsAny(strings.Join(patterns, ""), "*?")
	p.policy.routes = append(p.policy.routes, r)
	return nil
}

// addPools reads networks that mapped addresses may come from.
func (p *parser) addPools(pools *[]netip.Prefix, texts []string) error {
	for _, text := range texts {
		if !strings.Contains(text, "/") {
			return p.Errf("pool %q is no network: write for example 10.9.0.0/16", text)
		}
		var pool []netip.Prefix
		if err := p.addPrefixes(&pool, []string{text}); err != nil {
			return err
		}
		first := pool[0].Addr()
		switch b := reach.Of(first); {
		case b.Kind == reach.Loopback, b.Kind == reach.Metadata, first.IsMulticast(), first.IsLinkLocalUnicast(), pool[0].Bits() == 0:
			return p.Errf("pool %s: packets to such addresses are not routed (%s). Take one of your own networks, or one that nobody uses, as 10.9.0.0/16", pool[0], b.Why)
		}
		for _, sentinels := range backend.Sentinels {
			if sentinels.Contains(first) && sentinels.Bits() <= pool[0].Bits() {
				return p.Errf("pool %s: its addresses are the sentinels', who have all of %s (sentinel/README.md): take another network, as 10.9.0.0/16", pool[0], sentinels)
			}
		}
		for _, other := range *pools {
			if other.Overlaps(pool[0]) {
				return p.Errf("pool %s and pool %s overlap: write each address once", other, pool[0])
			}
		}
		*pools = append(*pools, pool[0])
	}
	return nil
}

// A routeError is a contradiction in one route, and the line that it is in.
type routeError struct{ option, text string }

func routeErrorf(option, format string, args ...any) *routeError {
	return &routeError{option, fmt.Sprintf(format, args...)}
}

// settle fills in the IP versions and the pools, once all lines have been read.
func (r *namedRoute) settle() *routeError {
	has := func(version string) bool {
		return slices.ContainsFunc(r.egress, func(a netip.Addr) bool { return a.Is4() == (version == familyIPv4) })
	}
	chosen := r.family
	if r.family == "" {
		switch {
		case len(r.egress) == 0 || len(r.egress) == 2:
			r.family = familyBoth
		case has(familyIPv4):
			r.family = familyIPv4 // it must not leave by one whose address is not fixed
		default:
			r.family = familyIPv6
		}
	}
	for _, version := range []string{familyIPv4, familyIPv6} {
		carried := r.carries(version == familyIPv4)
		switch {
		case !carried && has(version):
			return routeErrorf("egress", "egress has an address for %s, and family is %s", version, r.family)
		case carried && len(r.egress) > 0 && !has(version):
			return routeErrorf("family", "family %s: egress has no address for %s, which would leave with any. Add one, or write family %s", chosen, version, other(version))
		}
	}
	if r.family == familyBoth && len(r.pools) > 0 || len(r.pools) == 0 {
		for _, pool := range defaultPools {
			if !slices.ContainsFunc(r.pools, func(p netip.Prefix) bool { return p.Addr().Is4() == pool.Addr().Is4() }) && r.carries(pool.Addr().Is4()) {
				r.pools = append(r.pools, pool)
			}
		}
	}
	for _, is4 := range []bool{true, false} {
		pools := slices.DeleteFunc(slices.Clone(r.pools), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 })
		room := route.Room(pools)
		switch {
		case len(pools) > 0 && !r.carries(is4):
			return routeErrorf("pool", "pool has a network that is not of the route's family, %s: leave it out", r.family)
		case r.carries(is4) && room < uint64(r.slots):
			return routeErrorf("pool", "pool: there is room for %d addresses, and one name alone has slots %d: make it larger", room, r.slots)
		}
	}
	slices.SortFunc(r.pools, netip.Prefix.Compare)
	return nil
}

func other(version string) string {
	if version == familyIPv4 {
		return familyIPv6
	}
	return familyIPv4
}

// settleRoutes ranks the patterns of all routes of the block.
func (p *parser) settleRoutes() (err error) {
	if len(p.policy.routes) == 0 {
		return nil
	}
	var patterns [][]string
	for _, r := range p.policy.routes {
		patterns = append(patterns, r.patterns)
	}
	p.policy.routed, err = names.Rank(patterns...)
	if twice := (*names.TwiceError)(nil); errors.As(err, &twice) {
		first, second := p.policy.routes[twice.First], p.policy.routes[twice.Second]
		return fmt.Errorf("%s - Error during parsing: route %s stands at %s already: whose is it? Take it out of one of the two", second.place, twice.Pattern, first.place)
	}
	if err != nil {
		return p.errAt("route", "route: %v", err)
	}
	for _, r := range p.policy.routes {
		for _, pattern := range r.patterns {
			if !strings.ContainsAny(pattern, "*?") && !p.policy.opens(pattern) {
				p.policy.warnings = append(p.policy.warnings, fmt.Sprintf("%s: route %s: names or except of this server block shut it out: it opens nothing, and has this route only where another name leads to it", r.place, pattern))
			}
		}
		if len(r.ports) == 0 {
			r.ports = p.policy.predicates.Ports
		}
		r.predicates = backend.Predicates{Ports: r.ports, Users: p.policy.predicates.Users, Units: p.policy.predicates.Units}
	}
	return nil
}
