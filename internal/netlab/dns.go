package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// dnsServer answers over UDP and TCP.
type dnsServer struct {
	udp, tcp *dns.Server
	wg       sync.WaitGroup
}

// ServeDNS answers DNS on a port of every address of the host, over UDP and TCP.
func (h *Host) ServeDNS(port int, handler dns.Handler) error {
	address := fmt.Sprintf(":%d", port)
	tcp, err := h.Listen("tcp", address)
	if err != nil {
		return err
	}
	udp, err := h.ListenPacket("udp", address)
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	server := startDNS(tcp, udp, handler)
	if err := h.keep(server); err != nil {
		return h.fail("dns", errors.Join(err, server.Close()))
	}
	return nil
}

// startDNS returns when both servers run, as one which does not run yet cannot be shut down.
func startDNS(tcp net.Listener, udp net.PacketConn, handler dns.Handler) *dnsServer {
	var running sync.WaitGroup
	s := &dnsServer{
		udp: &dns.Server{PacketConn: udp, Handler: handler, NotifyStartedFunc: running.Done},
		tcp: &dns.Server{Listener: tcp, Handler: handler, NotifyStartedFunc: running.Done},
	}
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		running.Add(1)
		// It fails when it is shut down, and before it runs only without a socket.
		s.wg.Go(func() { _ = server.ActivateAndServe() })
	}
	running.Wait()
	return s
}

// Close ends both servers. A handler has five seconds to return.
func (s *dnsServer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := errors.Join(s.udp.ShutdownContext(ctx), s.tcp.ShutdownContext(ctx))
	if err == nil {
		s.wg.Wait()
	}
	return err
}
