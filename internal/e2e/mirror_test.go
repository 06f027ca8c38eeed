package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// mirrorPort is where a host tells whoever connects what the connection looks like
// from there, and then echoes.
const mirrorPort = 17

// A sight is a connection as the server has it.
type sight struct{ real, source string }

func (w *world) mirror(h *netlab.Host) {
	w.Helper()
	ln, err := h.Listen("tcp", ":"+strconv.Itoa(mirrorPort))
	w.must(err)
	w.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go reflect(conn)
		}
	}()
	// UDP that tells where it was sent to takes a socket for each address: see netlab's
	// Echo, which answers from there, and wire, which has the packets.
}

func reflect(conn net.Conn) {
	defer conn.Close()
	real, _, _ := net.SplitHostPort(conn.LocalAddr().String())
	source, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
	if _, err := fmt.Fprintf(conn, "%-40s%-40s", real, source); err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

// look connects to a mirror, and leaves the connection open: for echo.
func (w *world) look(from sender, addr string) (sight, net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(mirrorPort)))
	if err != nil {
		return sight{}, nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	var b [80]byte
	for n := 0; n < len(b); {
		m, err := conn.Read(b[n:])
		if err != nil {
			conn.Close()
			return sight{}, nil, err
		}
		n += m
	}
	return sight{strings.TrimSpace(string(b[:40])), strings.TrimSpace(string(b[40:]))}, conn, nil
}

// sees is look for those who want to know.
func (w *world) sees(from sender, addr string) sight {
	w.Helper()
	s, conn := w.watch(from, addr)
	if conn != nil {
		conn.Close()
	}
	return s
}

// watch is look for those who go on. It returns no connection when there is none.
func (w *world) watch(from sender, addr string) (sight, net.Conn) {
	w.Helper()
	s, conn, err := w.look(from, addr)
	if err != nil {
		w.Errorf("%s: %s does not answer: %v", from.Name(), addr, err)
		return s, nil
	}
	w.Cleanup(func() { conn.Close() })
	return s, conn
}
