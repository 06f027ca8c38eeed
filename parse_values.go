package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxDuration keeps sums far from overflow, and typing errors out.
const maxDuration = 366 * 24 * time.Hour

func (p *parser) duration(option, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if _, number := strconv.Atoi(text); number == nil && text != "0" {
		return 0, p.Errf("%s %q has no unit: write %ss for seconds", option, text, text)
	}
	switch {
	case err != nil && strings.HasSuffix(text, "d"):
		return 0, p.Errf("%s %q: days are not known: a day is 24h", option, text)
	case err != nil:
		return 0, p.Errf("%s %q is not a duration such as 30s, 5m or 24h", option, text)
	case d < 0 || d > maxDuration:
		return 0, p.Errf("%s %q is not between 0s and %v", option, text, maxDuration)
	}
	return d, nil
}

// ttl reads the least and the most of a TTL.
func (p *parser) ttl(args []string) (floor, ceiling time.Duration, err error) {
	if len(args) != 2 {
		return 0, 0, p.Errf("ttl takes two values, FLOOR and CEILING, not %q", strings.Join(args, " "))
	}
	if floor, err = p.duration("ttl", args[0]); err != nil {
		return 0, 0, err
	}
	if ceiling, err = p.duration("ttl", args[1]); err != nil {
		return 0, 0, err
	}
	switch {
	case floor > ceiling:
		return 0, 0, p.Errf("ttl %s %s: the floor is above the ceiling", args[0], args[1])
	case ceiling < time.Second:
		return 0, 0, p.Errf("ttl %s %s: the ceiling is under a second", args[0], args[1])
	}
	return floor, ceiling, nil
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
		return netip.Prefix{}, fmt.Errorf("%q: an IPv4 network has at most 32 bits", text)
	case bits > addr.BitLen():
		return netip.Prefix{}, fmt.Errorf("%q: an IPv6 network has at most 128 bits", text)
	case addr.Is4In6() && bits < 96:
		return netip.Prefix{}, fmt.Errorf("%q mixes up the address families: write the IPv4 network, %s/N, or an IPv4-mapped one of 96 bits or more", text, addr.Unmap())
	case addr.Is4In6():
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, bits), nil
}

// addUpstreams reads addresses, with or without a port, and the word for nameservers that change.
func (p *parser) addUpstreams(texts []string) error {
	for _, text := range texts {
		if text == sentinelName {
			p.upstreamSentinel = true
			continue
		}
		ap, err := netip.ParseAddrPort(text)
		if err != nil {
			addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
			if err != nil {
				return p.Errf("upstream %q is not an address, or one with a port: 192.0.2.53, 192.0.2.53:853, [2001:db8::53]:853", text)
			}
			ap = netip.AddrPortFrom(addr, 0)
		} else if ap.Port() == 0 {
			return p.Errf("upstream %q: there is no port 0", text)
		}
		if ap.Addr().Zone() != "" {
			return p.Errf("upstream %q has a zone: leave %%%s out", text, ap.Addr().Zone())
		}
		p.upstreams = append(p.upstreams, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return nil
}

func (p *parser) addInterfaces(names []string) error {
	for _, n := range names {
		if err := p.interfaceName(n); err != nil {
			return err
		}
		if !slices.Contains(p.interfaces, n) { // the kernel wants each once
			p.interfaces = append(p.interfaces, n)
		}
	}
	return nil
}

// interfaceName takes what the kernel takes as a name (dev_valid_name), and no wildcards.
func (p *parser) interfaceName(n string) error {
	switch {
	case len(n) > 15:
		return p.Errf("interface name %q has %d bytes: the kernel has room for 15", n, len(n))
	case n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/: \t\n"):
		return p.Errf("%q cannot be the name of an interface", n)
	case strings.ContainsAny(n, `*"`):
		return p.Errf("interface name %q: there are no wildcards, name every interface", n)
	}
	return nil
}
