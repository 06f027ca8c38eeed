package ipdestinationguard

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	hosts "github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// destination is where a line of the Corefile forwards questions to.
type destination struct {
	netip.AddrPort
	place string // file:line
}

// serverBlocks are those of a Corefile, which has been read before: it has no errors.
func serverBlocks(corefile caddy.Input) []caddyfile.ServerBlock {
	blocks, err := caddyfile.Parse(corefile.Path(), bytes.NewReader(corefile.Body()), nil)
	if err != nil {
		return nil
	}
	return blocks
}

// A pluginLine is a line of a server block, with what stands in the block behind it.
type pluginLine struct {
	place   string // file:line
	args    []string
	options [][]string // each with its arguments
}

// linesOf reads the lines of a plugin.
func linesOf(b *caddyfile.ServerBlock, plugin, path string) (all []pluginLine) {
	d := caddyfile.NewDispenserTokens(path, b.Tokens[plugin])
	for d.Next() {
		l := pluginLine{place: fmt.Sprintf("%s:%d", d.File(), d.Line()), args: d.RemainingArgs()}
		for d.NextBlock() {
			l.options = append(l.options, append([]string{d.Val()}, d.RemainingArgs()...))
		}
		all = append(all, l)
	}
	return all
}

// destinations are those of the whole Corefile, whether their blocks are guarded or
// not: all have the same way out.
func destinations(corefile caddy.Input) (all []destination) {
	for _, b := range serverBlocks(corefile) {
		for _, plugin := range []string{"forward", "grpc"} {
			for _, l := range linesOf(&b, plugin, corefile.Path()) {
				for _, to := range l.args[min(1, len(l.args)):] {
					all = append(all, destinationsOf(to, l.place)...)
				}
			}
		}
	}
	return all
}

// destinationsOf are the addresses that to means: one, or those in a file. Names are
// resolved later, by others.
func destinationsOf(to, place string) (all []destination) {
	servers, err := hosts.HostPortOrFile(to)
	if err != nil {
		return nil
	}
	for _, s := range servers {
		scheme, hostPort := hosts.Transport(s)
		host, port, err := net.SplitHostPort(hostPort)
		if err != nil || scheme == transport.UNIX {
			continue
		}
		host, _, _ = strings.Cut(host, "%") // an IPv6 zone, or the server's name in its certificate
		addr, err := netip.ParseAddr(host)
		number, err2 := strconv.ParseUint(port, 10, 16)
		if err == nil && err2 == nil {
			all = append(all, destination{netip.AddrPortFrom(addr.Unmap(), uint16(number)), place})
		}
	}
	return all
}

// commonPorts are those of an upstream that no line of the Corefile forwards to: DNS,
// DNS over TLS or QUIC, and over HTTPS.
var commonPorts = []uint16{53, 853, 443}

// upstream is what is to be open to CoreDNS itself.
func (s *settings) upstream(all []destination) (open []netip.AddrPort) {
	for _, up := range s.upstreams {
		ports := []uint16{up.Port()}
		if up.Port() == 0 {
			ports = nil
			for _, d := range all {
				if d.Addr() == up.Addr() {
					ports = append(ports, d.Port())
				}
			}
			if len(ports) == 0 {
				ports = commonPorts
			}
		}
		for _, port := range ports {
			open = append(open, netip.AddrPortFrom(up.Addr(), port))
		}
	}
	slices.SortFunc(open, netip.AddrPort.Compare)
	return slices.Compact(open)
}

// warnUpstream tells what CoreDNS will not reach, or too many will.
func (s *settings) warnUpstream(all []destination, warn func(format string, args ...any)) {
	told := map[netip.AddrPort]bool{}
	for _, d := range all {
		open := d.Addr().IsLoopback() || contains(s.allowed, d.Addr()) || contains(s.allowedLocal, d.Addr()) ||
			slices.Contains(s.found.upstream, d.AddrPort)
		if open || told[d.AddrPort] {
			continue
		}
		told[d.AddrPort] = true
		line := d.Addr().String()
		if slices.ContainsFunc(s.upstreams, func(up netip.AddrPort) bool { return up.Addr() == d.Addr() }) {
			line = d.AddrPort.String() // other ports of it are open
		}
		warn("%s: questions are forwarded to %v, which the guard refuses. Unless it is an address of this machine, the directive at %s needs the line: upstream %s",
			d.place, d.AddrPort, s.place, line)
	}
	if self := s.found.self; (len(s.upstreams) > 0 || s.upstreamSentinel) && self.User == 0 && self.Cgroup.ID == 0 {
		warn("%s: upstream is open to every program of root, as CoreDNS runs as root and shares its cgroup: run it as a systemd service, or as a user of its own (deployment/README.md)", s.place)
	}
}

// warnInterfaces tells of interfaces that are not there: what comes in by others is not
// guarded.
func (s *settings) warnInterfaces(warn func(format string, args ...any)) {
	all, err := net.Interfaces()
	if err != nil {
		return
	}
	var there []string
	for _, i := range all {
		there = append(there, i.Name)
	}
	for _, name := range s.interfaces {
		if !slices.Contains(there, name) {
			warn("%s: interfaces %s: there is no such interface now, and what comes in by others than are named is NOT guarded. There are: %s",
				s.place, name, strings.Join(there, " "))
		}
	}
}

// capturePort is the port of this CoreDNS that clients' questions can be sent to, as
// some of the server blocks listen.
func capturePort(blocks []*serverBlock) (port uint16, err error) {
	for _, b := range blocks {
		reachable := slices.ContainsFunc(b.ListenHosts, func(host string) bool {
			addr, err := netip.ParseAddr(host)
			return err != nil || !addr.IsLoopback()
		})
		number, err := strconv.ParseUint(b.Port, 10, 16)
		if err != nil || b.Transport != transport.DNS || !reachable && len(b.ListenHosts) > 0 {
			continue
		}
		if port == 0 || number == 53 {
			port = uint16(number)
		}
	}
	if port == 0 {
		return 0, fmt.Errorf("capture: no server block with %s listens for plain DNS where clients reach it: one needs an address of this machine after bind, or no bind", name)
	}
	return port, nil
}
