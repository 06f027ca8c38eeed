package ipdestinationguard

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	hosts "github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// upstreams are those that a server block asks, as the Corefile has it.
type upstreams struct {
	encrypted int
	plain     []string // those asked in plain text, in words
	unknown   []string // of whom it cannot be found out

	blocks  []caddyfile.ServerBlock
	path    string
	visited map[int]bool // blocks
}

// upstreamsOf are those of the server block whose directive is at a place, and of the
// blocks that it asks by loopback.
func upstreamsOf(corefile caddy.Input, place string) *upstreams {
	u := &upstreams{blocks: serverBlocks(corefile), path: corefile.Path(), visited: map[int]bool{}}
	for i := range u.blocks {
		// Two blocks may have the directive from one snippet: then it speaks of both.
		if d := u.tokens(i, name); d.Next() && fmt.Sprintf("%s:%d", d.File(), d.Line()) == place {
			u.visit(i)
		}
	}
	if len(u.visited) == 0 {
		u.unknown = append(u.unknown, "how this server block finds its answers")
	}
	return u
}

func (u *upstreams) tokens(block int, plugin string) caddyfile.Dispenser {
	return caddyfile.NewDispenserTokens(u.path, u.blocks[block].Tokens[plugin])
}

func (u *upstreams) visit(block int) {
	if u.visited[block] {
		return
	}
	u.visited[block] = true
	var all []string
	for plugin := range u.blocks[block].Tokens {
		all = append(all, plugin)
	}
	slices.Sort(all)
	for _, plugin := range all {
		switch {
		case slices.Contains(forwarders, plugin):
			u.lines(block, plugin)
		case plugin == "secondary":
			d := u.tokens(block, plugin)
			d.Next()
			u.plain = append(u.plain, fmt.Sprintf("secondary transfers its zones in plain text (%s:%d)", d.File(), d.Line()))
		case !asksNobody[plugin]:
			d := u.tokens(block, plugin)
			d.Next()
			u.unknown = append(u.unknown, fmt.Sprintf("how %s finds its answers (%s:%d)", plugin, d.File(), d.Line()))
		}
	}
}

// lines reads those of forward, grpc or sentinel.
func (u *upstreams) lines(block int, plugin string) {
	for _, l := range linesOf(&u.blocks[block], plugin, u.path) {
		all := l.args[min(1, len(l.args)):]
		tls := false // grpc says so in its block, and sentinel there whom it asks
		for _, o := range l.options {
			switch option := o[0]; {
			case plugin == "grpc" && (option == "tls" || option == "tls_servername"):
				tls = true
			case plugin == sentinelName && option == "to":
				all = append(all, o[1:]...)
			}
		}
		if plugin == sentinelName && len(all) == 0 {
			u.plain = append(u.plain, fmt.Sprintf("sentinel without a line to asks the machine's nameservers in plain text (%s)", l.place))
		}
		for _, to := range all {
			servers, err := hosts.HostPortOrFile(to) // a file has plain ones, whatever stands in front of it
			if err != nil {
				servers = []string{to} // a name, which is resolved later
			}
			for _, server := range servers {
				u.add(plugin, server, l.place, tls)
			}
		}
	}
}

func (u *upstreams) add(plugin, server, place string, tls bool) {
	scheme, host := hosts.Transport(server)
	switch {
	case tls, plugin != "grpc" && slices.Contains([]string{transport.TLS, transport.HTTPS, transport.QUIC}, scheme):
		u.encrypted++
		return
	case scheme == transport.UNIX:
		u.unknown = append(u.unknown, fmt.Sprintf("how %s asks on (%s)", server, place))
		return
	}
	ap, err := netip.ParseAddrPort(host)
	if err != nil || !ap.Addr().Unmap().IsLoopback() {
		u.plain = append(u.plain, fmt.Sprintf("%s asks %s in plain text (%s)", plugin, host, place))
		return
	}
	ours := false
	for i, b := range u.blocks {
		if slices.ContainsFunc(b.Keys, func(key string) bool { return portOf(key) == ap.Port() }) {
			ours = true
			u.visit(i)
		}
	}
	if !ours {
		u.unknown = append(u.unknown, fmt.Sprintf("how %s asks on (%s)", host, place))
	}
}

// portOf is the port that a server block's key listens on, without encryption; 0 if it
// listens on none.
func portOf(key string) uint16 {
	scheme, rest := hosts.Transport(key)
	if scheme != transport.DNS && scheme != transport.GRPC {
		return 0
	}
	text := transport.Port
	if scheme == transport.GRPC {
		text = transport.GRPCPort
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		text = rest[i+1:]
	}
	port, _ := strconv.ParseUint(text, 10, 16)
	return uint16(port)
}

// asksNobody are CoreDNS's plugins that send no questions of their own to others, and this
// one.
var asksNobody = map[string]bool{
	"root": true, "metadata": true, "cancel": true, "proxyproto": true, "quic": true, "grpc_server": true, "https": true,
	"https3": true, "timeouts": true, "multisocket": true, "reload": true, "nsid": true, "bufsize": true, "bind": true,
	"debug": true, "trace": true, "ready": true, "health": true, "pprof": true, "prometheus": true, "shed": true,
	"errors": true, "log": true, "dnstap": true, "local": true, name: true, "dns64": true, "siit": true, "any": true,
	"chaos": true, "loadbalance": true, "tsig": true, "rewrite": true, "acl": true, "cache": true, "header": true,
	"dnssec": true, "autopath": true, "minimal": true, "template": true, "transfer": true, "hosts": true, "file": true,
	"auto": true, "loop": true, "erratic": true, "whoami": true, "on": true, "sign": true, "view": true, "tls": true,
	"geoip": true,
}

// checkUpstreams holds what a server block demands of its upstreams against them.
func (p *policy) checkUpstreams(corefile caddy.Input, warn func(format string, args ...any)) error {
	option, place := "", ""
	switch {
	case p.dnssec.ad.Len() > 0 && !p.dnssec.insecure:
		option, place = "dnssec ad", p.dnssec.place
	case p.encrypted != "":
		option, place = "require encrypted", p.encrypted
	default:
		return nil
	}
	u := upstreamsOf(corefile, p.place)
	switch {
	case len(u.plain) > 0 && option == "dnssec ad":
		return fmt.Errorf("%s: dnssec ad: anybody on the way could say AD: %s. Use tls://, https:// or quic://, or write dnssec ad ... insecure, if the way is safe otherwise", place, strings.Join(u.plain, ", "))
	case len(u.plain) > 0:
		return fmt.Errorf("%s: require encrypted: %s. Use tls://, https:// or quic:// there", place, strings.Join(u.plain, ", "))
	case option == "dnssec ad" && u.encrypted == 0 && len(u.unknown) == 0:
		return fmt.Errorf("%s: dnssec ad: there is no upstream in this server block that could authenticate answers: forward to one by tls://, https:// or quic://", place)
	}
	for _, what := range u.unknown {
		warn("%s: %s cannot find out %s: see to it that it is encrypted", place, option, what)
	}
	return nil
}
