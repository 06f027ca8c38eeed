package ipdestinationguard

import (
	"regexp"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// An option is a line of the directive's block.
type option struct {
	read       func(*parser, []string) error
	repeatable bool
	perBlock   bool // each server block has it for itself
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
		p.scope, err = p.oneOf("scope", args,
			"any (an answer opens its addresses to all that is guarded) or client (only to whoever asked)", scopeAny, scopeClient)
		return err
	}},
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
	"ttl": {read: (*parser).setTTL},
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
	"names":       {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { p.patterns = append(p.patterns, args...); return nil }},
	"except":      {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { p.exceptions = append(p.exceptions, args...); return nil }},
	"names_file":  {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addFiles(&p.policy.names, args) }},
	"except_file": {repeatable: true, perBlock: true, read: func(p *parser, args []string) error { return p.addFiles(&p.policy.except, args) }},
	"others": {perBlock: true, read: func(p *parser, args []string) error {
		others, err := p.oneOf("others", args, "pass (answers for other names open nothing) or refuse (they are REFUSED)", "pass", "refuse")
		p.policy.refuseOthers = others == "refuse"
		return err
	}},
	"private": {repeatable: true, perBlock: true, read: (*parser).addPrivate},
	"canary": {perBlock: true, read: func(p *parser, args []string) error {
		canary, err := p.oneOf("canary", args, "on (programs are told to stay with this resolver) or off", "on", "off")
		p.policy.canary = canary == "on"
		return err
	}},
}

// What nft can read back, and the kernel keep (NFT_TABLE_MAXNAMELEN).
var tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

const maxTableName = 255

func optionNames() []string {
	var names []string
	for n := range options {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
