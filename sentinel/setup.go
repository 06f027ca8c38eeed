package sentinel

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/parse"
	pkgtls "github.com/coredns/coredns/plugin/pkg/tls"
	"github.com/coredns/coredns/plugin/pkg/transport"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/spelling"
	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

var log = clog.NewWithPlugin(name)

func init() {
	plugin.Register(name, setup)
	dnsserver.EnableChaos[name] = struct{}{} // for hostdns.Question
}

// setup reads one server block's directive, and has the block listen on the sentinels. It has no effect outside.
func setup(c *caddy.Controller) error {
	h, err := read(c)
	if err != nil {
		return plugin.Error(name, err)
	}
	config := dnsserver.GetConfig(c)
	if slices.ContainsFunc(config.ListenHosts, func(host string) bool { return host != "" }) {
		return h.errorf("the server block listens on the sentinels: leave bind out")
	}
	config.ListenHosts = nil
	for _, a := range h.addresses {
		config.ListenHosts = append(config.ListenHosts, a.String())
	}
	c.OnStartup(func() error { return h.start(config) })
	c.OnShutdown(func() error { h.servers.close(); return nil })
	config.AddPlugin(func(next plugin.Handler) plugin.Handler {
		// One is made for each address that is listened on.
		return &Handler{Next: next, place: h.place, addresses: h.addresses, servers: h.servers, askers: h.askers}
	})
	return nil
}

var options = []string{"from", "host", "tls", "tls_servername", "to"}

// read is what the directive says.
func read(c *caddy.Controller) (*Handler, error) {
	h := &Handler{
		addresses: hostdns.Addresses(hostdns.IPv4),
		servers:   &nameservers{config: new(tls.Config), warn: log.Warningf, start: time.Now()},
		askers:    &askers{list: net.InterfaceAddrs, now: time.Now},
	}
	n, serverName := h.servers, ""
	for i := 0; c.Next(); i++ {
		if i > 0 {
			return nil, plugin.ErrOnce
		}
		h.place = fmt.Sprintf("%s:%d", c.File(), c.Line())
		switch args := c.RemainingArgs(); {
		case len(args) > 1:
			return nil, c.ArgErr()
		case len(args) == 1 && args[0] == "ipv6":
			h.addresses = hostdns.Addresses(hostdns.IPv6)
		case len(args) == 1 && args[0] != "ipv4":
			return nil, c.Errf("%q: the sentinels are ipv4 (%v, the default) or ipv6 (%v)", args[0], hostdns.IPv4, hostdns.IPv6)
		}
		for c.NextBlock() {
			option := c.Val()
			if !slices.Contains(options, option) {
				return nil, c.Errf("unknown option %q in sentinel { }: %s", option, spelling.Hint(option, options, dnsserver.Directives, h.place))
			}
			args := c.RemainingArgs()
			if len(args) == 0 && option != "tls" {
				return nil, c.ArgErr()
			}
			var err error
			switch option {
			case "to":
				err = n.give(args)
			case "host":
				for _, path := range args {
					if !filepath.IsAbs(path) {
						err = fmt.Errorf("host %q: the path has to begin with /", path)
					}
				}
				n.files = append(n.files, args...)
			case "from":
				err = h.askers.let(args)
			case "tls":
				if n.config, err = certificates(args, dnsserver.GetConfig(c).Root); err != nil {
					err = fmt.Errorf("tls: %w", err)
				}
			case "tls_servername":
				serverName = args[0]
				if len(args) > 1 {
					return nil, c.ArgErr()
				}
			}
			if err != nil {
				return nil, c.Errf("%v", err)
			}
		}
	}
	switch {
	case len(n.given) > 0 && len(n.files) > 0:
		return nil, c.Errf("to gives nameservers instead of the machine's, and host says where the machine's are: leave one of them out")
	case len(n.files) == 0:
		n.files = []string{hostdns.Kept, hostdns.Uplinks, hostdns.Resolv}
	}
	if serverName != "" {
		n.config.ServerName = serverName
	}
	return h, nil
}

// give takes nameservers instead of the machine's.
func (n *nameservers) give(texts []string) error {
	for _, text := range texts {
		scheme, host := parse.Transport(text)
		if !slices.Contains([]string{transport.DNS, transport.TLS, transport.HTTPS, transport.QUIC}, scheme) {
			return fmt.Errorf("to %q: a nameserver is asked by dns, tls, https or quic", text)
		}
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host, _, _ = strings.Cut(strings.Trim(host, "[]"), "%")
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return fmt.Errorf("to %q is not an address: 192.0.2.53, tls://192.0.2.53%%dns.example.net, https://192.0.2.53. (A name would have to be resolved first.)", text)
		}
		if !hostdns.Askable(addr.Unmap()) {
			return fmt.Errorf("to %q is no address of a nameserver", text)
		}
		servers, err := parse.HostPortOrFile(text)
		if err != nil {
			return fmt.Errorf("to %q: %w", text, err)
		}
		n.given = append(n.given, servers...)
	}
	if len(n.given) > hostdns.Slots {
		return fmt.Errorf("to: there are %d sentinels, and %d nameservers", hostdns.Slots, len(n.given))
	}
	return nil
}

// let adds to who may ask.
func (a *askers) let(texts []string) error {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("from %q is no address and no network", text)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		a.from = append(a.from, p.Masked())
	}
	return nil
}

func certificates(files []string, root string) (*tls.Config, error) {
	files = slices.Clone(files)
	for i := range files {
		if !filepath.IsAbs(files[i]) && root != "" {
			files[i] = filepath.Join(root, files[i])
		}
	}
	return pkgtls.NewTLSConfigFromArgs(files...)
}

// errorf is an error with the place of the directive.
func (h *Handler) errorf(format string, args ...any) error {
	return plugin.Error(name, fmt.Errorf("%s: %s", h.place, fmt.Sprintf(format, args...)))
}

// start looks whether the machine is as it has to be.
func (h *Handler) start(config *dnsserver.Config) error {
	if config.Handler("cache") != nil {
		return h.errorf("leave cache out of this server block: it would give the answers of one nameserver for another, and of dead ones. (Nameservers, and systemd-resolved, have caches.)")
	}
	if config.Transport != transport.DNS {
		return h.errorf("the machine's resolver asks by plain DNS, and not by %s: leave that out of the server block's name", config.Transport)
	}
	for _, a := range h.addresses {
		if !h.askers.isOwn(a) {
			return h.errorf("this machine does not have the address %v, which has to be on lo: run ipdestinationguard-sentinel up, or have its service run before this one", a)
		}
	}
	h.servers.look()
	if text := h.servers.text(); text != "" {
		log.Infof("%v and on stand before %s", h.addresses[0], text)
	}
	return nil
}
