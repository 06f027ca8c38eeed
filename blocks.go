package ipdestinationguard

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	hosts "github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// serverBlock is a server block that has the directive.
type serverBlock struct {
	*dnsserver.Config
	place    string   // of the directive
	index    int      // in the Corefile
	zones    []string // dns://example.org.:53
	forwards []forwarding
}

// forwarding is a line by which a server block has questions answered by others.
type forwarding struct {
	plugin, line, place string
	zone                string // what is forwarded
}

// forwarders are the plugins that do so.
var forwarders = []string{"forward", "grpc", sentinelName}

// readForwards fills in what blocks forward, as it stands in their Corefile.
func readForwards(corefile caddy.Input, blocks []*serverBlock) {
	all := serverBlocks(corefile)
	for _, b := range blocks {
		if b.index >= len(all) {
			continue
		}
		for _, name := range forwarders {
			for _, l := range linesOf(&all[b.index], name, corefile.Path()) {
				f := forwarding{plugin: name, place: l.place, line: strings.Join(append([]string{name}, l.args...), " ")}
				if name != sentinelName && len(l.args) > 0 {
					f.zone = l.args[0]
				}
				b.forwards = append(b.forwards, f)
			}
		}
	}
}

// listens are the addresses of a block.
func (b *serverBlock) listens() []string {
	all := []string{}
	for _, zone := range b.zones {
		scheme, rest := hosts.Transport(zone)
		port := rest[strings.LastIndexByte(rest, ':')+1:]
		for _, host := range b.ListenHosts {
			all = addSorted(all, scheme+"://"+net.JoinHostPort(host, port))
		}
	}
	return all
}

// Blocks implements [admin.Guard].
func (a *administration) Blocks(ctx context.Context) (admin.Blocks, error) {
	list := admin.Blocks{Blocks: []admin.Block{}}
	var asked sync.WaitGroup
	for _, b := range a.guard.settings.Load().found.blocks {
		told := admin.Block{Place: b.place, Listens: b.listens(), Forwards: []admin.Forward{}}
		questions := b.questions()
		for _, q := range questions {
			told.Forwards = append(told.Forwards, q.Forward)
		}
		for i, q := range questions {
			asked.Go(func() { q.ask(ctx, &told.Forwards[i]) })
		}
		list.Blocks = append(list.Blocks, told)
	}
	asked.Wait()
	return list, nil
}

// standIn is a plugin that asks a nameserver for each address that it is asked at.
type standIn interface {
	Nameservers() map[netip.Addr]string
}

// upstreamQuestion is one to those who answer for a server block. It is for CoreDNS itself to ask
// them: upstream is open to nobody else, and only the plugins know how they are asked.
type upstreamQuestion struct {
	admin.Forward
	handler plugin.Handler
	zone    string
	at      netip.Addr // where it is asked, if that matters
}

func (b *serverBlock) questions() (all []upstreamQuestion) {
	for _, f := range b.forwards {
		q := upstreamQuestion{Forward: admin.Forward{Place: f.place, Line: f.line}, handler: b.Handler(f.plugin), zone: "."}
		if q.handler == nil {
			continue
		}
		if s, ok := q.handler.(standIn); ok {
			for addr, nameserver := range s.Nameservers() {
				one := q
				one.at, one.Line = addr, fmt.Sprintf("%s: %s (%v)", f.line, nameserver, addr)
				all = append(all, one)
			}
			continue
		}
		if zones := plugin.Host(f.zone).NormalizeExact(); len(zones) > 0 {
			q.zone = zones[0]
		}
		all = append(all, q)
	}
	return all
}

// askedWithin is how long an answer from upstream may take, about: plugins try again in that time.
const askedWithin = 5 * time.Second

// ask asks, past this server block's cache and the guard. No other cache knows the name, either.
func (q *upstreamQuestion) ask(ctx context.Context, f *admin.Forward) {
	ctx, stop := context.WithTimeout(ctx, askedWithin)
	defer stop()
	r := new(dns.Msg).SetQuestion(fmt.Sprintf("doctor-%x.%s", rand.Uint64(), strings.TrimPrefix(q.zone, ".")), dns.TypeNS)
	r.SetEdns0(1232, false)
	w := &ownWriter{at: cmp.Or(q.at, netip.IPv6Loopback())}
	start := time.Now()
	rcode, err := q.handler.ServeDNS(ctx, w, r)
	f.Seconds = time.Since(start).Seconds()
	switch {
	case w.answer != nil:
		f.Answer, f.Text = dns.RcodeToString[w.answer.Rcode], extraText(w.answer)
	case err != nil:
		f.Text = err.Error()
	case rcode != dns.RcodeSuccess:
		f.Text = dns.RcodeToString[rcode]
	default:
		f.Text = "it is dead"
	}
}

// extraText is what an answer says for people (RFC 8914).
func extraText(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok && e.ExtraText != "" {
				return e.ExtraText
			}
		}
	}
	return ""
}

// ownWriter takes the answer to a question of this process.
type ownWriter struct {
	at     netip.Addr
	answer *dns.Msg
}

var _ dns.ResponseWriter = (*ownWriter)(nil)

// LocalAddr implements dns.ResponseWriter. IPv6 stand-ins are asked by TCP.
func (w *ownWriter) LocalAddr() net.Addr {
	if w.at.Is6() && !w.at.IsLoopback() {
		return &net.TCPAddr{IP: w.at.AsSlice()}
	}
	return &net.UDPAddr{IP: w.at.AsSlice()}
}

// RemoteAddr implements dns.ResponseWriter.
func (w *ownWriter) RemoteAddr() net.Addr { return w.LocalAddr() }

// WriteMsg implements dns.ResponseWriter.
func (w *ownWriter) WriteMsg(m *dns.Msg) error {
	w.answer = m
	return nil
}

// Write implements dns.ResponseWriter.
func (w *ownWriter) Write(b []byte) (int, error) {
	w.answer = new(dns.Msg)
	return len(b), w.answer.Unpack(b)
}

// Close implements dns.ResponseWriter.
func (*ownWriter) Close() error { return nil }

// TsigStatus implements dns.ResponseWriter.
func (*ownWriter) TsigStatus() error { return nil }

// TsigTimersOnly implements dns.ResponseWriter.
func (*ownWriter) TsigTimersOnly(bool) {}

// Hijack implements dns.ResponseWriter.
func (*ownWriter) Hijack() {}
