package ipdestinationguard

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coredns/caddy"
)

// parse reads the directive of one server block and touches nothing. Without any
// settings it returns nil for them: the block joins the guard that another one sets
// up, with a policy of its own.
func parse(c *caddy.Controller) (*settings, *policy, error) {
	var read *parser
	for c.Next() {
		switch {
		case c.Val() == "{":
			return nil, nil, c.Errf("the { of a block belongs at the end of the line before, as in: route github.com {")
		case read != nil:
			return nil, nil, c.Errf("%s stands twice in this server block, first at %s", name, read.policy.place)
		}
		read = &parser{Controller: c, settings: defaultSettings, policy: defaultPolicy, seen: map[string]int{}, blocks: optionBlocks()}
		read.settings.place, read.policy.place = here(c), here(c)
		if err := read.directive(); err != nil {
			return nil, nil, err
		}
	}
	if read != nil {
		if err := read.settleNames(); err != nil {
			return nil, nil, err
		}
		if err := read.settleRoutes(); err != nil {
			return nil, nil, err
		}
		if err := read.settleDNSSEC(); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case read == nil:
		return nil, nil, c.Errf("no %s", name)
	case !read.sets():
		return nil, &read.policy, nil
	case read.mode == "":
		option := read.setting()
		return nil, nil, read.errAt(option, "%s is a setting of the whole guard: say the mode here as well (one of %s), or write it in the server block that says the mode. Without a mode there may be only %s",
			option, strings.Join(modes, ", "), strings.Join(optionNames(true), ", "))
	}
	if err := read.settleScope(); err != nil {
		return nil, nil, err
	}
	if err := read.settleLimits(); err != nil {
		return nil, nil, err
	}
	read.warnUnused()
	return &read.settings, &read.policy, nil
}

func here(c *caddy.Controller) string { return fmt.Sprintf("%s:%d", c.File(), c.Line()) }

type parser struct {
	*caddy.Controller
	settings
	policy policy
	seen   map[string]int // options given, and the line of each

	patterns, exceptions []string // of names

	blocks []optionBlock // for what is wrong in one, and right in another
}

// sets reports whether the directive says anything of what all blocks share.
func (p *parser) sets() bool { return p.setting() != "" }

// setting is the first option of those that all blocks share.
func (p *parser) setting() (first string) {
	for name, line := range p.seen {
		if !options[name].perBlock && (first == "" || line < p.seen[first]) {
			first = name
		}
	}
	return first
}

// errAt is an error with the place of an option that has been read.
func (p *parser) errAt(option, format string, args ...any) error {
	return fmt.Errorf("%s:%d - Error during parsing: %s", p.File(), p.seen[option], fmt.Sprintf(format, args...))
}

// directive reads `ipdestinationguard [MODE [ALLOWED...]] [{ options }]`.
func (p *parser) directive() error {
	if args := p.RemainingArgs(); len(args) > 0 {
		p.seen["mode"] = p.Line()
		if err := p.setMode(args[0]); err != nil {
			return err
		}
		if err := p.addPrefixes(&p.allowed, args[1:]); err != nil {
			return err
		}
	}
	for p.NextBlock() {
		name := p.Val()
		option, known := options[name]
		if !known {
			return p.unknown(name, inGuard, p.policy.place)
		}
		if first := p.seen[name]; first != 0 && !option.repeatable {
			return p.Errf("%s is given twice, first in line %d", name, first)
		}
		p.seen[name] = p.Line()
		args := p.RemainingArgs()
		switch {
		case len(args) == 0 && !option.bare && !option.alone:
			return p.Errf("%s needs a value", name)
		case len(args) > 0 && option.bare:
			return p.Errf("%s takes no value, not %q: with the word it is on, without it off", name, strings.Join(args, " "))
		}
		if err := option.read(p, args); err != nil {
			return err
		}
	}
	return nil
}

// only returns the one value of an option.
func (p *parser) only(option string, args []string) (string, error) {
	if len(args) > 1 {
		return "", p.Errf("%s takes one value, not %q", option, strings.Join(args, " "))
	}
	return args[0], nil
}

// oneOf returns the one value of an option that has a choice of words.
func (p *parser) oneOf(option string, args []string, help string, words ...string) (string, error) {
	word, err := p.only(option, args)
	if err == nil && !slices.Contains(words, word) {
		err = p.Errf("%s %q: it is %s", option, word, help)
	}
	return word, err
}

func (p *parser) setMode(mode string) error {
	if p.mode != "" {
		return p.Errf("mode is given twice: %s and %s", p.mode, mode)
	}
	if !slices.Contains(modes, mode) {
		return p.Errf("unknown mode %q: it is one of %s", mode, strings.Join(modes, ", "))
	}
	p.mode = mode
	return nil
}

// settleScope fills in the default, which depends on the mode.
func (p *parser) settleScope() error {
	switch {
	case p.scope == "" && p.gateway():
		p.scope = scopeClient
	case p.scope == "":
		p.scope = scopeAny
	case p.scope == scopeClient && !p.gateway():
		return p.errAt("scope", "scope client is for the clients of a gateway: in mode %s there are none (leave it out)", p.mode)
	case p.scope == scopeApplication && !p.local():
		return p.errAt("scope", "scope application is for programs of this machine: in mode %s they are not guarded (write client)", p.mode)
	}
	return nil
}

// settleLimits fills in those that are not given: the default, or less where a limit
// for more leaves no room for it.
func (p *parser) settleLimits() error {
	l, room, of := &p.limits, 0, ""
	for _, limit := range []struct {
		option string
		value  *int
		preset int
	}{
		{"max_grants", &l.grants, defaultLimits.grants},
		{"max_grants_client", &l.client, defaultLimits.client},
		{"max_grants_name", &l.name, defaultLimits.name},
		{"max_addresses_answer", &l.answer, defaultLimits.answer},
	} {
		if *limit.value == 0 {
			if *limit.value = limit.preset; of != "" {
				*limit.value = min(limit.preset, room)
			}
		}
		if of != "" && *limit.value > room {
			return p.errAt(limit.option, "%s %d is more than %s %d leaves room for: lower the one or raise the other", limit.option, *limit.value, of, room)
		}
		room, of = *limit.value, limit.option
	}
	if l.mappings == 0 {
		l.mappings = defaultLimits.mappings
	}
	return nil
}

func (p *parser) warn(format string, args ...any) {
	p.policy.warnings = append(p.policy.warnings, here(p.Controller)+": "+fmt.Sprintf(format, args...))
}

// warnUnused tells of lists that the mode has no chain for.
func (p *parser) warnUnused() {
	tell := func(option, text string) {
		p.policy.warnings = append(p.policy.warnings, fmt.Sprintf("%s:%d: %s %s", p.File(), p.seen[option], option, text))
	}
	unused := func(given bool, option string) {
		if given {
			tell(option, "has no effect in mode "+p.mode)
		}
	}
	unused(!p.local() && len(p.allowedLocal) > 0, "allowedLocalIPs")
	unused(!p.gateway() && len(p.allowedGateway) > 0, "allowedGatewayIPs")
	unused(!p.gateway() && len(p.interfaces) > 0, "interfaces")
	unused(!p.local() && len(p.upstreams) > 0, "upstream")
	unused(!p.gateway() && p.settings.capture, "capture")
	unused(p.operation.audit == (audit{true, false}) && !p.local() || p.operation.audit == (audit{false, true}) && !p.gateway(), "audit")
	if (p.scope == scopeAny || !p.gateway()) && len(p.forwarders) > 0 {
		tell("trusted_forwarder", "has no effect: all clients are one")
	}
	if p.scope != scopeApplication && !p.shared.empty() {
		tell("shared_resolver", "has no effect without scope application")
	}
	if p.settings.capture && p.gateway() && len(p.interfaces) == 0 {
		tell("capture", "without interfaces also takes DNS that comes from outside: name the interfaces of your clients")
	}
}
