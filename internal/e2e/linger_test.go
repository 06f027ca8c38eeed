package e2e

import (
	"net"
	"testing"
	"time"
)

// lingering is the time that addresses stay open after their last use here. The grants
// are shorter.
const (
	lingering    = 4 * time.Second
	lingerOption = "linger 4s"
	lingerGrant  = 2*time.Second + 500*time.Millisecond // TTL, margin and slack
)

// An address that is used stays open to who uses it, until it has not been used for as
// long as told; what nobody uses shuts with its grant.
func TestLinger(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			neighbour, _ := w.moreClients()
			w.start(corefile(guardBlock(m.name, lingerOption, "ttl 1s 60s", "margin 1s")))
			type use struct {
				party
				addr, unused string
				from, used   time.Time
			}
			var uses []*use
			guarded, _ := m.parties(w)
			for _, p := range guarded {
				uses = append(uses, &use{party: p, addr: p.addr4(1), unused: p.addr4(2)}, &use{party: p, addr: p.addr6(1), unused: p.addr6(2)})
			}
			for _, u := range uses {
				w.lookup(u.Host, u.resolver(u.addr), u.addr, 1)
				w.lookup(u.Host, u.resolver(u.unused), u.unused, 1)
				u.from = time.Now()
			}
			// Each connection is a new one, and the grants end meanwhile.
			together(uses, func(u *use) {
				u.used = u.from
				for time.Since(u.from) < lingerGrant+2*time.Second {
					began := time.Now()
					switch err := w.connect(u.Host, "tcp", u.addr); {
					case err == nil:
						u.used = began
					case time.Since(u.used) > lingering: // this machine is slow
						if err := w.resolve(u.Host, u.resolver(u.addr), u.addr, 1); err != nil {
							w.Error(err)
							return
						}
						u.from = time.Now()
						u.used = u.from
					default:
						w.Errorf("%s: %s, which is used: %v (after %v)", u.Name(), u.addr, err, time.Since(u.from))
						return
					}
					time.Sleep(200 * time.Millisecond)
				}
			})
			if w.Failed() {
				return
			}
			for _, u := range uses {
				w.wantShut(u.Host, u.unused)
			}
			if m.behind {
				w.wantShut(neighbour, uses[len(uses)-2].addr) // it is open to its user only
				w.wantShut(neighbour, uses[len(uses)-1].addr)
			}
			together(uses, func(u *use) {
				if err := w.connect(u.Host, "udp", u.addr); err != nil && time.Since(u.used) < lingering {
					w.Errorf("%s: %s, which was used: %v", u.Name(), u.addr, err)
				}
				last := time.Now()
				// Whoever looks whether it is open, uses it.
				time.Sleep(time.Until(last.Add(lingering + 500*time.Millisecond)))
				w.wantShut(u.Host, u.addr)
			})
		})
	}
}

// Refusals do not make an address linger that never was open; nor do packets that come
// back.
func TestLingerIsForWhatWasOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.client.Echo(echoPort))
	w.start(corefile(guardBlock("nft-gateway", lingerOption, "interfaces lan0", "ttl 1s 60s", "margin 1s")))
	p := w.behind()
	for range 3 {
		w.wantShut(w.client, p.addr4(1))
		w.wantShut(w.client, p.addr6(1))
	}
	// The world connects to the client, which may answer, but not connect.
	var live []net.Conn
	for _, addr := range []string{client4, client6} {
		conn, err := w.dial(w.world, "tcp", addr)
		w.must(err)
		defer conn.Close()
		w.must(echo(conn))
		live = append(live, conn)
	}
	w.wantShut(w.client, resolver4)
	w.wantShut(w.client, resolver6)
	for _, conn := range live {
		w.must(echo(conn))
	}
}

// Without the option nothing lingers; with it, a live connection alone keeps its
// address open.
func TestLingerByLiveConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.start(corefile(guardBlock("nft-both", lingerOption, "ttl 1s 60s", "margin 1s")))
	p := w.behind()
	addr := p.addr4(1)
	w.lookup(p.Host, p.resolver4, addr, 1)
	began := time.Now()
	conn, err := w.dial(p.Host, "tcp", addr)
	w.must(err)
	defer conn.Close()
	for time.Since(began) < lingerGrant+time.Second {
		w.must(echo(conn))
		time.Sleep(200 * time.Millisecond)
	}
	w.wantOpen(p.Host, "tcp", addr)
	w.mustReload(c, corefile(guardBlock("nft-both", "ttl 1s 60s", "margin 1s")))
	w.wantShut(p.Host, addr)
	w.must(echo(conn)) // it lives on
}
