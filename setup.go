package ipdestinationguard

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
	"github.com/destination-guard/coredns-ip-destination-guard/nft"
)

var log = clog.NewWithPlugin(name)

func init() {
	plugin.Register(name, setup)
}

// hear has caddy tell of each Corefile that has started. It is called at every
// setup, and before a reload that may have no setup of ours, since caddy forgets
// all event hooks on SIGUSR1.
func hear() error {
	if slices.Contains(caddy.ListPlugins()["event_hooks"], name) {
		return nil // caddy panics on a second one
	}
	caddy.RegisterEventHook(name, func(event caddy.EventName, info any) error {
		if instance, ok := info.(*caddy.Instance); ok && event == caddy.InstanceStartupEvent {
			started(instance)
		}
		return nil
	})
	return nil
}

// newBackend is the one place that picks what enforces.
var newBackend = func(inForce *backend.InForce, events backend.Observer) backend.Backend {
	return nft.New(inForce, events)
}

// thisHost is the machine that CoreDNS runs on.
var thisHost = host{
	watch: func() (surroundings, error) {
		return identity.Watch(func(err error) { log.Errorf("Following addresses and neighbours: %v", err) })
	},
	askers: func() (askers, error) { return identity.NewAskers() },
	units:  func(paths []string) (units, error) { return identity.FollowUnits(paths) },

	addresses: ownAddresses,
	leads:     new(identity.Ways).Lead,
	leaves:    identity.Leaves,
}

// self is this process as it was first asked for: at a reload, the program that brings it
// about may be in the same cgroup for a moment.
var self = sync.OnceValues(identity.Self)

// process holds the guard that runs, if one does.
var process struct {
	sync.Mutex
	guard *guard
}

// engine returns the guard of this process and makes it if there is none. It
// touches nothing outside before it is armed.
func engine() *guard {
	process.Lock()
	defer process.Unlock()
	if process.guard == nil {
		process.guard = newGuard(newBackend, thisHost, time.Now)
	}
	return process.guard
}

// running returns the guard of this process, or nil.
func running() *guard {
	process.Lock()
	defer process.Unlock()
	return process.guard
}

// generation is what the server blocks of one Corefile have in common.
type generation struct {
	settings *settings
	joined   string   // the place of the first block without settings
	warnings []string // of all blocks
	classes  map[backend.Class]backend.Predicates
	programs string         // the place of the first block with users or units
	blocks   []*serverBlock // that have the directive
	policies []*policy      // of these
}

type generationKey struct{}

// setup reads one server block's directive. It has no effect outside.
func setup(c *caddy.Controller) error {
	s, p, err := parse(c)
	if err != nil {
		return plugin.Error(name, err)
	}
	gen, _ := c.Get(generationKey{}).(*generation)
	if gen == nil {
		gen = &generation{classes: map[backend.Class]backend.Predicates{}}
		c.Set(generationKey{}, gen)
		_ = hear()
		c.OnRestart(hear)
		c.OnStartup(gen.check)
		c.OnFinalShutdown(shutdown)
	}
	if err := gen.add(s, p); err != nil {
		return plugin.Error(name, err)
	}
	gen.blocks = append(gen.blocks, &serverBlock{Config: dnsserver.GetConfig(c), place: p.place, index: c.ServerBlockIndex, zones: c.ServerBlockKeys})
	c.OnStartup(func() error { return p.check(dnsserver.GetConfig(c), gen.corefile()) })
	c.OnStartup(p.open)
	c.OnShutdown(p.close)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		return &Handler{Next: next, guard: engine(), policy: p}
	})
	return nil
}

// add takes what one server block says.
func (gen *generation) add(s *settings, p *policy) (err error) {
	gen.warnings = append(gen.warnings, p.warnings...)
	if p.class, err = engine().class(p.predicates); err != nil {
		return fmt.Errorf("%s: %w", p.place, err)
	}
	if p.class != 0 {
		gen.classes[p.class] = p.predicates
	}
	if p.predicates.Local() && gen.programs == "" {
		gen.programs = p.place
	}
	gen.policies = append(gen.policies, p)
	for _, r := range p.routes {
		if r.class, err = engine().class(r.predicates); err != nil {
			return fmt.Errorf("%s: %w", r.place, err)
		}
		if r.class != 0 {
			gen.classes[r.class] = r.predicates
		}
	}
	switch {
	case s == nil:
		if gen.joined == "" {
			gen.joined = p.place
		}
	case gen.settings == nil:
		gen.settings = s
	default:
		if text := s.contradiction(gen.settings); text != "" {
			return errors.New(text)
		}
	}
	return nil
}

// check runs when every server block has been read and before anything has been
// touched. The rules are put in force only when all plugins and all servers have
// started (see started): so a start that fails, because a port is taken, say,
// neither locks anybody out nor changes what the previous Corefile has set up. Books of
// mapped addresses are opened, and stay closed to others.
func (gen *generation) check() (err error) {
	s := gen.settings
	if s == nil {
		return plugin.Error(name, fmt.Errorf("%s joins a guard, but no server block sets one up: say in one of them which of nft-local, nft-gateway and nft-both it is", gen.joined))
	}
	for _, w := range gen.warnings {
		log.Warning(w)
	}
	if err := gen.find(); err != nil {
		return plugin.Error(name, err)
	}
	g := engine()
	if g.removed.Load() {
		return nil // somebody has disarmed it: see started
	}
	if g.armed() && g.settings.Load().table != s.table {
		return plugin.Error(name, fmt.Errorf("%s: the table cannot be renamed from %q to %q by a reload: restart CoreDNS", s.place, g.settings.Load().table, s.table))
	}
	defer func() {
		if err != nil {
			g.closeBooks(g.settings.Load().found.routes)
		}
	}()
	if err := g.prepareRoutes(s); err != nil {
		return plugin.Error(name, err)
	}
	err = g.backend.Check(s.rules(&machine{}))
	if self := &s.found.self; err != nil && self.Cgroup.ID != 0 {
		cgroup := self.Cgroup
		if self.Cgroup = (backend.Cgroup{}); g.backend.Check(s.rules(&machine{})) == nil {
			log.Warningf("%s: upstream is open to every program of CoreDNS's user: %v", s.place, err)
			err = nil
		} else {
			self.Cgroup = cgroup
		}
	}
	if permission := (*backend.PermissionError)(nil); errors.As(err, &permission) {
		return plugin.Error(name, fmt.Errorf("%s: the firewall cannot be set up: %w: run CoreDNS as root, or as deployment/ipdestinationguard-coredns.service does; in a container with --cap-add NET_ADMIN", s.place, err))
	}
	if err != nil {
		return plugin.Error(name, fmt.Errorf("%s: the firewall cannot be set up: %w", s.place, err))
	}
	return nil
}

// find fills in what the directive itself does not say.
func (gen *generation) find() (err error) {
	s := gen.settings
	s.found.classes, s.found.policies, s.found.directives = gen.classes, gen.policies, directives(gen.corefile())
	s.found.blocks = gen.blocks
	readForwards(gen.corefile(), gen.blocks)
	if s.local() {
		to := destinations(gen.corefile())
		s.found.upstream = s.upstream(to)
		gen.followNameservers()
		if len(s.found.upstream) > 0 || s.upstreamSentinel {
			if s.found.self, err = self(); err != nil {
				log.Warningf("CoreDNS is told from other programs by its user only: %v", err)
			}
		}
		s.warnUpstream(to, log.Warningf)
	} else if gen.programs != "" {
		return fmt.Errorf("%s: users and units are for programs of this machine: in mode %s they are not guarded", gen.programs, s.mode)
	}
	if s.gateway() {
		s.warnInterfaces(log.Warningf)
	}
	if s.scope == scopeApplication && !s.byUser {
		if _, err := identity.UnitAt("/system.slice"); err != nil {
			log.Warningf("%s: applications are told apart by their users only: %v", s.place, err)
		}
	}
	if s.capture && s.gateway() {
		if s.found.capture, err = capturePort(gen.blocks); err != nil {
			return fmt.Errorf("%s: %w", s.place, err)
		}
	}
	return nil
}

// corefile returns what is being started.
func (gen *generation) corefile() caddy.Input {
	for _, instance := range caddy.Instances() {
		instance.StorageMu.RLock()
		ours := instance.Storage[generationKey{}] == gen
		instance.StorageMu.RUnlock()
		if ours {
			return instance.Caddyfile()
		}
	}
	return caddy.CaddyfileInput{}
}

// started puts the rules of a Corefile in force, at the first start and after
// each reload that has succeeded.
func started(instance *caddy.Instance) {
	instance.StorageMu.RLock()
	gen, _ := instance.Storage[generationKey{}].(*generation)
	instance.StorageMu.RUnlock()
	g := running()
	switch {
	case g == nil:
	case g.removed.Load():
		log.Warning("Nothing is guarded: the guard has been disarmed, and stays so until CoreDNS is restarted")
	case gen == nil:
		log.Warningf("The new Corefile has no %s any more", name)
		_ = shutdown()
	default:
		if err := g.serveAdminOr(gen.settings); err != nil {
			if !g.armed() {
				log.Fatal(err)
			}
			log.Error(err)
		}
		if err := g.arm(gen.settings); err != nil {
			if !g.armed() {
				log.Fatalf("The firewall cannot be set up: %v", err)
			}
			log.Errorf("The rules of the new Corefile cannot be put in force, the previous ones stay: %v", err)
			return
		}
		g.listen(gen.settings)
		log.Infof("In force: mode %s, table inet %s", gen.settings.mode, gen.settings.table)
		if text := g.audited(); text != "" {
			log.Warning(text)
		}
	}
}

// shutdown ends the guard. It returns no error: that would keep other plugins
// from shutting down.
func shutdown() error {
	process.Lock()
	g := process.guard
	process.guard = nil
	process.Unlock()
	if g == nil {
		return nil
	}
	s := g.settings.Load()
	g.endAdmin()
	disarmed := g.removed.Load()
	switch err := g.close(); {
	case disarmed:
	case err != nil:
		log.Errorf("Table inet %s could not be removed: %v", s.table, err)
	case s.onExit == backend.Keep && s.mode != "":
		log.Infof("Table inet %s stays: what no grant covers is refused (nft delete table inet %s undoes it)", s.table, s.table)
	case s.mode != "":
		log.Infof("Table inet %s is removed: everything is open", s.table)
	}
	return nil
}
