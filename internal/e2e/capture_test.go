package e2e

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Plain DNS of clients to anybody is answered by the guard's CoreDNS, which opens what
// it answers; nobody else hears of it.
func TestCapture(t *testing.T) {
	for _, m := range modes {
		if !m.behind {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			neighbour, routed := w.moreClients()
			x := w.tap()
			w.start(corefile(guardBlock(m.name, "capture", "interfaces lan0 lan1", "allowedGatewayIPs "+stranger6)))
			n := 0
			for _, client := range []*netlab.Host{w.client, neighbour, routed} {
				for _, server := range []string{stranger4, stranger6, "198.51.100.53", gateway4, neighbourGateway6} {
					for _, network := range networks {
						n++
						addr := w.behind().addr6(n)
						if is4(server) {
							addr = w.behind().addr4(n)
						}
						answer, err := exchange(client, network, server, new(dns.Msg).SetQuestion(nameOf(60, addr), typeFor(addr)))
						if err != nil || len(answer.Answer) != 1 {
							t.Errorf("%s asks %s over %s: %v %v", client.Name(), server, network, answer, err)
							continue
						}
						w.wantOpen(client, "tcp", addr)
					}
				}
			}
			// One's grants are still not another's.
			w.lookup(w.client, stranger4, w.behind().addr4(100), 60)
			w.wantShut(neighbour, w.behind().addr4(100))
			if n := x.seen(func(p packet) bool {
				return p.destination.String() == stranger4 || p.destination.String() == stranger6 || p.destination.String() == "198.51.100.53"
			}); n > 0 {
				t.Errorf("%d packets have come to other resolvers", n)
			}
			// Other ports are not captured, but refused or, if allowed, open.
			w.wantPort(w.client, "tcp", stranger4, 853, false)
			w.wantOpen(w.client, "tcp", stranger6)
			// What the machine itself asks is not captured.
			if m.self {
				w.wantDNS(w.guard, "udp", stranger4, 53, false)
			} else {
				w.wantDNS(w.guard, "udp", stranger4, 53, true)
			}
		})
	}
}

func typeFor(addr string) uint16 {
	if is4(addr) {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// The captured client hears from whom it has asked, also over a socket that is not
// connected.
func TestCaptureAnswersAsTheOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(corefile(guardBlock("nft-gateway", "capture", "interfaces lan0")))
	for _, server := range []string{stranger4, stranger6} {
		conn, err := w.client.ListenPacket("udp", ":0")
		w.must(err)
		defer conn.Close()
		question, err := new(dns.Msg).SetQuestion("a-198-18-1-1.test.", dns.TypeA).Pack()
		w.must(err)
		w.must(conn.SetDeadline(time.Now().Add(5 * time.Second)))
		_, err = conn.WriteTo(question, &net.UDPAddr{IP: net.ParseIP(server), Port: 53})
		w.must(err)
		_, from, err := conn.ReadFrom(make([]byte, 512))
		w.must(err)
		if from := from.(*net.UDPAddr); !from.IP.Equal(net.ParseIP(server)) || from.Port != 53 {
			t.Errorf("asked %s, and %v has answered", server, from)
		}
	}
}

// What comes in by other interfaces is not captured; nor is it when the option has
// gone.
func TestCaptureComesAndGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	neighbour, _ := w.moreClients()
	w.must(w.world.ServeDNS(5353, netlab.Zone())) // the guard's upstream
	x := w.tap()
	file := func(options ...string) string {
		return guardedBlock(".", guardBlock("nft-gateway", options...), "forward . "+resolver4+":5353")
	}
	asked := func() int {
		return x.seen(func(p packet) bool { return p.destination.String() == stranger4 })
	}
	allowed := "allowedGatewayIPs " + stranger4
	c := w.start(file(allowed, "capture", "interfaces lan0"))
	w.wantDNS(w.client, "udp", stranger4, 53, true)
	if asked() > 0 {
		t.Error("the client was not captured")
	}
	w.wantDNS(neighbour, "udp", stranger4, 53, true)
	if asked() == 0 {
		t.Error("the neighbour was captured, on an interface that is not guarded")
	}
	w.mustReload(c, file(allowed, "capture", "interfaces lan0 lan1"))
	before := asked()
	w.wantDNS(neighbour, "tcp", stranger4, 53, true)
	if asked() > before {
		t.Error("the neighbour was not captured after the reload")
	}
	w.mustReload(c, file(allowed, "interfaces lan0 lan1"))
	for _, client := range []*netlab.Host{w.client, neighbour} {
		before := asked()
		w.wantDNS(client, "udp", stranger4, 53, true)
		if asked() == before {
			t.Errorf("%s was captured, although the option has gone", client.Name())
		}
	}
}

// When CoreDNS is dead, captured questions get no answer; they do not go elsewhere.
func TestCaptureByTheDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	x := w.tap()
	file := corefile(guardBlock("nft-gateway", "capture", "interfaces lan0"))
	c := w.start(file)
	w.wantDNS(w.client, "udp", stranger4, 53, true)
	w.kill(c)
	for _, server := range []string{stranger4, stranger6} {
		for _, network := range networks {
			if _, err := exchangeAt(w.client, network, net.JoinHostPort(server, "53"), new(dns.Msg).SetQuestion("test.", dns.TypeA), 300*time.Millisecond); err == nil {
				t.Errorf("%s has answered over %s", server, network)
			}
		}
	}
	if n := x.seen(func(p packet) bool { return p.destination.String() == stranger4 || p.destination.String() == stranger6 }); n > 0 {
		t.Errorf("%d packets have come to other resolvers", n)
	}
	w.start(file)
	w.wantDNS(w.client, "tcp", stranger6, 53, true)
}
