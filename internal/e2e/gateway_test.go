package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Egress gateways, as deployment/egress-gateway.md has them: with its Corefiles, its
// WireGuard configurations, and its commands, word for word but for the places of
// files and the addresses of examples.

const egressGuide = "../../deployment/egress-gateway.md"

// guide is the block of the guide whose first line is a comment that names it.
func (w *world) guide(name string) string {
	w.Helper()
	text, err := os.ReadFile(egressGuide)
	w.must(err)
	var found []string
	inside, block := false, ""
	for line := range strings.Lines(string(text)) {
		switch {
		case !inside && fence.MatchString(strings.TrimRight(line, "\n")):
			inside, block = true, ""
		case inside && fence.MatchString(strings.TrimRight(line, "\n")):
			if inside = false; strings.HasPrefix(block, "# "+name+"\n") {
				found = append(found, block)
			}
		default:
			block += line
		}
	}
	if len(found) != 1 {
		w.Fatalf("%s has %d blocks that begin with # %s", egressGuide, len(found), name)
	}
	return found[0]
}

// shell runs lines of a shell on a host. The first that fails ends them.
func (w *world) shell(h *netlab.Host, script string, args ...string) {
	w.Helper()
	c := h.Command("sh", append([]string{"-ec", script, "sh"}, args...)...)
	c.Env = withAdminsPath()
	if err := c.Run(); err != nil {
		w.Fatalf("on %s: %v\n%s\n%s", h.Name(), err, script, c.Output())
	}
}

// withAdminsPath is the environment with where root's programs are.
func withAdminsPath(more ...string) []string {
	return append(append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"), more...)
}

// egress is the world with gateways between the guard and the world:
//
//	client --- guard --- gateway --- world
//
// The guard's own way to the world remains beside them.
type egress struct {
	*world
	atlas    *atlas
	dir      string // keys and certificates, of both sides
	gateways []*gateway
	guarding *coredns
	env      []string
}

// A gateway is one of them. Its number is 1 or 2.
type gateway struct {
	*netlab.Host
	n       int
	coredns *coredns
	tunnel  *netlab.Cmd // nil where it is a wire
	state   string
}

// Real addresses of names, and what the guide has gateways leave with.
const (
	realA4, realA6       = "198.18.31.1", "2001:db8:18:31::1"
	realB4, realB6       = "198.18.31.2", "2001:db8:18:31::2"
	egress4, egress6     = "198.51.100.20", "2001:db8:100::20"
	egressOf2            = "198.51.100.148"
	masquerade4          = "198.51.100.10"
	masquerade6          = "2001:db8:100::10"
	quad9                = "9.9.9.9"
	resolverName         = "dns.quad9.net"
	routedName, another  = "www.github.com.", "api.partner.example."
	pool1of2, pool2of2   = "100.96.0.0/12", "100.112.0.0/12"
	pool1of26, pool2of26 = "fd00:2021:1111:8000::/108", "fd00:2021:1111:8000::10:0/108"
)

// newEgress makes n gateways, each behind a wire of its own, or behind a tunnel.
func newEgress(w *world, n int, tunnels bool) *egress {
	w.Helper()
	e := &egress{world: w, atlas: newAtlas(), dir: w.TempDir()}
	e.resolver()
	e.mirror(w.world)
	for _, name := range []string{routedName, another, "github.com.", "bystander.example."} {
		e.atlas.addrs(name, 60, realA4, realA6)
	}
	e.certificates()
	for i := range n {
		e.gateways = append(e.gateways, e.gateway(i+1, n, tunnels))
	}
	return e
}

// resolver has the world be the resolver that the guide's Corefiles ask, over TLS.
func (e *egress) resolver() {
	e.Helper()
	e.must(e.world.world.Local(quad9 + "/32"))
	e.must(e.world.world.Local("149.112.112.112/32"))
	cert, key := filepath.Join(e.dir, "resolver.pem"), filepath.Join(e.dir, "resolver-key.pem")
	writeCertificate(e.T, cert, key, resolverName)
	pair, err := tls.LoadX509KeyPair(cert, key)
	e.must(err)
	e.secured(e.atlas, pair)
	e.env = []string{"SSL_CERT_FILE=" + cert} // in place of the system's authorities
}

// certificates makes those of the guide.
func (e *egress) certificates() {
	e.Helper()
	c := exec.Command("sh", "-ec", e.guide("certificates"))
	c.Dir = e.dir
	if out, err := c.CombinedOutput(); err != nil {
		e.Fatalf("%v: %s", err, out)
	}
}

// clientTLS is what the guard shows the gateway, or nothing.
func (e *egress) clientTLS(certificate bool) *tls.Config {
	e.Helper()
	text, err := os.ReadFile(filepath.Join(e.dir, "ca.pem"))
	e.must(err)
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "egress.internal"}
	config.RootCAs.AppendCertsFromPEM(text)
	if certificate {
		pair, err := tls.LoadX509KeyPair(filepath.Join(e.dir, "guard.pem"), filepath.Join(e.dir, "guard-key.pem"))
		e.must(err)
		config.Certificates = []tls.Certificate{pair}
	}
	return config
}

// of fits a block of the guide for one of several gateways.
func of(n, all int, text string) string {
	if all == 1 {
		return text
	}
	part4, part6 := pool1of2, pool1of26
	if n == 2 {
		part4, part6 = pool2of2, pool2of26
		text = strings.NewReplacer("egress1", "egress2", "10.111.", "10.112.", "fd11::", "fd12::", egress4, egressOf2,
			egress6, "2001:db8:101::20", "203.0.113.1", "203.0.113.5").Replace(text)
	}
	return strings.NewReplacer("100.96.0.0/11", part4, "fd00:2021:1111:8000::/107", part6).Replace(text)
}

func (e *egress) gateway(n, all int, tunnels bool) *gateway {
	e.Helper()
	host := e.host(fmt.Sprintf("egress%d", n))
	g := &gateway{Host: host, n: n, state: e.TempDir()}
	wan := fmt.Sprintf("eth%d", n)
	e.must(e.lab.Link(host, "wan0", e.world.world, wan))
	net4, net6, first := "198.51.100.%d/25", fmt.Sprintf("2001:db8:%d::%%d/64", 99+n), 128*(n-1)
	e.addrs(host, "wan0", fmt.Sprintf(net4, first+10), fmt.Sprintf(net6, 10))
	e.addrs(e.world.world, wan, fmt.Sprintf(net4, first+1), fmt.Sprintf(net6, 1))
	e.must(host.Route("0.0.0.0/0", fmt.Sprintf("198.51.100.%d", first+1)))
	e.must(host.Route("::/0", fmt.Sprintf("2001:db8:%d::1", 99+n)))
	e.shell(host, of(n, all, e.guide("egress: addresses and forwarding")))
	if tunnels {
		e.tunnel(g, all)
		return g
	}
	e.must(e.lab.Link(e.guard, fmt.Sprintf("egress%d", n), host, "guard"))
	e.shell(e.guard, of(n, all, e.guide("guard: without a tunnel")))
	e.shell(host, of(n, all, e.guide("egress: without a tunnel")))
	return g
}

// tunnel brings up both ends, with wg-quick.
func (e *egress) tunnel(g *gateway, all int) {
	e.Helper()
	userspace := e.userspaceWireGuard(e.dir)
	under, over := fmt.Sprintf("203.0.113.%d/30", 4*g.n-3), fmt.Sprintf("203.0.113.%d/30", 4*g.n-2)
	e.must(e.lab.Link(e.guard, fmt.Sprintf("under%d", g.n), g.Host, "under"))
	e.must(g.Addr("under", under))
	e.must(e.guard.Addr(fmt.Sprintf("under%d", g.n), over))

	keys := map[*netlab.Host]string{}
	dirs := map[*netlab.Host]string{e.guard: e.TempDir(), g.Host: e.TempDir()}
	place := func(h *netlab.Host, text string) string {
		return strings.ReplaceAll(text, "/etc/wireguard", dirs[h])
	}
	for h := range dirs {
		c := h.Command("sh", "-ec", place(h, e.guide("keys")))
		e.must(c.Run())
		keys[h] = strings.TrimSpace(c.Output())
	}
	up := func(h *netlab.Host, name string) *netlab.Cmd {
		file := e.guide(name)
		conf := place(h, of(g.n, all, name[strings.Index(name, "/"):]))
		text := place(h, of(g.n, all, strings.NewReplacer("PUBLIC-KEY-OF-THE-GATEWAY", keys[g.Host], "PUBLIC-KEY-OF-THE-GUARD", keys[e.guard]).Replace(file)))
		e.must(os.WriteFile(conf, []byte(text), 0o600))
		// In a /run of its own, where interfaces of other hosts are not known by name.
		c := h.Command("unshare", "--mount", "sh", "-ec", "mount -t tmpfs tmpfs /run; wg-quick up \"$1\"; echo it is up; sleep 100000", "sh", conf)
		c.Env = withAdminsPath("WG_QUICK_USERSPACE_IMPLEMENTATION=" + userspace)
		e.must(c.Start())
		e.Cleanup(func() {
			if e.Failed() {
				e.Logf("wg-quick of %s wrote:\n%s", h.Name(), c.Output())
			}
		})
		e.eventually("the tunnel of "+h.Name()+" is up", func() bool {
			if strings.Contains(c.Output(), "it is up\n") {
				return true
			}
			if err := c.Signal(syscall.Signal(0)); err != nil {
				e.Fatalf("wg-quick: %v\n%s", err, c.Output())
			}
			return false
		})
		return c
	}
	g.tunnel = up(g.Host, "egress: /etc/wireguard/guard.conf")
	up(e.guard, "guard: /etc/wireguard/egress1.conf")
}

// fit puts the files of a Corefile of the guide into their places, and lets names have
// the addresses of examples.
func (e *egress) fit(corefile string) string {
	text := strings.NewReplacer(
		"/run/credentials/ipdestinationguard-coredns.service/", e.dir+"/",
		"/etc/coredns/", e.dir+"/",
	).Replace(corefile)
	const setting = "mode nft-gateway\n"
	if !strings.Contains(text, setting) {
		e.Fatalf("no %s in\n%s", setting, text)
	}
	return strings.Replace(text, setting, setting+examples+"\n", 1)
}

// starts runs CoreDNS on a host and returns when its rules are in force.
func (e *egress) starts(h *netlab.Host, corefile, state string) *coredns {
	e.Helper()
	c := e.runAs(netlab.As{}, h, corefile, append(slices.Clone(e.env), "STATE_DIRECTORY="+state)...)
	e.inForce(c)
	return c
}

// startGateways starts the gateways, each with the Corefile that the guide has for it.
func (e *egress) startGateways() {
	e.Helper()
	for _, g := range e.gateways {
		e.startGateway(g)
	}
}

func (e *egress) startGateway(g *gateway) {
	e.Helper()
	name := "egress: /etc/coredns/Corefile"
	if len(e.gateways) > 1 {
		name = "egress 2: /etc/coredns/Corefile"
	}
	text := e.guide(name)
	if len(e.gateways) > 1 && g.n == 1 {
		text = strings.NewReplacer("10.112.0.1", "10.111.0.1", pool2of2, pool1of2, pool2of26, pool1of26, egressOf2, egress4, "2001:db8:101::20", egress6).Replace(text)
	}
	g.coredns = e.starts(g.Host, e.fit(text), g.state)
}

// startGuard starts the guard's CoreDNS with a Corefile of the guide, and lines of a
// directive besides.
func (e *egress) startGuard(name string) {
	e.Helper()
	e.guarding = e.starts(e.guard, e.fit(e.guide(name)), e.TempDir())
}

// tlsClient speaks TLS over a connection.
func tlsClient(conn net.Conn, config *tls.Config) net.Conn { return tls.Client(conn, config) }

// says64K has 64 KiB echoed.
func says64K(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	failed := make(chan error, 1)
	go func() { _, err := conn.Write(sent); failed <- err }()
	got := make([]byte, len(sent))
	_, err := io.ReadFull(conn, got)
	if err = errors.Join(err, <-failed); err == nil && !bytes.Equal(sent, got) {
		err = errors.New("other bytes came back")
	}
	return err
}
