package nft

import (
	"net/netip"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Traffic to mapped addresses is judged before it is translated: grants are for the
// mapped address, and so is every refusal. What has been translated is looked at once
// more, by where it came from and where it is about to go, since no rule of the guarded
// chains that opens a real address may open a way through a mapped one, or the other way
// round.
//
//	prerouting, output  -110  routed-*      to a pool: judged, or refused at once
//	prerouting, output  -105  translate-*   to the real address, or refused: of others
//	forward, output        0  guarded       leaves by its route, or is refused
//	input                  0  own-address   never arrives here
//	postrouting            0  leaving       what this machine sends leaves by its route
//	postrouting           90  egress        with the route's source address
//
// Translation comes a little before that of others, who could send it elsewhere.

// Names of chains and sets for routes.
const (
	chainTranslate = "translate"
	chainPass      = "pass"
	chainOwn       = "own-address"
	chainLeaving   = "leaving"
	chainEgress    = "egress"
	chainBound     = "bound"
	chainAtOnce    = "at-once"
	chainNowhere   = "nowhere"

	setMapped = "mapped"
	setRoute  = "route-"
	setBound  = "bound"
	setOrigin = "origin-"

	originGone = "-gone" // the end of such a name
)

// A path is a way that packets take past routes: those that are forwarded, or those that
// this machine sends.
type path struct {
	rules   *backend.Rules
	forward bool
	bound   bool // some connections may leave by their route only
}

// name is what a chain of the path is called.
func (p *path) name(begin string) string {
	if p.forward {
		return begin + "-" + chainForward
	}
	return begin + "-" + chainOutput
}

// pools are those of all routes.
func pools(routes []backend.Route) (all []netip.Prefix) {
	for _, r := range routes {
		for _, p := range r.Pools {
			if p = p.Masked(); !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

var versions = []bool{true, false} // IPv4, IPv6

// eachVersion makes rules for mapped addresses of routes, of those that want any.
func eachVersion(routes []backend.Route, rules func(r *backend.Route, ipv4 bool) []rule) (all []rule) {
	for i := range routes {
		for _, ipv4 := range versions {
			all = append(all, rules(&routes[i], ipv4)...)
		}
	}
	return all
}

// swift reports whether packets of live connections to mapped addresses have nothing to pass
// that those of others have not: no route gives them a mark, and nobody asks who sends them.
func (p *path) swift(o *opening) bool {
	return len(o.live())+len(o.known()) == 0 && !slices.ContainsFunc(p.rules.Routes, func(r backend.Route) bool { return r.Mark != 0 })
}

// judge is the chain for packets to mapped addresses, before they are translated. What it
// does not accept it refuses.
func (p *path) judge(o opening) chain {
	marks := eachVersion(p.rules.Routes, func(r *backend.Route, ipv4 bool) []rule {
		if r.Mark == 0 {
			return nil
		}
		return []rule{{"the mark of " + r.Name, []match{selector{destination(ipv4)}.in(routeName(r.Name, ipv4, p.rules.Book)), setMark(r.Mark)}, verdict{}}}
	})
	var captured []rule
	if p.forward && p.rules.Capture != 0 {
		captured = []rule{{"plain DNS of clients: captured", []match{tcpOrUDP, plainDNSPort}, accept}}
	}
	live := alive(o.refuse, o.live(), o.known())
	if p.swift(&o) {
		live = notInvalid(o.refuse)
	}
	return chain{o.chain, nil, slices.Concat(o.straight(), marks, live, p.sentinels(), captured, p.noMiddle(), o.rules(), refuse(o.refuse))}
}

// noMiddle refuses what is of no connection that is known: one has been ended. It was with
// what stood behind the address before, and its next packet is not for what stands there now.
func (p *path) noMiddle() []rule {
	return p.refuseAtOnce("no connection begins in the middle", ctState("new"), tcpMidStream)
}

// first is the chain that sends packets to mapped addresses to be judged.
func (p *path) first(o *opening) chain {
	c := chain{name: p.name("routed"), base: &routedOutputBase}
	if p.forward {
		c.base = &routedForwardBase
	}
	if p.swift(o) {
		c.rules = []rule{livesOn()}
	}
	for _, pool := range pools(p.rules.Routes) {
		c.rules = append(c.rules, rule{"mapped addresses", append([]match{destinationIn(pool)}, p.guarded()...), jump(o.chain)})
	}
	return c
}

// sentinels let pass what goes to sentinels of this machine. Their networks lie in the middle
// of the pool that routes have unless told otherwise, and no name has an address of them.
func (p *path) sentinels() (rules []rule) {
	for _, network := range backend.Sentinels {
		if slices.ContainsFunc(pools(p.rules.Routes), network.Overlaps) {
			rules = append(rules, rule{"a sentinel of this machine", []match{destinationIn(network), toSelf}, accept})
		}
	}
	return rules
}

// guarded are the conditions that a packet is of those that the path is about.
func (p *path) guarded() []match {
	switch {
	case !p.forward:
		return nil
	case len(p.rules.Interfaces) > 0:
		return []match{notLoopback, selector{fromName}.in(setGuarded)}
	}
	return []match{notLoopback}
}

// translate is the chain that sends new connections to what stands behind a mapped address,
// and refuses those of senders that are not guarded. No live ones come by it.
func (p *path) translate() chain {
	c := chain{name: p.name(chainTranslate), base: &translateOutputBase}
	if p.forward {
		c.base = &translateForwardBase
	}
	if !p.guards() {
		c.rules = p.nowhere(toOthers)
		return c
	}
	if p.forward && len(p.rules.Interfaces) > 0 {
		c.rules = p.nowhere(notGuarded, toOthers)
	}
	if p.forward && p.rules.Capture != 0 {
		c.rules = append(c.rules, rule{"plain DNS of clients: captured", append(p.guarded(), tcpOrUDP, plainDNSPort), accept})
	}
	for _, pool := range pools(p.rules.Routes) {
		name := mappedName(pool.Addr().Is4(), p.rules.Book)
		c.rules = append(c.rules, rule{"to the real address", append([]match{destinationIn(pool)}, p.guarded()...), dnatBy(name, pool.Addr().Is4())})
	}
	return c
}

// pass is the chain for what has been translated.
func (p *path) pass(o *opening, u resolvers) chain {
	c := chain{name: p.name(chainPass)}
	if !p.swift(o) {
		c.rules = append(p.bindings(), livesOn())
	}
	c.rules = append(c.rules, u.shut()...)
	if !p.forward { // where it is about to go, no packet on its way out tells any more
		c.rules = append(c.rules, p.refuseAtOnce("a real address is this machine's own", toSelf)...)
	}
	c.rules = append(c.rules, p.unassigned("from one mapped address to another")...)
	c.rules = append(c.rules, eachVersion(p.rules.Routes, func(r *backend.Route, ipv4 bool) []rule {
		return []rule{{"leaves by its route", []match{originally(ipv4).in(routeName(r.Name, ipv4, p.rules.Book))}, accept}}
	})...)
	c.rules = append(c.rules, p.refuseAtOnce("its route is not there any more")...)
	return c
}

// isBound sends packets that must not leave but by their route to the chain for that.
func isBound(to string, conditions ...match) (rules []rule) {
	for _, ipv4 := range versions {
		rules = append(rules, rule{"leaves by its route only", append(slices.Clip(conditions), originally(ipv4).in(forVersion(setBound, ipv4))), jump(to)})
	}
	return rules
}

// bound is the chain for those. Where a route has gone, or an address has none for the moment,
// packets of live connections wait, and leave no other way.
func bound(name string, r *backend.Rules, elsewhere, gone *denial) chain {
	return chain{name, nil, append(eachVersion(r.Routes, func(route *backend.Route, ipv4 bool) []rule {
		of := originally(ipv4).in(routeName(route.Name, ipv4, r.Book))
		switch {
		case route.Out != "":
			return []rule{
				{"leaves by its route", []match{of, out(route.Out)}, goBack},
				{"leaves by no other interface", []match{of}, elsewhere.verdict()},
			}
		case route.Mark != 0:
			return []rule{{"leaves by its route", []match{of}, goBack}}
		}
		return nil
	}), rule{"its route is not there any more", []match{liveConnection}, gone.verdict()})}
}

// begin is what the guarded chain of the path begins with. Packets of live connections that
// are translated are let through with all others if they can be; else apart from them, since
// what grants of their real addresses say is not about them.
func (p *path) begin(o *opening, alive []rule) []rule {
	pass := translated(p.rules, fromMapped, jump(p.name(chainPass)))
	if p.swift(o) || len(p.rules.Routes) == 0 { // bindings first: in audit, all else lets pass
		return slices.Concat(p.bindings(hasDNAT, ctOriginal), o.straight(), alive, pass)
	}
	return slices.Concat(pass, o.straight(), alive)
}

// bindings send what must not leave but by its route to the chain for that.
func (p *path) bindings(conditions ...match) []rule {
	if !p.forward || !p.bound {
		return nil // what this machine sends is looked at when it leaves
	}
	return isBound(chainBound, conditions...)
}

const fromMapped = "from a mapped address"

// translated is what becomes of packets that have been translated.
func translated(r *backend.Rules, comment string, v verdict, conditions ...match) (rules []rule) {
	for _, pool := range pools(r.Routes) {
		rules = append(rules, rule{comment, append(slices.Clip(conditions), hasDNAT, ctOriginal, originallyIn(pool)), v})
	}
	return rules
}

// unassigned refuses what goes to a pool.
func (p *path) unassigned(comment string) (rules []rule) {
	for _, pool := range pools(p.rules.Routes) {
		rules = append(rules, p.refuseAtOnce(comment, destinationIn(pool))...)
	}
	return rules
}

// chains are those for routes on the path: o is the opening of its guarded chain.
func (p *path) chains(o opening, u resolvers) []chain {
	if len(p.rules.Routes) == 0 {
		return nil
	}
	o.chain = p.name(setMapped)
	judged := p.judged(o.chain)
	o.refuse = judged.verdict()
	return slices.Concat(p.atOnce().chains(), judged.chains(), o.chains(), o.liveChains(nil),
		[]chain{o.optionsChain(), p.judge(o), p.first(&o), p.translate(), p.pass(&o, u)})
}
