package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	bytesorder "encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// secureExchange asks the guard over one of the encrypted transports, in a connection of
// its own.
func secureExchange(from *netlab.Host, transport, server string, config *tls.Config, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	config = config.Clone()
	packed, err := m.Pack()
	if err != nil {
		return nil, err
	}
	var body []byte
	switch transport {
	case "tls":
		conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(server, "853"))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		answer, _, err := (&dns.Client{Timeout: 5 * time.Second}).ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: tls.Client(conn, config)})
		return answer, err
	case "https":
		roundTripper := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return from.Dial(ctx, network, net.JoinHostPort(server, "443"))
		}}
		defer roundTripper.CloseIdleConnections()
		body, err = post(ctx, roundTripper, packed)
	case "https3":
		packets, err := from.ListenPacket("udp", ":0")
		if err != nil {
			return nil, err
		}
		defer packets.Close()
		roundTripper := &http3.Transport{TLSClientConfig: config, Dial: func(ctx context.Context, _ string, config *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialEarly(ctx, packets, &net.UDPAddr{IP: net.ParseIP(server), Port: 443}, config, q)
		}}
		defer roundTripper.Close()
		if body, err = post(ctx, roundTripper, packed); err != nil {
			return nil, err
		}
	case "quic":
		config.NextProtos = []string{"doq"}
		body, err = askDoQ(ctx, from, server, config, packed)
	}
	if err != nil {
		return nil, err
	}
	answer := new(dns.Msg)
	return answer, answer.Unpack(body)
}

func askDoQ(ctx context.Context, from *netlab.Host, server string, config *tls.Config, packed []byte) ([]byte, error) {
	packets, err := from.ListenPacket("udp", ":0")
	if err != nil {
		return nil, err
	}
	defer packets.Close()
	conn, err := quic.Dial(ctx, packets, &net.UDPAddr{IP: net.ParseIP(server), Port: 853}, config, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	packed[0], packed[1] = 0, 0 // RFC 9250, section 4.2.1
	if _, err = stream.Write(append(bytesorder.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)); err != nil {
		return nil, err
	}
	_ = stream.Close()
	answer, err := io.ReadAll(stream)
	if err != nil || len(answer) < 2 {
		return nil, fmt.Errorf("%d bytes: %w", len(answer), err)
	}
	return answer[2:], nil
}

func post(ctx context.Context, roundTripper http.RoundTripper, packed []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+serverName+"/dns-query", bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/dns-message")
	reply, err := roundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	return io.ReadAll(reply.Body)
}

// Whom a server block answers, and opens addresses to, is known by the certificate,
// whatever the question comes over.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ours, foreign := newAuthority(t, "ours"), newAuthority(t, "foreign")
	cert, key := ours.issue("server", x509.Certificate{DNSNames: []string{serverName}})
	secured := "tls " + cert + " " + key + " " + ours.file + " {\n client_auth require_and_verify\n }"
	blocks := ""
	for i, transport := range []string{"tls", "https", "https3", "quic"} {
		directive := "ipdestinationguard {\n\tclients cert:*.laptops.test\n}"
		if i == 0 {
			directive = guardBlock("nft-gateway", "clients cert:*.laptops.test 192.168.51.0/24")
		}
		blocks += guardedBlock(transport+"://.", directive, secured, "metadata", "log . \"{remote} is {/ipdestinationguard/client}\"", "forward . "+resolver4)
	}
	c := w.start(blocks)

	listed := ours.client(&x509.Certificate{DNSNames: []string{"anna.laptops.test"}})
	other := ours.client(&x509.Certificate{DNSNames: []string{"printer.test"}})
	stranger := foreign.client(&x509.Certificate{DNSNames: []string{"anna.laptops.test"}})
	stranger.RootCAs = listed.RootCAs
	late := ours.client(&x509.Certificate{DNSNames: []string{"anna.laptops.test"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	var wg sync.WaitGroup
	for i, transport := range []string{"tls", "https", "https3", "quic"} {
		for j, who := range []struct {
			name   string
			config *tls.Config
			want   int // rcode, or no answer at all
		}{
			{"listed", listed, dns.RcodeSuccess},
			{"not listed", other, dns.RcodeRefused},
			{"without a certificate", ours.client(nil), -1},
			{"of another authority", stranger, -1},
			{"run out", late, -1},
		} {
			wg.Go(func() {
				addr := w.behind().addr4(10*i + j)
				m, err := secureExchange(w.client, transport, gateway4, who.config, edns(new(dns.Msg).SetQuestion(nameOf(60, addr), dns.TypeA)))
				switch {
				case who.want < 0:
					if err == nil {
						t.Errorf("%s, %s: an answer: %v", transport, who.name, m)
					}
				case err != nil:
					t.Errorf("%s, %s: %v", transport, who.name, err)
				case m.Rcode != who.want:
					t.Errorf("%s, %s: %v", transport, who.name, m)
				case m.Rcode == dns.RcodeRefused && !prohibited(m):
					t.Errorf("%s, %s: no EDE 18: %v", transport, who.name, m)
				}
				if who.want == dns.RcodeSuccess {
					w.wantOpen(w.client, "tcp", addr)
				} else {
					w.wantShut(w.client, addr)
				}
			})
		}
	}
	wg.Wait()
	w.eventually("the log knows the client", func() bool { return strings.Count(c.Output(), "192.168.50.2 is anna.laptops.test") >= 4 })

	// Who roams keeps the certificate; what is opened is for the address that asked.
	w.must(w.client.Addr("eth0", "192.168.77.2/24"))
	w.must(w.guard.Route("192.168.77.0/24", "192.168.50.2"))
	w.must(w.world.Route("192.168.77.0/24", "192.0.2.1"))
	neighbour, _ := w.moreClients()
	addr := w.behind().addr4(99)
	w.wantShut(neighbour, addr)
	m, err := secureExchange(neighbour, "quic", neighbourGateway4, listed, new(dns.Msg).SetQuestion(nameOf(60, addr), dns.TypeA))
	w.must(err)
	if len(m.Answer) != 1 {
		t.Errorf("on another network: %v", m)
	}
	w.wantOpen(neighbour, "tcp", addr)
	w.wantShut(w.client, addr)
}

// A view is for whoever has a certificate; the next block is for the others.
func TestViewOfClientCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ours := newAuthority(t, "ours")
	cert, key := ours.issue("server", x509.Certificate{DNSNames: []string{serverName}})
	secured := "tls " + cert + " " + key + " " + ours.file + " {\n client_auth verify_if_given\n }"
	w.start(guardedBlock("tls://.", guardBlock("nft-gateway"), secured, "metadata",
		"view anna {\n expr metadata('ipdestinationguard/client') == 'anna.test'\n }", "forward . "+resolver4) +
		guardedBlock("tls://.", "ipdestinationguard {\n\tclients 10.0.0.0/8\n}", secured, "forward . "+resolver4))
	for name, want := range map[string]int{"anna.test": dns.RcodeSuccess, "berta.test": dns.RcodeRefused, "": dns.RcodeRefused} {
		config := ours.client(nil)
		if name != "" {
			config = ours.client(&x509.Certificate{DNSNames: []string{name}})
		}
		m, err := secureExchange(w.client, "tls", gateway4, config, new(dns.Msg).SetQuestion(nameOf(60, w.behind().addr4(1)), dns.TypeA))
		w.must(err)
		if m.Rcode != want {
			t.Errorf("%q: %v", name, m)
		}
	}
}

// edns lets a question have its reasons.
func edns(m *dns.Msg) *dns.Msg { return m.SetEdns0(1232, false) }

func prohibited(m *dns.Msg) bool { return hasEDE(m, dns.ExtendedErrorCodeProhibited) }

func hasEDE(m *dns.Msg, code uint16) bool {
	opt := m.IsEdns0()
	if opt == nil {
		return false
	}
	for _, o := range opt.Option {
		if ede, ok := o.(*dns.EDNS0_EDE); ok && ede.InfoCode == code {
			return true
		}
	}
	return false
}
