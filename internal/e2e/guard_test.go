package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A party is somebody whose connections the guard may guard: its own machine, or
// a client behind it.
type party struct {
	*netlab.Host
	resolver4, resolver6 string // where it finds CoreDNS
	net                  int    // tells its addresses in the world from the other's
}

func (w *world) self() party   { return party{w.guard, "127.0.0.1", "::1", 1} }
func (w *world) behind() party { return party{w.client, gateway4, gateway6, 2} }

// addr4 and addr6 are addresses in the world that only this party uses.
func (p party) addr4(n int) string { return fmt.Sprintf("198.18.%d.%d", p.net, n) }
func (p party) addr6(n int) string { return fmt.Sprintf("2001:db8:18:%d::%d", p.net, n) }

// resolver is where the party asks for an address, over the same IP version.
func (p party) resolver(addr string) string {
	if is4(addr) {
		return p.resolver4
	}
	return p.resolver6
}

func is4(addr string) bool { return net.ParseIP(addr).To4() != nil }

// A mode of the guard, and whom it guards.
type mode struct {
	name         string
	self, behind bool
}

var modes = []mode{
	{"nft-local", true, false},
	{"nft-gateway", false, true},
	{"nft-both", true, true},
}

// parties says who is guarded and who is not.
func (m mode) parties(w *world) (guarded, free []party) {
	for _, p := range []struct {
		party
		guarded bool
	}{{w.self(), m.self}, {w.behind(), m.behind}} {
		if p.guarded {
			guarded = append(guarded, p.party)
		} else {
			free = append(free, p.party)
		}
	}
	return guarded, free
}

func eachMode(t *testing.T, f func(w *world, m mode)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			f(newWorld(t), m)
		})
	}
}

// slowDisk has answers wait for a slow disk, where routes have something written.
const slowDisk = "hold 10s"

// guardBlock is the directive with options, and with the upstream open.
func guardBlock(mode string, options ...string) string {
	text := "ipdestinationguard {\n\tmode " + mode + "\n\tallowedLocalIPs " + resolver4 + "\n"
	if strings.Contains(strings.Join(options, "\n"), "route ") {
		options = append(options, slowDisk)
	}
	for _, o := range options {
		text += "\t" + o + "\n"
	}
	return text + "}"
}

var networks = []string{"tcp", "udp"}

// The heart of it: refused, resolved, open, expired, refused; what was open
// goes on.
func TestAnswersOpenTheFirewall(t *testing.T) {
	const ttl, atLeast = 1, 2 * time.Second // the TTL and the margin
	eachMode(t, func(w *world, m mode) {
		x := w.tap()
		c := w.start(corefile(guardBlock(m.name, "ttl 1s 60s", "margin 1s")))
		guarded, free := m.parties(w)
		for _, p := range free {
			for _, addr := range []string{p.addr4(1), p.addr6(1)} {
				for _, network := range networks {
					w.wantOpen(p.Host, network, addr)
				}
			}
		}

		type grant struct {
			party
			addr  string
			asked time.Time
			live  []net.Conn
		}
		var grants []*grant
		for _, p := range guarded {
			grants = append(grants, &grant{party: p, addr: p.addr4(1)}, &grant{party: p, addr: p.addr6(1)})
		}
		refused := func(g *grant) {
			for _, network := range networks {
				w.wantError(g.Host, network, g.addr)
			}
		}
		came := func(addr string) int {
			return x.seen(func(p packet) bool { return p.destination.String() == addr })
		}
		together(grants, refused)
		for _, g := range grants {
			if n := came(g.addr); n > 0 {
				w.Errorf("%s: %d packets to %s came through although all were refused", g.Name(), n, g.addr)
			}
		}

		together(grants, func(g *grant) {
			g.asked = time.Now()
			if err := w.resolve(g.Host, g.resolver(g.addr), g.addr, ttl); err != nil {
				w.Error(err)
				return
			}
			for _, network := range networks {
				conn, err := w.dial(g.Host, network, g.addr)
				if err == nil {
					err = echo(conn)
				}
				if took := time.Since(g.asked); took > atLeast {
					w.Errorf("this machine is too slow for this test: %v from the question to the echo", took)
				} else if err != nil {
					w.Errorf("%s: %s to %s is refused right after the answer: %v", g.Name(), network, g.addr, err)
				}
				if err == nil {
					w.Cleanup(func() { conn.Close() })
					g.live = append(g.live, conn)
				}
			}
		})
		if w.Failed() {
			return
		}
		together(grants, func(g *grant) {
			for {
				err := w.connect(g.Host, "tcp", g.addr)
				age := time.Since(g.asked)
				switch {
				case err != nil && age < atLeast:
					w.Errorf("%s: %s was closed %v after the answer, before the TTL and the margin were over", g.Name(), g.addr, age)
				case err == nil && age > 20*time.Second:
					w.Errorf("%s: %s is still open %v after the answer", g.Name(), g.addr, age)
				case err == nil:
					time.Sleep(20 * time.Millisecond)
					continue
				}
				return
			}
		})
		expired := make(map[string]int)
		for _, g := range grants {
			expired[g.addr] = came(g.addr)
		}
		together(grants, refused)
		for _, g := range grants {
			if n := came(g.addr) - expired[g.addr]; n > 0 {
				w.Errorf("%s: %d packets to %s came through although it has expired", g.Name(), n, g.addr)
			}
			for i, conn := range g.live {
				if err := echo(conn); err != nil {
					w.Errorf("%s: the live %s connection to %s was cut: %v", g.Name(), networks[i], g.addr, err)
				}
			}
		}
		// Once more, as on every visit.
		for _, g := range grants {
			w.lookup(g.Host, g.resolver(g.addr), g.addr, 60)
			w.wantOpen(g.Host, "tcp", g.addr)
		}
		w.must(c.Signal(syscall.Signal(0))) // it has lived through all of it
	})
}

// wantError is wantRefused for those who ask what the application sees.
func (w *world) wantError(from sender, network, addr string) {
	w.Helper()
	want := syscall.EACCES
	if is4(addr) {
		want = syscall.EHOSTUNREACH
	}
	if network == "udp" && from == w.guard {
		want = syscall.EPERM // on sending
	}
	if err := w.connect(from, network, addr); !errors.Is(err, want) {
		w.Errorf("%s: %s to %s: %v, want %v", from.Name(), network, addr, err, want)
	}
}

// together runs f for all at once: a refused TCP connection may take a second.
// In f only Error fails the test.
func together[T any](all []T, f func(T)) {
	var wg sync.WaitGroup
	for _, one := range all {
		wg.Go(func() { f(one) })
	}
	wg.Wait()
}
