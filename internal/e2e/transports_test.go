package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

const serverName = "guard.test"

// writeCertificate makes a certificate for names, serverName if there are none, which
// is its own authority, and its key.
func writeCertificate(t *testing.T, certFile, keyFile string, names ...string) *x509.CertPool {
	t.Helper()
	if names == nil {
		names = []string{serverName}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	for _, f := range []struct {
		path, kind string
		bytes      []byte
	}{{certFile, "CERTIFICATE", cert}, {keyFile, "PRIVATE KEY", secret}} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.bytes})
		if err := os.WriteFile(f.path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if f.kind == "CERTIFICATE" {
			authorities.AppendCertsFromPEM(text)
		}
	}
	return authorities
}

// everyTransport is a Corefile for all of them.
func everyTransport(directive, cert, key string) string {
	blocks := guardedBlock(".", directive, "forward . "+resolver4)
	for _, keys := range []string{"tls://.", "https://.", "https3://.", "quic://.", "grpc://.:8053"} {
		blocks += guardedBlock(keys, "", "tls "+cert+" "+key, "forward . "+resolver4)
	}
	return blocks
}

// relay starts another CoreDNS, which asks the guard's over all of them but one, each
// for a zone. It listens on a port, ":53" if that is empty.
func (w *world) relay(host *netlab.Host, as netlab.As, port, server4, server6, cert string) {
	w.Helper()
	secured := " {\n tls " + cert + "\n tls_servername " + serverName + "\n }"
	relay := ""
	for zone, plugin := range map[string]string{
		"udp": "forward . " + server4 + " {\n prefer_udp\n }",
		"tcp": "forward . " + server6 + " {\n force_tcp\n }",
		"dot": "forward . tls://" + server4 + secured,
		"doh": "forward . https://" + server4 + secured,
		"doq": "forward . quic://" + server4 + secured,
		"rpc": "grpc . " + server4 + ":8053" + secured,
	} {
		relay += zone + ".test" + port + " {\n errors\n " + plugin + "\n}\n"
	}
	path := filepath.Join(w.TempDir(), "Corefile")
	w.save(path, relay)
	c := host.Command(binary(w.T), "-conf", path)
	c.As = as
	w.must(c.Start())
	w.Cleanup(func() {
		if w.Failed() {
			w.Logf("the other CoreDNS wrote:\n%s", c.Output())
		}
	})
	w.eventually("the other CoreDNS answers", func() bool { return strings.Contains(c.Output(), "CoreDNS-") })
}

// Whatever carries an answer to the client, it opens the firewall. The client
// asks through a CoreDNS of its own, which knows all of them but one.
func TestAnswersOverEveryTransport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	authorities := writeCertificate(t, cert, key)

	w.start(everyTransport(guardBlock("nft-gateway"), cert, key))
	w.relay(w.client, netlab.As{}, "", gateway4, gateway6, cert)

	var all []attempt
	for _, q := range []struct{ addr, name, qtype string }{
		{"198.18.70.1", "a-198-18-70-1.udp.test.", "A"},
		{"198.18.70.2", "a-198-18-70-2.tcp.test.", "A"},
		{"198.18.70.3", "a-198-18-70-3.dot.test.", "A"},
		{"198.18.70.4", "a-198-18-70-4.doh.test.", "A"},
		{"198.18.70.5", "a-198-18-70-5.doq.test.", "A"},
		{"198.18.70.6", "a-198-18-70-6.rpc.test.", "A"},
		{"2001:db8:18:70::3", "aaaa-2001-db8-18-70--3.dot.test.", "AAAA"},
		{"2001:db8:18:70::4", "aaaa-2001-db8-18-70--4.doh.test.", "AAAA"},
	} {
		w.wantRefused(w.client, "udp", q.addr)
		m := w.query(w.client, "udp", "127.0.0.1", q.name, q.qtype, 0)
		if len(m.Answer) != 1 {
			t.Errorf("%s: %v", q.name, m)
		}
		all = append(all, attempt{w.behind(), q.addr, true})
	}

	// DNS over HTTP/3, by hand.
	const addr = "198.18.70.7"
	packets, err := w.client.ListenPacket("udp", ":0")
	w.must(err)
	defer packets.Close()
	transport := &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: authorities, ServerName: serverName},
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return quic.DialEarly(ctx, packets, &net.UDPAddr{IP: net.ParseIP(gateway4), Port: 443}, tlsConfig, config)
		},
	}
	defer transport.Close()
	question, err := new(dns.Msg).SetQuestion(nameOf(60, addr), dns.TypeA).Pack()
	w.must(err)
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	reply, err := client.Post("https://"+serverName+"/dns-query", "application/dns-message", bytes.NewReader(question))
	w.must(err)
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	w.must(err)
	m := new(dns.Msg)
	w.must(m.Unpack(body))
	if got := addresses(m); len(got) != 1 || got[0] != addr {
		t.Errorf("over HTTP/3: %v", m)
	}
	w.want(append(all, attempt{w.behind(), addr, true}))
}

// Applications are known by whatever they ask over.
func TestApplicationsOverEveryTransport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apps := w.units("a.service", "b.service")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeCertificate(t, cert, key)
	w.start(everyTransport(guardBlock("nft-local", application), cert, key))
	w.relay(w.guard, apps[0].As(), ":5353", "127.0.0.1", "::1", cert)
	for i, zone := range []string{"udp", "tcp", "dot", "doh", "doq", "rpc"} {
		addr := apps[0].addr4(i)
		m, err := exchangeAt(apps[1], "udp", "127.0.0.1:5353", new(dns.Msg).SetQuestion(strings.Replace(nameOf(60, addr), "test.", zone+".test.", 1), dns.TypeA), 20*time.Second)
		w.must(err)
		if len(m.Answer) != 1 {
			t.Errorf("%s: %v", zone, m)
			continue
		}
		w.wantOpen(apps[0], "tcp", addr)
		w.wantShut(apps[1], addr)
	}
}
