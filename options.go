package ipdestinationguard

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// An option is a line of the directive's block.
type option struct {
	read       func(*parser, []string) error
	repeatable bool
	perBlock   bool // each server block has it for itself
	bare       bool // it takes no value
	alone      bool // it needs none
}

var options = map[string]option{
	"mode": {read: func(p *parser, args []string) error {
		mode, err := p.only("mode", args)
		if err != nil {
			return err
		}
		return p.setMode(mode)
	}},
	"allowedIPs":        {repeatable: true, read: func(p *parser, args []string) error { return p.addPrefixes(&p.allowed, args) }},
	"allowedLocalIPs":   {repeatable: true, read: func(p *parser, args []string) error { return p.addPrefixes(&p.allowedLocal, args) }},
	"allowedGatewayIPs": {repeatable: true, read: func(p *parser, args []string) error { return p.addPrefixes(&p.allowedGateway, args) }},
	"interfaces":        {repeatable: true, read: (*parser).addInterfaces},
	"scope": {read: func(p *parser, args []string) (err error) {
		if len(args) == 2 && args[0] == scopeApplication && args[1] == "uid" {
			args, p.byUser = args[:1], true
		}
		p.scope, err = p.oneOf("scope", args,
			"any (an answer opens its addresses to all that is guarded), client (only to the machine that asked), or application (only to the unit or container that asked; application uid: to the user)",
			scopeAny, scopeClient, scopeApplication)
		return err
	}},
	"shared_resolver": {repeatable: true, read: (*parser).addShared},
	"upstream":        {repeatable: true, read: (*parser).addUpstreams},
	"capture":         {bare: true, read: func(p *parser, _ []string) error { p.settings.capture = true; return nil }},
	"linger": {read: func(p *parser, args []string) (err error) {
		text, err := p.only("linger", args)
		if err != nil {
			return err
		}
		p.settings.linger, err = p.duration("linger", text)
		return err
	}},
	"max_grants":           limit("max_grants", 1<<24, func(l *limits) *int { return &l.grants }),
	"max_grants_client":    limit("max_grants_client", 1<<24, func(l *limits) *int { return &l.client }),
	"max_grants_name":      limit("max_grants_name", 1<<24, func(l *limits) *int { return &l.name }),
	"max_mappings":         limit("max_mappings", 1<<24, func(l *limits) *int { return &l.mappings }),
	"max_addresses_answer": limit("max_addresses_answer", maxTargets, func(l *limits) *int { return &l.answer }),
	"ports":                {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addPorts(&p.policy.predicates.Ports, args) }},
	"users":                {repeatable: true, perBlock: true, read: (*parser).addUsers},
	"units":                {repeatable: true, perBlock: true, read: (*parser).addUnits},
	"dns_ports": {read: func(p *parser, args []string) error {
		ports, err := p.oneOf("dns_ports", args, "closed (grants do not open ports 53 and 853) or open", "closed", "open")
		p.dnsPorts = ports == "open"
		return err
	}},
	"trusted_forwarder": {repeatable: true, read: func(p *parser, args []string) error { return p.addPrefixes(&p.forwarders, args) }},
	"margin": {read: func(p *parser, args []string) (err error) {
		text, err := p.only("margin", args)
		if err != nil {
			return err
		}
		p.lease.Margin, err = p.duration("margin", text)
		return err
	}},
	"ttl": {read: func(p *parser, args []string) (err error) {
		p.lease.Floor, p.lease.Ceiling, err = p.ttl(args)
		return err
	}},
	"hold": {read: func(p *parser, args []string) (err error) {
		text, err := p.only("hold", args)
		if err != nil {
			return err
		}
		if p.settings.hold, err = p.duration("hold", text); err == nil && p.settings.hold == 0 {
			err = p.Err("hold 0s would withhold every answer: give it time, for example 1s")
		}
		return err
	}},
	"on_exit": {read: func(p *parser, args []string) error {
		leave, err := p.oneOf("on_exit", args, "keep (go on refusing) or remove (open everything)", "keep", "remove")
		p.onExit = backend.Leave(leave == "keep")
		return err
	}},
	"table": {read: func(p *parser, args []string) error {
		table, err := p.only("table", args)
		if err != nil {
			return err
		}
		if !tableName.MatchString(table) || len(table) > maxTableName {
			return p.Errf("table %q: a name begins with a letter and has letters, digits, _ . - and at most %d of them", table, maxTableName)
		}
		p.table = table
		return nil
	}},
	"audit":       {alone: true, read: (*parser).setAudit},
	"admin":       {read: (*parser).setAdmin},
	"denied_log":  {read: (*parser).setDeniedLog},
	"nflog_group": {read: (*parser).setGroup},
	"names":       {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addPatterns("names", &p.patterns, args) }},
	"except":      {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addPatterns("except", &p.exceptions, args) }},
	"names_file":  {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addFiles(&p.policy.names, args) }},
	"except_file": {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addFiles(&p.policy.except, args) }},
	"others": {perBlock: true, read: func(p *parser, args []string) error {
		others, err := p.oneOf("others", args, "pass (answers for other names open nothing) or refuse (they are REFUSED)", "pass", "refuse")
		p.policy.refuseOthers = others == "refuse"
		return err
	}},
	"clients": {repeatable: true, perBlock: true, read: (*parser).addClients},
	"require": {repeatable: true, perBlock: true, read: (*parser).requireOption},
	"dnssec":  {repeatable: true, perBlock: true, read: (*parser).addDNSSEC},
	"private": {repeatable: true, perBlock: true, read: (*parser).addPrivate},
	"route":   {repeatable: true, perBlock: true, read: (*parser).addRoute},
	"canary": {perBlock: true, read: func(p *parser, args []string) error {
		canary, err := p.oneOf("canary", args, "on (programs are told to stay with this resolver) or off", "on", "off")
		p.policy.canary = canary == "on"
		return err
	}},
}

// limit is an option that sets one of the limits.
func limit(name string, most int, of func(*limits) *int) option {
	return option{read: func(p *parser, args []string) error {
		text, err := p.only(name, args)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > most {
			return p.Errf("%s %q is not a number between 1 and %d", name, text, most)
		}
		*of(&p.limits) = n
		return nil
	}}
}

// What nft can read back, and the kernel keep (NFT_TABLE_MAXNAMELEN).
var tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

const maxTableName = 255

func optionNames(perBlock bool) []string {
	var names []string
	for n, o := range options {
		if o.perBlock || !perBlock {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}
