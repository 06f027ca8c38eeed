package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// host is how the guard finds out about the machine.
type host struct {
	watch  func() (surroundings, error)
	askers func() (askers, error)
	units  func(paths []string) (units, error)

	// addresses are the machine's own, with their networks; leads reports whether there
	// is a way to an address. Nil is no addresses, and a way to all.
	addresses func() []netip.Prefix
	leads     func(to netip.Addr, by identity.Way, now time.Time) bool

	// leaves is by which interface a packet would leave now, if it would at all; nil is not known.
	leaves func(identity.Packet) (out string, err error)
}

// surroundings are what the kernel knows of this machine's addresses and of its
// neighbours.
type surroundings interface {
	// Own reports whether addr is one of this machine's.
	Own(addr netip.Addr) bool

	// OnLink returns the networks of this machine's own wires; Changed is sent to
	// when own addresses may have changed, and closed by Close.
	OnLink() []netip.Prefix
	Changed() <-chan struct{}

	// Find returns the Ethernet address of the neighbour with that IP address, and
	// the index of the interface that it is a neighbour at.
	Find(addr netip.Addr) (index uint32, hw [6]byte, ok bool)

	Close()
}

// units are cgroups that the Corefile names, whose directories come and go.
type units interface {
	// List returns them in the order of their paths; Changed is sent to when they
	// may have changed, and closed by Close.
	List() []backend.Cgroup
	Changed() <-chan struct{}

	Close()
}

// machine is what rules have to know of the machine.
type machine struct {
	onLink  []netip.Prefix
	units   []backend.Cgroup
	before  []backend.Holder // who may have local grants from before a reload
	routes  []backend.Route  // of before, which names may still have
	origins []backend.Origin // of mapped addresses, before
	routed  *netipx.IPSet    // addresses that count as those of routes; nil is those of the settings
	audit   switched         // what has been switched while running
}

// classes are the named ones, with their units as they are now.
func (m *machine) classes(named map[backend.Class]backend.Predicates) map[backend.Class]backend.Predicates {
	now := make(map[backend.Class]backend.Predicates, len(named))
	for class, p := range named {
		p.Units = slices.Clone(p.Units)
		for i := range p.Units {
			if j := slices.IndexFunc(m.units, func(u backend.Cgroup) bool { return u.Path == p.Units[i].Path }); j >= 0 {
				p.Units[i] = m.units[j]
			}
		}
		now[class] = p
	}
	return now
}

// arm puts the settings in force.
func (g *guard) arm(s *settings) (err error) {
	g.arming.Lock()
	defer g.arming.Unlock()
	if g.around == nil {
		if g.around, err = g.host.watch(); err != nil {
			return fmt.Errorf("the machine's addresses cannot be known: %w", err)
		}
		g.own = g.around.Own
		go g.follow(g.around.Changed())
	}
	if g.askers == nil && s.local() {
		// Without scope application it is only to tell people who was refused.
		switch who, err := g.host.askers(); {
		case err == nil:
			g.askers = who
		case s.scope == scopeApplication:
			return fmt.Errorf("scope application: who asks cannot be known: %w", err)
		}
	}
	units := g.units
	paths := s.unitPaths()
	if !slices.Equal(paths, g.unitPaths) {
		if units = nil; len(paths) > 0 {
			if units, err = g.host.units(paths); err != nil {
				return fmt.Errorf("units: %w", err)
			}
			go g.follow(units.Changed())
		}
	}
	unused := g.units
	if err = g.change(s, units); err == nil {
		g.units, g.unitPaths = units, paths
	} else {
		unused = units
	}
	if unused != nil && unused != g.units {
		unused.Close()
	}
	if err != nil {
		return err
	}
	g.closeBooks(s.found.routes)
	first := g.settings.Swap(s) == &defaultSettings
	g.followDeniedLocked()
	if first {
		g.awaitTrialLocked(g.trialEnds()) // an earlier process's
		close(g.up)
	}
	return nil
}

// change has the kernel enforce new settings, and names go by the routes in them. Routes of
// before go on until then, unless there are none in them.
func (g *guard) change(s *settings, units units) error {
	if err := g.findStrangers(s); err != nil {
		return err
	}
	was, turned := g.routing.Load(), g.turned(s.found.routes)
	if err := g.changeFrom(was, s, units, turned); err != nil {
		if g.armed() {
			_ = g.enforce(g.settings.Load(), g.units) // as it was
		}
		g.resume(was)
		return err
	}
	if turned != nil || len(g.rules.Routes) > len(s.found.kernelRoutes()) {
		if err := g.enforce(s, units); err != nil { // all that is new is in force, and the old does no harm
			log.Errorf("Routes of before cannot be taken out of the rules yet: %v", err)
		}
	}
	return nil
}

func (g *guard) changeFrom(was *routing, s *settings, units units, turned *netipx.IPSet) error {
	if g.armed() && turned != nil {
		g.pause(was, s.found.routes)
		_ = g.shut(turned) // before they leave by another way; if that fails, the table is made anew
	}
	g.before, g.routed = g.rules.Routes, routedIn(g.rules.Origins)
	err := g.enforce(s, units)
	g.before, g.routed = nil, nil
	if err == nil {
		err = g.shut(turned)
	}
	if err == nil {
		err = g.takeOver(s, was)
	}
	return err
}

// enforce has the kernel enforce what the settings mean on the machine as it is now.
func (g *guard) enforce(s *settings, units units) error {
	m := machine{before: g.rules.LocalHolders, routes: g.before, origins: g.rules.Origins, routed: g.routed, audit: g.switched}
	if s.gateway() { // also with scope any, where clients' grants from before go on
		m.onLink = g.around.OnLink()
	}
	if units != nil {
		m.units = units.List()
	}
	rules := s.rules(&m)
	if reflect.DeepEqual(&rules, &g.rules) && g.settings.Load() == s {
		return nil
	}
	if err := g.backend.Open(rules); err != nil {
		return err
	}
	g.rules = rules
	g.onLink.Store(&m.onLink)
	return nil
}

// follow keeps the rules up to date when the machine changes.
func (g *guard) follow(changed <-chan struct{}) {
	for range changed {
		g.arming.Lock()
		if g.armed() && !g.closed.Load() {
			g.warnOverlap(g.settings.Load())
			if err := g.enforce(g.settings.Load(), g.units); err != nil && err != backend.ErrClosed {
				g.failures.Do(func() {
					log.Errorf("The rules cannot follow a change of the machine's networks or units: %v", err)
				})
			}
		}
		g.arming.Unlock()
	}
}

// class returns the number of grants' class with these predicates, which stays the
// same while the process runs.
func (g *guard) class(p backend.Predicates) (backend.Class, error) {
	g.arming.Lock()
	defer g.arming.Unlock()
	text := p.String()
	i := slices.Index(g.classes, text)
	if i < 0 {
		i = len(g.classes)
		if i > maxClass {
			return 0, fmt.Errorf("%q is one more combination of ports, users and units than the %d that there may be while CoreDNS runs: use fewer, or restart it", text, maxClass)
		}
		g.classes = append(g.classes, text)
	}
	return backend.Class(i), nil
}

const maxClass = 1<<8 - 1
