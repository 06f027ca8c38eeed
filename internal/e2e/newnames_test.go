package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The race that the guard must always win: a client connects the moment it has
// the answer, and the address must be open by then. Names are never asked twice,
// and each has an address of its own.
func TestNewNamesAreOpenAtOnce(t *testing.T) {
	const names, workers = 20_000, 64
	for _, tt := range []struct {
		mode  string
		who   func(*world) party
		qtype uint16
		addr  func(n int) string
	}{
		{"nft-local", (*world).self, dns.TypeA, func(n int) string { return fmt.Sprintf("198.19.%d.%d", n>>8, n&0xff) }},
		{"nft-gateway", (*world).behind, dns.TypeAAAA, func(n int) string { return fmt.Sprintf("2001:db8:18:4e::%x", n+1) }},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			w := newWorld(t)
			w.start(corefile(guardBlock(tt.mode)))
			p := tt.who(w)
			w.wantRefused(p.Host, "udp", tt.addr(names))
			before := w.refusals()
			if before == 0 {
				t.Error("the guard does not count what it refuses")
			}

			began := time.Now()
			var next, failed atomic.Int64
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					ask, err := w.asker(p)
					if err != nil {
						t.Error(err)
						return
					}
					defer ask.conn.Close()
					for n := int(next.Add(1)) - 1; n < names && failed.Load() < 10; n = int(next.Add(1)) - 1 {
						if err := ask.andConnect(tt.addr(n), tt.qtype); err != nil {
							failed.Add(1)
							t.Errorf("%s: %v", tt.addr(n), err)
						}
					}
				})
			}
			wg.Wait()
			took := time.Since(began)
			t.Logf("%d names, each asked for and connected to, in %v: %.0f a second", names, took, names/took.Seconds())

			if n := w.refusals() - before; n != 0 {
				t.Errorf("the guard has refused %d packets", n)
			}
		})
	}
}

// asker asks many questions from one socket.
type asker struct {
	party
	conn   *dns.Conn
	client dns.Client
}

func (w *world) asker(p party) (*asker, error) {
	conn, err := p.Dial(context.Background(), "udp", net.JoinHostPort(p.resolver4, "53"))
	if err != nil {
		return nil, err
	}
	return &asker{p, &dns.Conn{Conn: conn}, dns.Client{Timeout: 20 * time.Second}}, nil
}

// andConnect looks an address up and connects to what the answer says.
func (a *asker) andConnect(addr string, qtype uint16) error {
	m, _, err := a.client.ExchangeWithConn(new(dns.Msg).SetQuestion(nameOf(60, addr), qtype), a.conn)
	if err != nil {
		return err
	}
	if got := addresses(m); len(got) != 1 || got[0] != addr {
		return fmt.Errorf("not the address: %v", m)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := a.Dial(ctx, "tcp", net.JoinHostPort(addr, fmt.Sprint(echoPort)))
	if err != nil {
		return err
	}
	// A reset leaves nothing behind: 20,000 connections in TIME_WAIT would be as many entries of conntrack.
	return errors.Join(conn.(*net.TCPConn).SetLinger(0), conn.Close())
}
