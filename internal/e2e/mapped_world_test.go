package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A mappedWorld is a world with a guard that has routes. Their names are those of the
// atlas; servers tell what of a connection they see.
type mappedWorld struct {
	*world
	atlas *atlas
}

// What routes leave with: addresses of the guard besides its own.
var (
	routeEgress4, routeEgress6   = egressOne[0], egressOne[1]
	secondEgress4, secondEgress6 = egressTwo[0], egressTwo[1]
)

func newMappedWorld(t *testing.T) *mappedWorld {
	t.Helper()
	w := newWorld(t)
	w.mirror(w.world)
	w.addEgress()
	return &mappedWorld{w, w.atlas()}
}

// route is a route's block.
func (m *mappedWorld) route(patterns string, lines ...string) string {
	return "\troute " + patterns + " {\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}\n"
}

// corefile is a Corefile with routes, and more options of the directive.
func (m *mappedWorld) corefile(mode string, parts ...string) string {
	return fmt.Sprintf(`. {
	errors
	ipdestinationguard {
	mode %s
	allowedLocalIPs %s
	%s
	private ** 192.0.2.128/25 198.18.0.0/15 2001:db8:18::/48
	%s
	}
	%s
	ready 127.0.0.1:8181
	prometheus 127.0.0.1:9153
}
`, mode, resolver4, slowDisk, strings.Join(parts, "\n\t"), atlasUpstream())
}

// routedTo is the usual route of tests, for names below a domain.
func (m *mappedWorld) routedTo(domain string, lines ...string) string {
	return m.route("**."+domain, append([]string{"egress " + routeEgress4 + " " + routeEgress6}, lines...)...)
}

// mapped asks for a name's addresses of one IP version, which are then mapped ones.
func (m *mappedWorld) mapped(from sender, server, name string, ipv4 bool) []string {
	m.Helper()
	if ipv4 {
		return m.given(from, server, name, pool4)
	}
	return m.given(from, server, name, pool6)
}

// wantSight connects to an address and checks what the server sees.
func (m *mappedWorld) wantSight(from sender, addr, real, source string) {
	m.Helper()
	s, conn, err := m.look(from, addr)
	if err != nil {
		m.Errorf("%s: %s does not answer: %v", from.Name(), addr, err)
		return
	}
	conn.Close()
	if want := (sight{real, source}); s != want {
		m.Errorf("%s by %s: the server sees %v, want %v", from.Name(), addr, s, want)
	}
}

// wantReset checks that a connection is refused as by a host on which nobody listens: nobody
// has to wait for what has no other end. An address is "a:port" or has
// the mirror's.
func (m *mappedWorld) wantReset(from sender, addr string) {
	m.Helper()
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(addr, strconv.Itoa(mirrorPort))
	}
	for _, network := range networks {
		switch err := talkTo(from, network, addr); {
		case err == nil:
			m.Errorf("%s: %s to %s is open, it should be refused", from.Name(), network, addr)
		case errors.Is(err, syscall.ECONNREFUSED), network == "udp" && errors.Is(err, syscall.EPERM):
		default:
			m.Errorf("%s: %s to %s fails otherwise than by a reset: %v", from.Name(), network, addr, err)
		}
	}
}

// talkTo makes a connection and has some words echoed, or hears something at least.
func talkTo(from sender, network, addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return say(conn)
}

// say is echo for who may not be heard, or hear something else.
func say(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 100))
	return err
}

// question asks for a name.
func (m *mappedWorld) question(from sender, server, name, qtype string) *dns.Msg {
	m.Helper()
	return m.query(from, "udp", server, name, qtype, 4096)
}

// A routeClient is a client with where it asks.
type routeClient struct {
	*netlab.Host
	resolver4, resolver6 string
}
