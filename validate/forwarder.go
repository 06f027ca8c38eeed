//go:build unbound

package validate

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/miekg/dns"
)

// forwarder is where libunbound asks: an address of loopback that nothing else knows of. It
// answers over UDP and TCP.
type forwarder struct {
	udp, tcp *dns.Server
	at       netip.AddrPort
	serving  sync.WaitGroup
}

// forward listens for questions, and hands them to an upstream.
func forward(upstream dns.Handler) (*forwarder, error) {
	var packets net.PacketConn
	var listener net.Listener
	var err error
	for range 16 { // the port that the one is given may be taken for the other
		if packets, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		if listener, err = net.Listen("tcp4", packets.LocalAddr().String()); err == nil {
			break
		}
		_ = packets.Close()
	}
	if err != nil {
		return nil, err
	}
	var running sync.WaitGroup
	running.Add(2)
	f := &forwarder{
		udp: &dns.Server{PacketConn: packets, Handler: upstream, NotifyStartedFunc: running.Done},
		tcp: &dns.Server{Listener: listener, Handler: upstream, NotifyStartedFunc: running.Done},
		at:  packets.LocalAddr().(*net.UDPAddr).AddrPort(),
	}
	for _, server := range []*dns.Server{f.udp, f.tcp} {
		f.serving.Go(func() { _ = server.ActivateAndServe() }) // until it is shut down
	}
	running.Wait()
	return f, nil
}

func (f *forwarder) addr() netip.AddrPort { return f.at }

func (f *forwarder) close() {
	_ = errors.Join(f.udp.Shutdown(), f.tcp.Shutdown())
	f.serving.Wait()
}
