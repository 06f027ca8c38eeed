package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/names"
)

// parse reads the directive of one server block and touches nothing. Without any
// settings it returns nil for them: the block joins the guard that another one sets
// up, with a policy of its own.
func parse(c *caddy.Controller) (*settings, *policy, error) {
	var read *parser
	for c.Next() {
		if read != nil {
			return nil, nil, c.Errf("%s stands twice in this server block, first at %s", name, read.policy.place)
		}
		read = &parser{Controller: c, settings: defaultSettings, policy: defaultPolicy, seen: map[string]bool{}}
		read.settings.place, read.policy.place = here(c), here(c)
		if err := read.directive(); err != nil {
			return nil, nil, err
		}
	}
	if read != nil {
		if err := read.settleNames(); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case read == nil:
		return nil, nil, c.Errf("no %s", name)
	case !read.sets():
		return nil, &read.policy, nil
	case read.mode == "":
		return nil, nil, c.Errf("%s at %s says no mode: one of %s is needed", name, read.policy.place, strings.Join(modes, ", "))
	}
	if err := read.settleScope(); err != nil {
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
	seen   map[string]bool // options given

	patterns, exceptions []string // of names
}

// sets reports whether the directive says anything of what all blocks share.
func (p *parser) sets() bool {
	for option := range p.seen {
		if !perBlock[option] {
			return true
		}
	}
	return false
}

// directive reads `ipdestinationguard [MODE [ALLOWED...]] [{ options }]`.
func (p *parser) directive() error {
	if args := p.RemainingArgs(); len(args) > 0 {
		p.seen["mode"] = true
		if err := p.setMode(args[0]); err != nil {
			return err
		}
		if err := p.addPrefixes(&p.allowed, args[1:]); err != nil {
			return err
		}
	}
	for p.NextBlock() {
		option := p.Val()
		parse, known := options[option]
		if !known {
			return p.Errf("unknown option %q: there are %s", option, strings.Join(optionNames(), ", "))
		}
		if p.seen[option] && !repeatable[option] {
			return p.Errf("%s is given twice", option)
		}
		p.seen[option] = true
		args := p.RemainingArgs()
		if len(args) == 0 {
			return p.Errf("%s needs a value", option)
		}
		if err := parse(p, args); err != nil {
			return err
		}
	}
	return nil
}

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

// only returns the one value of an option.
func (p *parser) only(option string, args []string) (string, error) {
	if len(args) > 1 {
		return "", p.Errf("%s takes one value, not %q", option, strings.Join(args, " "))
	}
	return args[0], nil
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

// maxDuration keeps sums far from overflow, and typing errors out.
const maxDuration = 366 * 24 * time.Hour

func (p *parser) duration(option, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if _, number := strconv.Atoi(text); number == nil && text != "0" {
		return 0, p.Errf("%s %q has no unit: write %ss for seconds", option, text, text)
	}
	switch {
	case err != nil:
		return 0, p.Errf("%s %q is not a duration such as 30s, 5m or 24h", option, text)
	case d < 0 || d > maxDuration:
		return 0, p.Errf("%s %q is not between 0s and %v", option, text, maxDuration)
	}
	return d, nil
}

func (p *parser) setTTL(args []string) (err error) {
	if len(args) != 2 {
		return p.Errf("ttl takes two values, FLOOR and CEILING, not %q", strings.Join(args, " "))
	}
	if p.lease.Floor, err = p.duration("ttl", args[0]); err != nil {
		return err
	}
	if p.lease.Ceiling, err = p.duration("ttl", args[1]); err != nil {
		return err
	}
	switch {
	case p.lease.Floor > p.lease.Ceiling:
		return p.Errf("ttl %s %s: the floor is above the ceiling", args[0], args[1])
	case p.lease.Ceiling < time.Second:
		return p.Errf("ttl %s %s: the ceiling is under a second", args[0], args[1])
	}
	return nil
}

// addPrefixes reads addresses and networks.
func (p *parser) addPrefixes(list *[]netip.Prefix, texts []string) error {
	for _, text := range texts {
		prefix, err := parsePrefix(text)
		if err != nil {
			return p.Err(err.Error())
		}
		if masked := prefix.Masked(); masked != prefix {
			p.warn("%s means all of %s", text, masked)
			prefix = masked
		}
		*list = append(*list, prefix)
	}
	return nil
}

// addPrivate reads names and the networks that they may have addresses of.
// addFiles takes files of names, which have to be there and right. The server
// follows them once it starts.
func (p *parser) addFiles(f *followed, paths []string) error {
	for _, path := range paths {
		if root := dnsserver.GetConfig(p.Controller).Root; root != "" && !filepath.IsAbs(path) {
			path = filepath.Join(root, path)
		}
		text, err := os.Open(path)
		if err != nil {
			return p.Err(err.Error())
		}
		_, err = names.Read(text)
		text.Close()
		if err != nil {
			return p.Errf("%s: %v", path, err)
		}
		f.paths = append(f.paths, path)
	}
	return nil
}

// settleNames reads the patterns of all lines together.
func (p *parser) settleNames() (err error) {
	if p.policy.names.list, err = names.Parse(p.patterns...); err != nil {
		return p.Errf("names: %v", err)
	}
	if p.policy.except.list, err = names.Parse(p.exceptions...); err != nil {
		return p.Errf("except: %v", err)
	}
	if p.policy.refuseOthers && p.policy.names.empty() && p.policy.except.empty() {
		return p.Errf("others refuse: which names are not others? Say so with names or except")
	}
	return nil
}

func (p *parser) addPrivate(args []string) (err error) {
	patterns := args
	if i := slices.IndexFunc(args, looksNumeric); i >= 0 {
		patterns = args[:i]
	}
	var r rule
	for _, arg := range args[len(patterns):] {
		if !looksNumeric(arg) {
			return p.Errf("private: %q stands behind an address: write the names first, or a line for each", arg)
		}
		if err := p.addPrefixes(&r.networks, []string{arg}); err != nil {
			return err
		}
	}
	if len(patterns) == 0 {
		return p.Errf("private %s says no name: whose addresses are these? For every name write private ** %[1]s", strings.Join(args, " "))
	}
	if r.names, err = names.Parse(patterns...); err != nil {
		return p.Errf("private: %v", err)
	}
	p.policy.private = append(p.policy.private, r)
	return nil
}

// looksNumeric reports whether text must be meant as an address or a network: no
// top-level domain is a number.
func looksNumeric(text string) bool {
	last := text[strings.LastIndexByte(text, '.')+1:]
	return strings.ContainsAny(text, ":/") || last != "" && strings.Trim(last, "0123456789") == ""
}

// parsePrefix reads an address or a network; IPv4-mapped ones become IPv4.
func parsePrefix(text string) (netip.Prefix, error) {
	host, length, network := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not an IP address or a network such as 192.0.2.0/24 or 2001:db8::/32", text)
	case addr.Zone() != "":
		return netip.Prefix{}, fmt.Errorf("%q has a zone: an address is allowed on all interfaces, leave %%%s out", text, addr.Zone())
	}
	bits := addr.BitLen()
	if network {
		// ParseUint alone would take +8 and 08.
		if bits, err = strconv.Atoi(length); err != nil || strconv.Itoa(bits) != length || bits < 0 {
			return netip.Prefix{}, fmt.Errorf("%q: the length of the network, %q, is not a number", text, length)
		}
	}
	switch {
	case bits > addr.BitLen() && addr.Is4():
		return netip.Prefix{}, fmt.Errorf("%q mixes up the address families: an IPv4 network has at most 32 bits", text)
	case bits > addr.BitLen():
		return netip.Prefix{}, fmt.Errorf("%q: an IPv6 network has at most 128 bits", text)
	case addr.Is4In6() && bits < 96:
		return netip.Prefix{}, fmt.Errorf("%q mixes up the address families: write the IPv4 network, %s/N, or an IPv4-mapped one of 96 bits or more", text, addr.Unmap())
	case addr.Is4In6():
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, bits), nil
}

// addInterfaces takes what the kernel takes as a name (dev_valid_name), and no
// wildcards.
func (p *parser) addInterfaces(names []string) error {
	for _, n := range names {
		switch {
		case len(n) > 15:
			return p.Errf("interface name %q has %d bytes: the kernel has room for 15", n, len(n))
		case n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/: \t\n"):
			return p.Errf("%q cannot be the name of an interface", n)
		case strings.ContainsAny(n, `*"`):
			return p.Errf("interface name %q: there are no wildcards, name every interface", n)
		case slices.Contains(p.interfaces, n):
			continue // the kernel wants each once
		}
		p.interfaces = append(p.interfaces, n)
	}
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
		return p.Errf("scope client is for the clients of a gateway: in mode %s there are none (leave it out)", p.mode)
	}
	return nil
}

func (p *parser) warn(format string, args ...any) {
	p.policy.warnings = append(p.policy.warnings, here(p.Controller)+": "+fmt.Sprintf(format, args...))
}

// warnUnused tells of lists that the mode has no chain for.
func (p *parser) warnUnused() {
	unused := func(list bool, option string) {
		if list {
			p.policy.warnings = append(p.policy.warnings, fmt.Sprintf("%s: %s has no effect in mode %s", p.settings.place, option, p.mode))
		}
	}
	unused(!p.local() && len(p.allowedLocal) > 0, "allowedLocalIPs")
	unused(!p.gateway() && len(p.allowedGateway) > 0, "allowedGatewayIPs")
	unused(!p.gateway() && len(p.interfaces) > 0, "interfaces")
	unused(p.scope == scopeAny && len(p.forwarders) > 0, "trusted_forwarder")
}
