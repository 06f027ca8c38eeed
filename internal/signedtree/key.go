package signedtree

import (
	"crypto"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/miekg/dns"
)

// A key signs a zone, alone.
type key struct {
	dns.DNSKEY
	private crypto.Signer
}

var bits = map[uint8]int{
	dns.RSASHA256: 1024, dns.RSASHA512: 1024, dns.ECDSAP256SHA256: 256, dns.ECDSAP384SHA384: 384, dns.ED25519: 256,
}

func newKey(zone string, algorithm uint8) (*key, error) {
	k := &key{DNSKEY: dns.DNSKEY{Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 300}, Flags: dns.ZONE | dns.SEP, Protocol: 3, Algorithm: algorithm}}
	if algorithm == dns.ED448 {
		return k, k.generate448()
	}
	private, err := k.Generate(bits[algorithm])
	if err != nil {
		return nil, err
	}
	k.private = private.(crypto.Signer)
	return k, nil
}

func (k *key) sign(set []dns.RR, zone string, shift time.Duration) *dns.RRSIG {
	now := time.Now().Add(shift)
	sig := &dns.RRSIG{Hdr: dns.RR_Header{Ttl: set[0].Header().Ttl}, Algorithm: k.Algorithm, KeyTag: k.KeyTag(), SignerName: zone,
		Inception: uint32(now.Add(-time.Hour).Unix()), Expiration: uint32(now.Add(time.Hour).Unix())}
	if k.Algorithm == dns.ED448 {
		sig.Algorithm = dns.ED25519 // what the library can; the signer puts it right
	}
	if err := sig.Sign(k.private, set); err != nil {
		panic(fmt.Sprintf("%s cannot be signed: %v", set[0], err))
	}
	sig.Algorithm = k.Algorithm
	return sig
}

// ed448 signs by the program openssl: neither Go nor the library can (RFC 8080).
type ed448 struct{ pem []byte }

func (k *key) generate448() error {
	pem, err := exec.Command("openssl", "genpkey", "-algorithm", "ed448").Output()
	if err != nil {
		return fmt.Errorf("openssl: %w", err)
	}
	k.private = ed448{pem}
	public := exec.Command("openssl", "pkey", "-pubout", "-outform", "DER")
	if public.Stdin, err = in(pem); err != nil {
		return err
	}
	der, err := public.Output()
	if err != nil || len(der) < 57 {
		return fmt.Errorf("openssl: %d bytes: %w", len(der), err)
	}
	k.PublicKey = base64.StdEncoding.EncodeToString(der[len(der)-57:])
	return nil
}

func in(b []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err == nil {
		_, err = w.Write(b) // far less than a pipe holds
		_ = w.Close()
	}
	return r, err
}

// Public implements crypto.Signer.
func (ed448) Public() crypto.PublicKey { return nil }

// Sign implements crypto.Signer, of a message that says it is by another algorithm.
func (e ed448) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	dir, err := os.MkdirTemp("", "ed448")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	message[2] = dns.ED448 // RFC 4034, section 3.1.2
	secret, text := filepath.Join(dir, "key"), filepath.Join(dir, "message")
	if err := os.WriteFile(secret, e.pem, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(text, message, 0o600); err != nil {
		return nil, err
	}
	return exec.Command("openssl", "pkeyutl", "-sign", "-rawin", "-inkey", secret, "-in", text).Output()
}
