package ipdestinationguard

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/names"
)

// addFiles takes files of names, which have to be there and right. The server
// follows them once it starts.
func (p *parser) addFiles(f *followed, paths []string) error {
	for _, path := range paths {
		file, err := names.OpenFile(p.rooted(path))
		if err != nil {
			return p.Err(err.Error())
		}
		f.files = append(f.files, file)
	}
	return nil
}

// rooted is a path from where the plugin root says.
func (p *parser) rooted(path string) string {
	if root := dnsserver.GetConfig(p.Controller).Root; root != "" && !filepath.IsAbs(path) {
		return filepath.Join(root, path)
	}
	return path
}

// addPatterns takes the patterns of one line.
func (p *parser) addPatterns(option string, list *[]string, args []string) error {
	if err := p.areNames(option, args); err != nil {
		return err
	}
	if _, err := names.Parse(args...); err != nil {
		return p.Errf("%s: %v", option, err)
	}
	*list = append(*list, args...)
	return nil
}

// areNames refuses addresses, which as patterns would match nothing, without a word.
func (p *parser) areNames(option string, patterns []string) error {
	for _, text := range patterns {
		if _, err := netip.ParseAddr(text); err == nil || numeric(text) {
			return p.Errf("%s %q is an address or a network, or part of one, and no name ends like that: write the name that is looked up", option, text)
		}
	}
	return nil
}

// settleNames makes lists of the patterns of all lines together.
func (p *parser) settleNames() (err error) {
	if p.policy.names.list, err = names.Parse(p.patterns...); err != nil {
		return err
	}
	if p.policy.except.list, err = names.Parse(p.exceptions...); err != nil {
		return err
	}
	if p.policy.refuseOthers && p.policy.names.empty() && p.policy.except.empty() {
		return p.errAt("others", "others refuse: which names are not others? Say so with names or except")
	}
	return nil
}

// addPrivate reads names and the networks that they may have addresses of.
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
	for _, label := range patterns[1:] {
		if len(r.networks) == 0 && !strings.ContainsAny(label, ".*?") {
			p.warn("private: %s is read as a name; an interface cannot stand here, and no network is named. If it is a name, write %[1]s.", label)
		}
	}
	p.policy.private = append(p.policy.private, r)
	return nil
}

// looksNumeric reports whether text must be meant as an address or a network.
func looksNumeric(text string) bool { return strings.ContainsAny(text, ":/") || numeric(text) }

// numeric reports whether text must be meant as an IPv4 address or network, be it mistyped
// (192.168.1.5-9, 192.168.1.*, 192.168.1.x): no top-level domain is a number, and each has
// two letters or more.
func numeric(text string) bool {
	text = strings.TrimSuffix(text, ".")
	first, _, _ := strings.Cut(text, ".")
	last := text[strings.LastIndexByte(text, '.')+1:]
	letters := strings.IndexFunc(last, unicode.IsLetter) != strings.LastIndexFunc(last, unicode.IsLetter)
	return digits(last) || digits(first) && !letters
}

func digits(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }
