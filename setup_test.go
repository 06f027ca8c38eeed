package ipdestinationguard

import (
	"errors"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/whoami"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/fake"
)

func init() {
	dnsserver.Quiet = true
	// trouble comes when everything has been set up, as a port that is taken.
	dnsserver.Directives = []string{"bind", name, "whoami", "forward", "trouble"}
	plugin.Register("trouble", func(c *caddy.Controller) error {
		c.OnStartup(func() error { return errors.New("trouble") })
		return nil
	})
}

// coredns is CoreDNS in this process, with fake backends.
type coredns struct {
	*testing.T
	instance *caddy.Instance
	kernel   *fake.Backend // of the newest guard; nil while there never was one
	kernels  int
}

func newCoreDNS(t *testing.T) *coredns {
	c := &coredns{T: t}
	real, time := newBackend, new(clock)
	newBackend = func(inForce *backend.InForce, events backend.Observer) backend.Backend {
		c.kernels++
		c.kernel = fake.New(inForce, events, time.now)
		return c.kernel
	}
	t.Cleanup(func() {
		c.stop()
		_ = shutdown() // after a start that failed, too
		newBackend = real
	})
	return c
}

// load starts with a Corefile or reloads with it.
func (c *coredns) load(text string) error {
	input := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text), ServerTypeName: "dns"}
	if c.instance == nil {
		instance, err := caddy.Start(input)
		if err == nil {
			c.instance = instance
		}
		return err
	}
	instance, err := c.instance.Restart(input)
	c.instance = instance
	return err
}

func (c *coredns) mustLoad(text string) {
	c.Helper()
	if err := c.load(text); err != nil {
		c.Fatal(err)
	}
}

// stop ends CoreDNS as SIGTERM does.
func (c *coredns) stop() {
	if c.instance == nil {
		return
	}
	for _, err := range c.instance.ShutdownCallbacks() {
		c.Error(err)
	}
	if err := c.instance.Stop(); err != nil {
		c.Error(err)
	}
	c.instance = nil
}

// wantKernel fails the test unless this is in force, written without tabs.
func (c *coredns) wantKernel(want string) {
	c.Helper()
	if c.kernel == nil {
		if want != "" {
			c.Error("there is no backend")
		}
		return
	}
	if got := strings.ReplaceAll(c.kernel.String(), "\t", ""); got != want {
		c.Errorf("in force:\n%s\nwant:\n%s", got, want)
	}
}

// corefile makes a Corefile with a server block for each text.
func corefile(texts ...string) string {
	var b strings.Builder
	for i, text := range texts {
		b.WriteString(string(rune('a'+i)) + ".test:0 {\n bind 127.0.0.1\n " + text + "\n whoami\n}\n")
	}
	return b.String()
}

const (
	localInForce = "table ipdestinationguard\nguards output\n"
	bothInForce  = "table ipdestinationguard\nguards output\nguards forward\n"
	nothing      = "nothing is guarded\n"
)

func TestServerBlocksShareOneGuard(t *testing.T) {
	const full = "ipdestinationguard nft-both 192.0.2.0/24 {\n interfaces lan0\n}"
	for _, tt := range []struct {
		name   string
		blocks []string
	}{
		{"one block", []string{full}},
		{"the same twice", []string{full, full}},
		{"the bare word after it", []string{full, "ipdestinationguard", "ipdestinationguard"}},
		{"the bare word before it", []string{"ipdestinationguard", full}},
		{"a block without", []string{"", full}},
		{"only what is a block's own after it", []string{full, "ipdestinationguard {\n private **\n canary off\n}"}},
		{"only what is a block's own before it", []string{"ipdestinationguard {\n private a.test 10.0.0.0/8\n}", full}},
		{"other words for the same", []string{full, "ipdestinationguard {\n allowedIPs 192.0.2.0/25 192.0.2.128/25\n mode nft-both\n interfaces lan0 lan0\n hold 1000ms\n}"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCoreDNS(t)
			c.mustLoad(corefile(tt.blocks...))
			c.wantKernel(bothInForce + "only from lan0\nallows 192.0.2.0/24\n")
			if c.kernels != 1 {
				t.Errorf("%d guards", c.kernels)
			}
		})
	}
}

// What is to be enforced comes from the whole Corefile, and the lines that forward
// are read even in blocks that are not guarded.
func TestRulesOfAWholeCorefile(t *testing.T) {
	c := newCoreDNS(t)
	c.mustLoad(corefile("ipdestinationguard nft-local {\n  upstream 192.0.2.53 192.0.2.54:5353\n }", "forward . tls://192.0.2.53",
		"ipdestinationguard {\n  ports tcp/443\n }", "ipdestinationguard {\n  ports tcp/443-443\n }", "ipdestinationguard {\n  ports udp/443\n }"))
	c.wantKernel(localInForce + "class 1 tcp/443\nclass 2 udp/443\nopens to CoreDNS 192.0.2.53:853\nopens to CoreDNS 192.0.2.54:5353\n")
	c.mustLoad(corefile("ipdestinationguard nft-local", "ipdestinationguard {\n  ports udp/443\n }"))
	c.wantKernel(localInForce + "class 2 udp/443\n")
}

// A Corefile that cannot be served touches nothing.
func TestStartFails(t *testing.T) {
	for _, tt := range []struct{ name, corefile, want string }{
		{"a mistake", corefile("ipdestinationguard nft-all"),
			`Corefile:3 - Error during parsing: unknown mode "nft-all"`},
		{"a mistake in a later block", corefile("ipdestinationguard nft-local", "ipdestinationguard nft-local {\n  hold 0\n }"),
			"Corefile:9 - Error during parsing: hold 0s would withhold every answer"},
		{"a mistake of another plugin", corefile("ipdestinationguard nft-local\n bind nowhere/"), ""},
		{"blocks contradict each other", corefile("ipdestinationguard nft-local", "ipdestinationguard nft-both"),
			"plugin/ipdestinationguard: mode nft-both at Corefile:8 contradicts nft-local at Corefile:3"},
		{"nobody sets up, only what is their own", corefile("ipdestinationguard {\n  private **\n }"),
			"plugin/ipdestinationguard: Corefile:3 joins a guard, but no server block sets one up"},
		{"nobody sets up", corefile("ipdestinationguard", "ipdestinationguard"),
			"plugin/ipdestinationguard: Corefile:3 joins a guard, but no server block sets one up"},
		{"users of a gateway", corefile("ipdestinationguard nft-gateway", "ipdestinationguard {\n  users 0\n }"),
			"plugin/ipdestinationguard: Corefile:8: users and units are for programs of this machine: in mode nft-gateway they are not guarded"},
		{"nobody hears what is captured", corefile("ipdestinationguard nft-gateway {\n  capture\n }"),
			"plugin/ipdestinationguard: Corefile:3: capture: no server block with ipdestinationguard listens for plain DNS where clients reach it"},
		{"another plugin does not start", corefile("ipdestinationguard nft-local\n trouble"), "trouble"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCoreDNS(t)
			err := c.load(tt.corefile)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if c.kernel != nil {
				c.wantKernel(nothing)
			}
		})
	}
}

func TestStartFailsWithoutRights(t *testing.T) {
	c := newCoreDNS(t)
	withRights := newBackend
	newBackend = func(inForce *backend.InForce, events backend.Observer) backend.Backend {
		b := withRights(inForce, events)
		c.kernel.Refuse(&backend.PermissionError{Need: "CAP_NET_ADMIN", Err: errors.New("operation not permitted")})
		return b
	}
	err := c.load(corefile("ipdestinationguard nft-local"))
	const want = "Corefile:3: the firewall cannot be set up: operation not permitted: the process needs CAP_NET_ADMIN"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	c.wantKernel(nothing)
}

func TestReload(t *testing.T) {
	c := newCoreDNS(t)
	c.mustLoad(corefile("ipdestinationguard nft-local"))
	c.wantKernel(localInForce)
	for _, tt := range []struct{ name, corefile, want string }{
		{"the same", corefile("ipdestinationguard nft-local"), localInForce},
		{"other settings", corefile("ipdestinationguard nft-both 192.0.2.1", "ipdestinationguard"), bothInForce + "allows 192.0.2.1/32\n"},
		{"back", corefile("ipdestinationguard nft-local"), localInForce},
	} {
		c.mustLoad(tt.corefile)
		c.wantKernel(tt.want)
	}
	if c.kernels != 1 {
		t.Errorf("%d guards, want the same one all the time", c.kernels)
	}
	c.stop()
	c.wantKernel(localInForce) // on_exit keep
	if running() != nil {
		t.Error("the guard runs after the end")
	}
}

func TestReloadFails(t *testing.T) {
	c := newCoreDNS(t)
	c.mustLoad(corefile("ipdestinationguard nft-local"))
	g := running()
	for _, tt := range []struct{ name, corefile, want string }{
		{"a mistake", corefile("ipdestinationguard nft-all"), "unknown mode"},
		{"another plugin does not start", corefile("ipdestinationguard nft-both\n trouble"), "trouble"},
		{"another table", corefile("ipdestinationguard nft-local {\n table other\n}"),
			`Corefile:3: the table cannot be renamed from "ipdestinationguard" to "other" by a reload: restart CoreDNS`},
	} {
		if err := c.load(tt.corefile); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got  %v\nwant %s", tt.name, err, tt.want)
		}
		c.wantKernel(localInForce)
		if running() != g || !g.enforcing.Load() {
			t.Fatalf("%s: the guard is another or has ended", tt.name)
		}
	}
	c.mustLoad(corefile("ipdestinationguard nft-both"))
	c.wantKernel(bothInForce)
}

// The kernel may refuse after it has agreed: the old rules stay, and so does
// CoreDNS.
func TestReloadIsRefusedLate(t *testing.T) {
	c := newCoreDNS(t)
	c.mustLoad(corefile("ipdestinationguard nft-local"))
	g := running()
	c.kernel.Refuse(errors.New("no"))
	s := defaultSettings
	s.mode = modeBoth
	started(&caddy.Instance{Storage: map[any]any{generationKey{}: &generation{settings: &s}}})
	c.wantKernel(localInForce)
	if running() != g || g.settings.Load().mode != modeLocal {
		t.Error("the guard has ended, or works with settings that are not in force")
	}
	c.kernel.Refuse(nil)
}

func TestReloadWithoutTheDirective(t *testing.T) {
	for onExit, want := range map[string]string{"keep": localInForce, "remove": nothing} {
		t.Run(onExit, func(t *testing.T) {
			c := newCoreDNS(t)
			c.mustLoad(corefile("ipdestinationguard nft-local {\n on_exit " + onExit + "\n}"))
			c.mustLoad(corefile(""))
			c.wantKernel(want)
			if running() != nil {
				t.Error("the guard still runs")
			}
			c.mustLoad(corefile("ipdestinationguard nft-both"))
			c.wantKernel(bothInForce)
			if c.kernels != 2 {
				t.Errorf("%d guards, want a new one", c.kernels)
			}
		})
	}
}

func TestStopRemoves(t *testing.T) {
	c := newCoreDNS(t)
	c.mustLoad(corefile("ipdestinationguard nft-local {\n on_exit remove\n}"))
	c.wantKernel(localInForce)
	c.stop()
	c.wantKernel(nothing)
}
