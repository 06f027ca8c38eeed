package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"testing"
	"time"
)

// authority issues certificates, into files of a folder.
type authority struct {
	*testing.T
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	file   string
	issued int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{T: t, dir: t.TempDir()}
	a.cert = &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	var der []byte
	der, a.key = a.sign(a.cert, nil, nil)
	a.cert, _ = x509.ParseCertificate(der)
	a.file = a.save(name+".crt", "CERTIFICATE", der)
	return a
}

// sign makes a key and a certificate for it; its own authority's, if there is none.
func (a *authority) sign(c *x509.Certificate, parent *x509.Certificate, by *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	if parent == nil {
		parent, by = c, key
	}
	a.issued++
	c.SerialNumber = big.NewInt(a.issued)
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		a.Fatal(err)
	}
	return der, key
}

// issue writes a certificate of the authority, and its key, and returns the files.
func (a *authority) issue(file string, c x509.Certificate) (cert, key string) {
	a.Helper()
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, private := a.sign(&c, a.cert, a.key)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.Fatal(err)
	}
	return a.save(file+".crt", "CERTIFICATE", der), a.save(file+".key", "PRIVATE KEY", secret)
}

func (a *authority) save(file, kind string, bytes []byte) string {
	a.Helper()
	path := filepath.Join(a.dir, file)
	(&world{T: a.T}).save(path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes})))
	return path
}

// client is how somebody with a certificate, or without one, speaks TLS to a server of
// this authority.
func (a *authority) client(c *x509.Certificate) *tls.Config {
	a.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: serverName}
	config.RootCAs.AddCert(a.cert)
	if c != nil {
		cert, err := tls.LoadX509KeyPair(a.issue("client", *c))
		if err != nil {
			a.Fatal(err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config
}
