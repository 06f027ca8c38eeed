package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// asked are the names that nameservers have been asked for.
type asked struct {
	mu    sync.Mutex
	names map[string]bool
}

func (a *asked) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	a.mu.Lock()
	a.names[strings.ToLower(r.Question[0].Name)] = true
	a.mu.Unlock()
	netlab.Zone().ServeDNS(w, r)
}

func (a *asked) has(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.names[name]
}

// strangersOffice has everybody on the wire route the sentinels' networks to the machine, as an attacker would.
func strangersOffice(t *testing.T) (*office, *asked) {
	o, seen := newOffice(t), &asked{names: map[string]bool{}}
	o.must(o.world.world.ServeDNS(53, seen))
	o.must(o.world.world.Route("100.100.111.0/24", "192.0.2.1"))
	o.must(o.world.world.Route("fd00:2021:1111:8000:100:100:111:0/120", "2001:db8::1"))
	o.etc("resolv.conf", "nameserver 198.18.53.1\n")
	run := o.follow()
	t.Cleanup(func() { o.must(run.Stop()) })
	return o, seen
}

// How long an answer is waited for: where there should be one, or none.
const wanted, unwanted = 10 * time.Second, 500 * time.Millisecond

// askAs sends one question, and reports whether there is an answer.
func (o *office) askAs(from sender, network, source, server, name string, patience time.Duration) bool {
	o.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var conn net.Conn
	var err error
	if p, ok := from.(*netlab.Program); ok {
		conn, err = p.DialFrom(ctx, network, source, net.JoinHostPort(server, "53"))
	} else {
		conn, err = from.Dial(ctx, network, net.JoinHostPort(server, "53"))
	}
	if err != nil {
		return false
	}
	defer conn.Close()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	_, _, err = (&dns.Client{Timeout: patience}).ExchangeWithConn(m, &dns.Conn{Conn: conn})
	return err == nil
}

// Who is on the same wire, or behind it, gets no answer, has nothing looked up and so nothing opened; with whatever
// source.
func TestStrangersDoNotReachSentinels(t *testing.T) {
	t.Parallel()
	o, seen := strangersOffice(t)
	o.must(o.world.world.Sysctl("net/ipv4/ip_nonlocal_bind", "1"))
	o.must(o.world.world.Sysctl("net/ipv6/ip_nonlocal_bind", "1"))
	stranger, err := o.world.world.Program(netlab.As{})
	o.must(err)
	for _, family := range []struct {
		corefile, sentinel string
		sources            map[string]string
	}{
		{guardedSentinels, sentinel1, map[string]string{"own": "192.0.2.2:0", "machine": "192.0.2.1:0", "same": sentinel1 + ":0", "other": sentinel2 + ":0", "loopback": "127.0.0.1:0"}},
		{strings.Replace(guardedSentinels, "\tsentinel\n", "\tsentinel ipv6\n", 1), sentinel6,
			map[string]string{"own": "[2001:db8::2]:0", "machine": "[2001:db8::1]:0", "same": "[" + sentinel6 + "]:0", "loopback": "[::1]:0"}},
	} {
		o.runCoreDNSAgain(family.corefile)
		for source, addr := range family.sources {
			for _, network := range networks {
				name := strings.ToLower(source+"."+network) + "." + nameOf(60, "198.18.1.9")
				if o.askAs(stranger, network, addr, family.sentinel, name, unwanted) {
					t.Errorf("%s over %s from %s: an answer", family.sentinel, network, addr)
				}
				time.Sleep(50 * time.Millisecond) // it is on its way perhaps
				if seen.has(name) {
					t.Errorf("%s over %s from %s: it is looked up", family.sentinel, network, addr)
				}
			}
		}
		o.wantRefused(o.guard, "tcp", "198.18.1.9")
		for _, network := range networks {
			name := network + "." + strings.NewReplacer(":", "", ".", "").Replace(family.sentinel) + "." + nameOf(60, "198.18.1.8")
			if !o.askAs(o.guard, network, "", family.sentinel, name, wanted) {
				t.Errorf("the machine itself gets no answer over %s", network)
			}
			// IPv6 lets everybody forge sources: there the answer is to ask by TCP.
			if sent := network == "udp" && family.sentinel == sentinel6; seen.has(name) == sent {
				t.Errorf("%s over %s: looked up: %v", family.sentinel, network, !sent)
			}
		}
	}
}

// runCoreDNSAgain ends the one before.
func (o *office) runCoreDNSAgain(corefile string) {
	o.Helper()
	if o.running != nil {
		o.must(o.running.Stop())
	}
	o.running = o.runCoreDNSWhenItCan(corefile)
}

// Containers are let in by their network.
func TestSentinelsForContainers(t *testing.T) {
	t.Parallel()
	o, seen := strangersOffice(t)
	o.runCoreDNSWhenItCan(strings.Replace(plainSentinels, "sentinel\n", "sentinel {\n\t\tfrom 192.0.2.0/24\n\t}\n", 1))
	name := nameOf(60, "198.18.1.8")
	if !o.askAs(o.world.world, "udp", "", sentinel1, name, wanted) || !seen.has(name) {
		t.Error("it gets no answer")
	}
}

// Nameservers that are given are asked over TLS, HTTPS and QUIC, each by its own sentinel, with their certificates looked at.
func TestSentinelsOfGivenNameservers(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	theirs := newAuthority(t, "theirs")
	called := func(name string) string {
		cert, key := theirs.issue(name, x509.Certificate{DNSNames: []string{name}})
		return " tls " + cert + " " + key
	}
	tls := called(serverName)
	o.nameserver(1, "tls://.:853"+tls)
	o.nameserver(2, "https://.:443"+tls)
	o.nameserver(3)
	o.nameserver(4, "quic://.:853"+tls)
	o.nameserver(5, "tls://.:853"+called("other.example.com"))
	const lease = "nameserver 198.18.53.9\n" // nobody
	o.etc("resolv.conf", lease)
	time.Sleep(400 * time.Millisecond)
	_, _ = o.sentinel("-wait", "0s", "up") // for the addresses
	ca := filepath.Join(o.files, "etc", "ca.pem")
	text, err := os.ReadFile(theirs.file)
	o.must(err)
	o.save(ca, string(text))
	o.runCoreDNS(strings.Replace(guardedSentinels, "\tsentinel\n", "\tsentinel {\n\t\tto tls://198.18.53.1 https://198.18.53.2 198.18.53.3 quic://198.18.53.4 tls://198.18.53.5%other.example.com\n\t\ttls /etc/ca.pem\n\t\ttls_servername "+
		serverName+"\n\t}\n", 1))
	if out, err := o.sentinel("up"); err != nil {
		t.Fatalf("up: %v, %s", err, out)
	}
	for n := 1; n <= 5; n++ {
		server, addr := fmt.Sprintf("100.100.111.%d", n), fmt.Sprintf("198.18.1.%d", n)
		o.wantRefused(o.guard, "tcp", addr)
		m, err := o.ask(o.guard, server, "www.example.test.", dns.TypeA)
		if err != nil || len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), addr) {
			t.Errorf("%s: %v, %v", server, err, m)
		}
		o.wantOpen(o.guard, "tcp", addr)
	}
	o.wantAnswerBy(1, atOnce)
	if out, err := o.sentinel("down"); err != nil || o.resolvConf() != lease {
		t.Errorf("down: %v, %s; resolv.conf:\n%s", err, out, o.resolvConf())
	}
}

// An application that asks a sentinel opens for itself only.
func TestSentinelsTellApplicationsApart(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.nameserver(1)
	o.etc("resolv.conf", "nameserver 198.18.53.1\n")
	run := o.follow()
	c := o.runCoreDNSWhenItCan(strings.Replace(guardedSentinels, "upstream sentinel", "scope application\n\t\tupstream sentinel", 1))
	asks, other := o.program(netlab.As{Cgroup: o.cgroup("asks.service")}), o.program(netlab.As{Cgroup: o.cgroup("other.service")})
	if m, err := o.ask(asks, sentinel1, "www.example.test.", dns.TypeA); err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", err, m)
	}
	o.wantOpen(asks, "tcp", "198.18.1.1")
	o.wantRefused(other, "tcp", "198.18.1.1")

	// It goes on over a reload, and so do changes of nameservers.
	o.mustReload(c, strings.Replace(guardedSentinels, "upstream sentinel", "scope application\n\t\thold 2s\n\t\tupstream sentinel", 1))
	if m, err := o.ask(asks, sentinel1, "www.example.test.", dns.TypeA); err != nil || len(m.Answer) != 1 {
		t.Errorf("after a reload: %v, %v", err, m)
	}
	o.nameserver(2)
	o.etc("resolv.conf", "nameserver 198.18.53.2\n")
	o.eventually("the new nameserver answers", func() bool {
		m, err := o.ask(other, sentinel1, "www.example.test.", dns.TypeA)
		return err == nil && len(m.Answer) == 1 && strings.HasSuffix(m.Answer[0].String(), "198.18.1.2")
	})
	o.wantOpen(other, "tcp", "198.18.1.2")
	o.wantUpstreamShutAt("198.18.53.2")
	o.must(run.Stop())
}

// What cannot be right is said at the start, or before anything is changed.
func TestSentinelsWhereTheyCannotBe(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.nameserver(1)
	const lease = "nameserver 198.18.53.1\n"
	o.etc("resolv.conf", lease)
	time.Sleep(400 * time.Millisecond)
	_, _ = o.sentinel("-wait", "0s", "up") // for the addresses
	for corefile, want := range map[string]string{
		".:53 {\n\tsentinel\n\tcache\n}\n":                "Corefile:2: leave cache out",
		".:53 {\n\tsentinel\n\tbind 127.0.0.1\n}\n":       "Corefile:2: the server block listens on the sentinels: leave bind out",
		"tls://.:853 {\n\tsentinel\n\ttls c.pem k.pem\n}": "asks by plain DNS",
	} {
		c := o.coredns(strings.NewReplacer("c.pem", o.certificate(), "k.pem", o.certificate()+".key").Replace(corefile))
		if err := c.Wait(); err == nil || !strings.Contains(c.Output(), want) {
			t.Errorf("%q: %v, %s", corefile, err, c.Output())
		}
	}

	// As in a container.
	o.runCoreDNS(plainSentinels)
	cmd := o.command("sh", "-c", "mount --bind /etc/resolv.conf /etc/resolv.conf; "+sentinelBinary(t)+" up")
	if err := cmd.Run(); err == nil || !strings.Contains(cmd.Output(), "is a mount of its own") || o.resolvConf() != lease {
		t.Errorf("a mount: %v, %s; resolv.conf:\n%s", err, cmd.Output(), o.resolvConf())
	}
	left, err := filepath.Glob(filepath.Join(o.files, "etc/.resolv.conf*"))
	if err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

// certificate is a file with one, beside its key.
func (o *office) certificate() string {
	o.Helper()
	path := filepath.Join(o.files, "cert.pem")
	if _, err := os.Stat(path); err != nil {
		writeCertificate(o.T, path, path+".key")
	}
	return path
}

// A route's pool has the sentinels' network in it: what goes to those of this machine is for them, and nothing else is.
func TestSentinelsBesideRoutes(t *testing.T) {
	t.Parallel()
	for mode, corefile := range map[string]string{
		"nft-local": guardedSentinels,
		"nft-both":  strings.Replace(guardedSentinels, "sentinel\n}\n", "sentinel {\n\t\tfrom 192.0.2.0/24\n\t}\n}\n", 1),
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t)
			o.nameserver(1)
			o.must(o.world.world.Route("100.100.111.0/24", "192.0.2.1"))
			o.etc("resolv.conf", "nameserver 198.18.53.1\n")
			run := o.follow()
			book := filepath.Join(o.files, "book.db")
			o.runCoreDNSWhenItCan(strings.Replace(corefile, "nft-local {\n", mode+" {\n\t\troute routed.example.test {\n\t\t\tstate "+book+"\n\t\t}\n", 1))
			for _, network := range networks {
				if !o.askAs(o.guard, network, "", sentinel1, "www.example.test.", wanted) {
					t.Errorf("the machine gets no answer over %s", network)
				}
				if mode == "nft-both" && !o.askAs(o.world.world, network, "", sentinel1, "www.example.test.", wanted) {
					t.Errorf("a client that may ask gets no answer over %s", network)
				}
			}
			o.wantPointed(true)
			addr, _ := o.getent("routed.example.test")
			if !strings.HasPrefix(addr, "100.96.") {
				t.Errorf("the routed name has %s", addr)
			}
			o.wantOpen(o.guard, "tcp", addr)
			o.must(run.Stop())
			for _, network := range networks {
				if o.askAs(o.guard, network, "", sentinel1, "www.example.test.", unwanted) {
					t.Errorf("somebody answers over %s where no sentinel is", network)
				}
			}
		})
	}
}
