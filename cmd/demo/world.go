package main

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A world is three hosts in a row:
//
//	client --- guard --- world
//
// CoreDNS runs on guard. The world is all servers there are: each of its
// addresses answers DNS, and sends back whatever it gets on port 443.
type world struct {
	lab                  *netlab.Lab
	client, guard, world *netlab.Host
	overheard            atomic.Uint64 // questions of the intruder that got out
}

const (
	resolver = "192.0.2.2"
	gateway  = "192.168.50.1"
	shop     = "www.shop.example."
	shop4    = "198.18.1.1"
	shop6    = "2001:db8:18::1:1"
	evil     = "drop.evil.example."
	evil4    = "198.18.66.66"
	stranger = "198.18.53.53" // a resolver that nobody here has chosen
	port     = 443
	ttl      = 2 // seconds, of all names
	margin   = 1 // seconds, as the Corefiles say
)

func newWorld() (*world, error) {
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	w := &world{lab: lab}
	if err := w.build(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return w, nil
}

func (w *world) build() (err error) {
	for name, host := range map[string]**netlab.Host{"client": &w.client, "guard": &w.guard, "world": &w.world} {
		if *host, err = w.lab.Host(name); err != nil {
			return err
		}
	}
	return firstError(
		func() error { return w.lab.Link(w.client, "eth0", w.guard, "lan0") },
		func() error { return w.lab.Link(w.guard, "wan0", w.world, "eth0") },
		func() error { return w.client.Addr("eth0", "192.168.50.2/24") },
		func() error { return w.guard.Addr("lan0", gateway+"/24") },
		func() error { return w.guard.Addr("wan0", "192.0.2.1/24") },
		func() error { return w.guard.Addr("wan0", "2001:db8::1/64") },
		func() error { return w.world.Addr("eth0", resolver+"/24") },
		func() error { return w.world.Addr("eth0", "2001:db8::2/64") },
		w.guard.Forward,
		func() error { return w.client.Route("0.0.0.0/0", gateway) },
		func() error { return w.guard.Route("0.0.0.0/0", resolver) },
		func() error { return w.guard.Route("::/0", "2001:db8::2") },
		func() error { return w.world.Route("192.168.50.0/24", "192.0.2.1") },
		func() error { return w.world.Local("198.18.0.0/15") },
		func() error { return w.world.Local("2001:db8:18::/48") },
		func() error { return w.world.Echo(port) },
		func() error { return w.world.ServeDNS(53, dns.HandlerFunc(w.serveDNS)) },
	)
}

func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// serveDNS answers for the names of the story.
func (w *world) serveDNS(rw dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	if q := query.Question[0]; q.Name == evil {
		w.overheard.Add(1)
		reply.Answer = records(q, evil4)
	} else if q.Name == shop {
		reply.Answer = records(q, shop4, shop6)
	}
	_ = rw.WriteMsg(reply)
}

func records(q dns.Question, addrs ...string) (rrs []dns.RR) {
	for _, text := range addrs {
		kind := "A"
		if netip.MustParseAddr(text).Is6() {
			kind = "AAAA"
		}
		rr, err := dns.NewRR(fmt.Sprintf("%s %d IN %s %s", q.Name, ttl, kind, text))
		if err == nil && rr.Header().Rrtype == q.Qtype {
			rrs = append(rrs, rr)
		}
	}
	return rrs
}
