package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func newTestProgram(t *testing.T, h *Host, as As) *Program {
	t.Helper()
	p, err := h.Program(as)
	must(t, err)
	return p
}

func TestProgram(t *testing.T) {
	a, b := newPair(t, newLab(t))
	must(t, b.Echo(7), b.ServeDNS(53, Zone()))
	p := newTestProgram(t, a, As{})
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
			conn, err := p.Dial(t.Context(), network, addr)
			must(t, err)
			echoes(t, conn)
			if got := conn.RemoteAddr().String(); got != addr {
				t.Errorf("connected to %s", got)
			}
			conn.Close()
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		conn, err := p.DialFrom(t.Context(), network, ":4000", "192.0.2.2:7")
		must(t, err)
		echoes(t, conn)
		if got := conn.LocalAddr().String(); got != "192.0.2.1:4000" {
			t.Errorf("connected from %s", got)
		}
		conn.Close()
	}
	conn, err := p.Dial(t.Context(), "udp", "192.0.2.2:53")
	must(t, err)
	defer conn.Close()
	m, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion("a-192-0-2-9.test.", dns.TypeA), &dns.Conn{Conn: conn})
	must(t, err)
	if len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}
	packets, err := p.ListenPacket("udp", ":0")
	must(t, err)
	defer packets.Close()
	_, err = packets.WriteTo([]byte("ping"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 7})
	must(t, err)
	n, from, err := packets.ReadFrom(make([]byte, 10))
	if must(t, err); n != 4 || from.(*net.UDPAddr).Port != 7 {
		t.Errorf("%d bytes from %v", n, from)
	}
}

func TestProgramErrors(t *testing.T) {
	a, b := newPair(t, newLab(t))
	p := newTestProgram(t, a, As{})
	if _, err := p.Dial(t.Context(), "tcp", "192.0.2.2:7"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := p.Dial(t.Context(), "tcp", "198.18.0.1:7"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("no route: %v", err)
	}
	if _, err := p.Dial(t.Context(), "tcp", "b:7"); err == nil {
		t.Error("a name was dialled")
	}
	// Nobody answers there.
	must(t, b.Addr("toA", "192.0.2.99/32"), a.Route("198.18.0.0/15", "192.0.2.2"))
	for name, within := range map[string]func() (context.Context, context.CancelFunc){
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 50*time.Millisecond)
		},
		"cancelled": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			return ctx, cancel
		},
	} {
		ctx, cancel := within()
		_, err := p.Dial(ctx, "tcp", "198.18.0.1:7")
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() == (name == "cancelled") || err == nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	must(t, p.Close(), p.Close())
	if _, err := p.Dial(t.Context(), "tcp", "192.0.2.2:7"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A socket is its program's, whoever uses it.
func TestProgramAs(t *testing.T) {
	lab := newLab(t)
	a, b := newPair(t, lab)
	must(t, b.Echo(7))
	t.Run("user", func(t *testing.T) {
		lacks(t, Users(1001))
		p := newTestProgram(t, a, As{User: 1001})
		conn, err := p.Dial(t.Context(), "tcp", "192.0.2.2:7")
		must(t, err)
		defer conn.Close()
		var table []byte
		must(t, a.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/tcp"); return err }))
		port := fmt.Sprintf(":%04X ", conn.LocalAddr().(*net.TCPAddr).Port)
		for line := range strings.Lines(string(table)) {
			if fields := strings.Fields(line); strings.Contains(line, port) && fields[7] == "1001" {
				return
			}
		}
		t.Errorf("no socket of the user's in\n%s", table)
	})
	t.Run("cgroup", func(t *testing.T) {
		c := newTestCgroup(t, lab, "app.service")
		p := newTestProgram(t, a, As{Cgroup: c})
		if want := "a in " + c.Path(); p.Name() != want {
			t.Errorf("the name is %q, want %q", p.Name(), want)
		}
		conn, err := p.Dial(t.Context(), "tcp", "192.0.2.2:7")
		must(t, err)
		echoes(t, conn)
		conn.Close()
		must(t, c.Close(), p.Close()) // it is dead already
	})
}
