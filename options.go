package ipdestinationguard

import (
	"regexp"
	"slices"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

var options = map[string]func(*parser, []string) error{
	"mode": func(p *parser, args []string) error {
		mode, err := p.only("mode", args)
		if err != nil {
			return err
		}
		return p.setMode(mode)
	},
	"allowedIPs":        func(p *parser, args []string) error { return p.addPrefixes(&p.allowed, args) },
	"allowedLocalIPs":   func(p *parser, args []string) error { return p.addPrefixes(&p.allowedLocal, args) },
	"allowedGatewayIPs": func(p *parser, args []string) error { return p.addPrefixes(&p.allowedGateway, args) },
	"interfaces":        (*parser).addInterfaces,
	"scope": func(p *parser, args []string) (err error) {
		p.scope, err = p.only("scope", args)
		if err == nil && p.scope != scopeAny && p.scope != scopeClient {
			err = p.Errf("scope %q: it is any (an answer opens its addresses to all that is guarded) or client (only to whoever asked)", p.scope)
		}
		return err
	},
	"dns_ports": func(p *parser, args []string) error {
		text, err := p.only("dns_ports", args)
		if err == nil && text != "open" && text != "closed" {
			err = p.Errf("dns_ports %q: it is closed (grants do not open ports 53 and 853) or open", text)
		}
		p.dnsPorts = text == "open"
		return err
	},
	"trusted_forwarder": func(p *parser, args []string) error { return p.addPrefixes(&p.forwarders, args) },
	"margin": func(p *parser, args []string) (err error) {
		text, err := p.only("margin", args)
		if err != nil {
			return err
		}
		p.lease.Margin, err = p.duration("margin", text)
		return err
	},
	"ttl": (*parser).setTTL,
	"hold": func(p *parser, args []string) (err error) {
		text, err := p.only("hold", args)
		if err != nil {
			return err
		}
		if p.settings.hold, err = p.duration("hold", text); err == nil && p.settings.hold == 0 {
			err = p.Err("hold 0s would withhold every answer: give it time, for example 1s")
		}
		return err
	},
	"on_exit": func(p *parser, args []string) error {
		leave, err := p.only("on_exit", args)
		switch {
		case err != nil:
			return err
		case leave == "keep":
			p.onExit = backend.Keep
		case leave == "remove":
			p.onExit = backend.Remove
		default:
			return p.Errf("on_exit %q: it is keep (go on refusing) or remove (open everything)", leave)
		}
		return nil
	},
	"table": func(p *parser, args []string) error {
		table, err := p.only("table", args)
		if err != nil {
			return err
		}
		if !tableName.MatchString(table) || len(table) > maxTableName {
			return p.Errf("table %q: a name begins with a letter and has letters, digits, _ . - and at most %d of them", table, maxTableName)
		}
		p.table = table
		return nil
	},
	"names":       func(p *parser, args []string) error { p.patterns = append(p.patterns, args...); return nil },
	"except":      func(p *parser, args []string) error { p.exceptions = append(p.exceptions, args...); return nil },
	"names_file":  func(p *parser, args []string) error { return p.addFiles(&p.policy.names, args) },
	"except_file": func(p *parser, args []string) error { return p.addFiles(&p.policy.except, args) },
	"others": func(p *parser, args []string) error {
		others, err := p.only("others", args)
		if err == nil && others != "pass" && others != "refuse" {
			err = p.Errf("others %q: it is pass (answers for other names open nothing) or refuse (they are REFUSED)", others)
		}
		p.policy.refuseOthers = others == "refuse"
		return err
	},
	"private": (*parser).addPrivate,
	"canary": func(p *parser, args []string) error {
		canary, err := p.only("canary", args)
		switch {
		case err != nil:
			return err
		case canary != "on" && canary != "off":
			return p.Errf("canary %q: it is on (programs are told to stay with this resolver) or off", canary)
		}
		p.policy.canary = canary == "on"
		return nil
	},
}

var repeatable = map[string]bool{"allowedIPs": true, "allowedLocalIPs": true, "allowedGatewayIPs": true, "interfaces": true, "trusted_forwarder": true, "private": true, "names": true, "except": true, "names_file": true, "except_file": true}

// perBlock are the options that each server block has for itself.
var perBlock = map[string]bool{"names": true, "except": true, "names_file": true, "except_file": true, "others": true, "private": true, "canary": true}

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
