package ipdestinationguard

import (
	"net/netip"
	"slices"
	"strings"
)

// setEgress reads the source addresses, or that they are those of the interface.
func (p *parser) setEgress(r *namedRoute, args []string) error {
	if len(args) == 1 && args[0] == "masquerade" {
		r.masquerade = true
		return nil
	}
	for _, arg := range args {
		addr, err := netip.ParseAddr(arg)
		addr = addr.Unmap()
		switch {
		case arg == "masquerade":
			return p.Errf("egress %s: it is either masquerade or addresses, not both", strings.Join(args, " "))
		case err != nil:
			return p.noEgress(arg)
		case addr.Zone() != "", addr.IsUnspecified(), addr.IsMulticast(), addr.IsLoopback(), addr.IsLinkLocalUnicast():
			return p.Errf("egress %s: nobody elsewhere can answer such an address", arg)
		case slices.ContainsFunc(r.egress, func(e netip.Addr) bool { return e.Is4() == addr.Is4() }):
			return p.Errf("egress %s is a second address of its IP version: for some names a second route can have it", arg)
		}
		r.egress = append(r.egress, addr)
	}
	slices.SortFunc(r.egress, netip.Addr.Compare)
	return nil
}

// noEgress says what is wrong with what is no address.
func (p *parser) noEgress(arg string) error {
	text, _, _ := strings.Cut(strings.Trim(arg, ",;"), "/")
	if ap, err := netip.ParseAddrPort(text); err == nil {
		text = ap.Addr().String()
	}
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return p.Errf("egress %q: write the address alone: %s", arg, addr)
	}
	if p.interfaceName(arg) == nil && !numeric(arg) {
		return p.Errf("egress %q is not an address of this machine, and not the word masquerade; an interface belongs in: out %[1]s", arg)
	}
	return p.Errf("egress %q is not an address of this machine, and not the word masquerade", arg)
}
