package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reload has the binary read another Corefile and returns when it is in force,
// or has been refused: then with what is said about it.
func (w *world) reload(c *coredns, corefile string) error {
	w.Helper()
	w.write(c, corefile)
	before := len(c.Output())
	w.must(c.Signal(syscall.SIGUSR1))
	var refusal string
	w.eventually("the reload is over", func() bool {
		said := c.Output()[before:]
		if _, after, failed := strings.Cut(said, "[ERROR] SIGUSR1: "); failed && strings.Contains(after, "\n") {
			refusal = said
			return true
		}
		return strings.Contains(said, "[INFO] Reloading complete\n")
	})
	if refusal != "" {
		return errors.New(refusal)
	}
	return nil
}

// write puts another Corefile in the place of the old one, in one step.
func (w *world) write(c *coredns, corefile string) {
	w.Helper()
	w.must(os.WriteFile(c.corefile+".new", []byte(corefile), 0o644))
	w.must(os.Rename(c.corefile+".new", c.corefile))
}

// mustReload is reload with a good Corefile.
func (w *world) mustReload(c *coredns, corefile string) {
	w.Helper()
	if err := w.reload(c, corefile); err != nil {
		w.Fatalf("a good Corefile was refused:\n%s\n%v", corefile, err)
	}
}

// Two hundred reloads, each with another Corefile, while everything goes on.
func TestReloadsUnderLoad(t *testing.T) {
	const reloads = 200
	// Addresses with a long grant, and some that all Corefiles allow.
	granted := []string{"198.18.190.1", "2001:db8:18:190::1"}
	allowed := []string{"198.18.200.9", "2001:db8:18:200::9"}
	const always = resolver4 + " 198.18.200.0/24 2001:db8:18:200::/64"

	for _, test := range []struct {
		name       string
		directives []string
		guarded    func(*world) party // by each of them
	}{
		{"local", []string{
			"ipdestinationguard nft-local " + always,
			"ipdestinationguard nft-both " + always,
			"ipdestinationguard {\n mode nft-both\n allowedIPs " + always + "\n margin 2m\n interfaces lan0\n}",
			"ipdestinationguard {\n mode nft-local\n allowedIPs 192.0.2.0/24\n allowedLocalIPs 198.18.200.0/23 2001:db8:18:200::/56\n allowedGatewayIPs 198.18.210.0/24\n ttl 2m 12h\n}\ncache 30",
			"ipdestinationguard {\n mode nft-both\n allowedLocalIPs " + always + "\n allowedGatewayIPs 198.18.200.0/24 2001:db8:18:200::/64\n hold 3s\n on_exit remove\n}",
		}, (*world).self},
		{"gateway", []string{
			"ipdestinationguard nft-gateway " + always,
			"ipdestinationguard nft-both " + always,
			"ipdestinationguard {\n mode nft-both\n allowedIPs " + always + "\n margin 2m\n interfaces lan0 lan1\n}",
			"ipdestinationguard {\n mode nft-gateway\n allowedGatewayIPs " + always + "\n interfaces lan0\n}\ncache 30",
		}, (*world).behind},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var files []string
			for _, d := range test.directives {
				files = append(files, corefile(d))
			}
			p := test.guarded(w)
			host, server := p.Host, p.resolver4
			c := w.start(corefile("ipdestinationguard {\n mode nft-both\n allowedIPs " + always + "\n ttl 1s 2h\n margin 0s\n}"))
			outlived := w.brief(p, p.addr4(9), 1, 0)
			live := []net.Conn{w.connected(host, outlived.addr)} // goes on without its grant
			for _, addr := range granted {
				w.lookup(host, server, addr, 3600)
			}
			for _, addr := range slices.Concat(granted, allowed) {
				live = append(live, w.connected(host, addr))
			}
			w.endsByItself(outlived)
			for range 2 * len(files) { // whatever is made once
				w.mustReload(c, files[0])
			}
			goroutines, descriptors := w.settled("go_goroutines", 0), w.settled("process_open_fds", 0)

			tr := w.traffic()
			tr.neverOpen(host)
			for _, addr := range slices.Concat(granted, allowed) {
				tr.alwaysOpen(host, addr)
			}
			tr.alive(live...)
			for range 3 {
				tr.asks(host, server, false)
			}
			var longest, sum time.Duration
			for n := range reloads {
				file := files[(n+1)%len(files)]
				began := time.Now()
				w.mustReload(c, file)
				took := time.Since(began)
				longest, sum = max(longest, took), sum+took
			}
			tr.end()
			t.Logf("%d reloads took %v each, %v the longest", reloads, (sum / reloads).Round(10*time.Microsecond), longest)
			if n := strings.Count(c.Output(), "In force: "); n != 1+2*len(files)+reloads {
				t.Errorf("in force %d times, want %d", n, 1+2*len(files)+reloads)
			}
			for _, problem := range []string{"[ERROR]", "[PANIC]", "DATA RACE", "Somebody else"} {
				if strings.Contains(c.Output(), problem) {
					t.Errorf("CoreDNS wrote %s:\n%s", problem, c.Output())
				}
			}
			w.mustReload(c, files[0])
			const few = 4 // idle connections of forward, this question's own
			for _, v := range []struct {
				variable string
				before   float64
			}{{"go_goroutines", goroutines}, {"process_open_fds", descriptors}} {
				after := w.settled(v.variable, v.before+few)
				t.Logf("%s: %v before the reloads, %v after", v.variable, v.before, after)
				if after > v.before+few {
					t.Errorf("%s: %v before the reloads, %v after", v.variable, v.before, after)
				}
			}
			for variable, want := range map[string]float64{
				"coredns_ipdestinationguard_enforcing":           1,
				"coredns_ipdestinationguard_kernel_errors_total": 0,
				"coredns_ipdestinationguard_repairs_total":       0,
			} {
				if got := w.metric(variable); got != want {
					t.Errorf("%s is %v, want %v", variable, got, want)
				}
			}
		})
	}
}

// No packet is refused that is allowed before and after.
func TestReloadRefusesNoPacket(t *testing.T) {
	const allowed, granted = "198.18.200.9", "198.18.1.1"
	for _, test := range []struct {
		name, addr string
		directives []string
	}{
		{"nothing changes", allowed, []string{
			"ipdestinationguard nft-local " + resolver4 + " 198.18.200.0/24",
		}},
		{"the lists change", allowed, []string{
			"ipdestinationguard nft-local " + resolver4 + " 198.18.200.0/24",
			"ipdestinationguard nft-both 192.0.2.0/24 198.18.200.0/25 198.18.202.0/24 10.0.0.0/8",
		}},
		{"a grant", granted, []string{
			"ipdestinationguard {\n mode nft-gateway\n}",
			"ipdestinationguard nft-both " + resolver4,
			"ipdestinationguard nft-local " + resolver4,
		}},
		{"to another list", allowed, []string{
			"ipdestinationguard nft-local " + resolver4 + " 198.18.200.0/24",
			"ipdestinationguard {\n mode nft-local\n allowedLocalIPs " + resolver4 + " 198.18.200.0/24\n}",
		}},
		{"with a new chain", allowed, []string{
			"ipdestinationguard {\n mode nft-gateway\n}",
			"ipdestinationguard {\n mode nft-both\n allowedLocalIPs " + resolver4 + " 198.18.200.0/24\n}",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var files []string
			for _, d := range test.directives {
				files = append(files, corefile(d))
			}
			c := w.start(files[0])
			w.lookup(w.guard, "127.0.0.1", granted, 3600)
			tr := w.traffic()
			tr.flood(test.addr)
			for n := range 30 {
				w.mustReload(c, files[(n+1)%len(files)])
			}
			tr.end()
		})
	}
}

// connected opens a connection and uses it.
func (w *world) connected(from sender, addr string) net.Conn {
	w.Helper()
	conn, err := w.dial(from, "tcp", addr)
	w.must(err)
	w.Cleanup(func() { conn.Close() })
	w.must(echo(conn))
	return conn
}

// settled returns a variable when it stands still, at most at the bound if there
// is one, or when it does not after a while.
func (w *world) settled(variable string, bound float64) float64 {
	w.Helper()
	last, same := -1.0, 0
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		n := w.metric(variable)
		if n == last && (bound == 0 || n <= bound) {
			if same++; same == 3 {
				break
			}
			continue
		}
		last, same = n, 0
	}
	return last
}

// A Corefile with a fault leaves all as it is.
func TestBrokenReloadChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const directive = "ipdestinationguard nft-both " + resolver4 + " 198.18.200.0/24"
	const changed = "ipdestinationguard {\n mode nft-local\n allowedIPs 198.18.201.0/24\n table NAME\n}"
	good := corefile(directive)
	other := corefile(strings.Replace(changed, "NAME", guardTable, 1)) // good as well
	taken, err := w.guard.Listen("tcp", ":5300")
	w.must(err)
	defer taken.Close()
	takenPacket, err := w.guard.ListenPacket("udp", ":5301")
	w.must(err)
	defer takenPacket.Close()

	c := w.start(good)
	live := []net.Conn{w.connected(w.guard, "198.18.200.1"), w.connected(w.client, "198.18.200.2")}
	tr := w.traffic()
	tr.neverOpen(w.guard)
	tr.neverOpen(w.client)
	tr.alwaysOpen(w.guard, "198.18.200.3")
	tr.alwaysOpen(w.client, "198.18.200.3")
	tr.alive(live...)

	n := 0
	for _, test := range []struct{ name, corefile, want string }{
		{"an unknown option", corefile("ipdestinationguard {\n mode nft-local\n allowIPs 192.0.2.1\n}"), "Corefile:5 - Error during parsing: unknown option \"allowIPs\""},
		{"an unknown mode", corefile("ipdestinationguard nft-all"), `unknown mode "nft-all"`},
		{"no settings at all", corefile("ipdestinationguard"), "no server block sets one up"},
		{"blocks that contradict each other", good + strings.Replace(other, ". {", "other.test:1053 {", 1), "contradicts nft-both at"},
		{"a bad value in the last block", good + "other.test {\n ipdestinationguard nft-both 1.2.3.4/33\n}\n", "at most 32 bits"},
		{"a table renamed", corefile(strings.Replace(changed, "NAME", "other", 1)), `the table cannot be renamed from "ipdestinationguard" to "other" by a reload: restart CoreDNS`},
		{"a brace too few", strings.TrimSuffix(other, "}\n"), "Syntax error"},
		{"an unknown directive", other + "example.test {\n frobnicate\n}\n", "Unknown directive 'frobnicate'"},
		{"another plugin's mistake", strings.Replace(other, "errors\n", "errors\n\tforward\n", 1), "plugin/forward"},
		{"a mistake in another server block", other + "example.test {\n cache {\n  frobnicate\n }\n}\n", "plugin/cache"},
		{"a plugin that cannot start", other + "example.test {\n health 203.0.113.1:8080\n}\n", "cannot assign requested address"},
		{"a file that is not there", other + "example.test {\n tls /nowhere.pem /nowhere.key\n}\n", "/nowhere.pem"},
		{"a TCP port that is taken", other + ".:5300 {\n whoami\n}\n", "address already in use"},
		{"a UDP port that is taken", other + ".:5301 {\n whoami\n}\n", "address already in use"},
		{"an address of somebody else", other + ".:1053 {\n bind 203.0.113.1\n whoami\n}\n", "cannot assign requested address"},
	} {
		before := w.firewall()
		err := w.reload(c, test.corefile)
		switch {
		case err == nil:
			t.Fatalf("%s: the reload succeeded", test.name)
		case !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: nothing is said of %q:\n%v", test.name, test.want, err)
		}
		if after := w.firewall(); after != before {
			t.Errorf("%s: the firewall was\n%s\nand is now\n%s", test.name, before, after)
		}
		for _, p := range []party{w.self(), w.behind()} {
			for _, addr := range []string{p.addr4(100 + n), p.addr6(100 + n)} {
				w.lookup(p.Host, p.resolver4, addr, 3600)
				w.wantOpen(p.Host, "tcp", addr)
			}
			w.wantShut(p.Host, fmt.Sprintf("198.18.201.%d", n+1)) // what only the broken ones allow
		}
		if !w.ready() {
			t.Errorf("%s: not ready any more", test.name)
		}
		n++
	}
	tr.end()

	// The mistake repaired, it takes effect.
	w.mustReload(c, other)
	w.wantOpen(w.guard, "tcp", "198.18.201.1")
	w.wantShut(w.guard, "198.18.200.3")
	w.wantOpen(w.client, "tcp", "198.18.200.3") // guarded no more
	if strings.Contains(c.Output(), "[PANIC]") {
		t.Error("there was a panic")
	}
}

// A Corefile without the plugin ends the guard, as on_exit says, and the next
// one with it begins anew.
func TestReloadWithoutThePlugin(t *testing.T) {
	for _, leave := range []string{"keep", "remove"} {
		t.Run(leave, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			guarded := corefile("ipdestinationguard {\n mode nft-both\n allowedLocalIPs " + resolver4 + "\n margin 1s\n ttl 1s 1h\n on_exit " + leave + "\n}")
			without := corefile("")
			c := w.start(guarded)
			parties := []party{w.self(), w.behind()}
			var live []net.Conn
			for _, p := range parties {
				w.lookup(p.Host, p.resolver4, p.addr4(1), 3600)
				live = append(live, w.connected(p.Host, p.addr4(1)))
			}
			tr := w.traffic()
			tr.alive(live...)
			for round := range 3 {
				shut := w.traffic()
				for _, p := range parties {
					shut.neverOpen(p.Host)
					if leave == "keep" {
						shut.alwaysOpen(p.Host, p.addr4(1))
					}
				}
				time.Sleep(50 * time.Millisecond)
				if leave == "remove" {
					shut.end()
				}
				before := w.rules()
				p := parties[round%2]
				short := w.brief(p, p.addr4(3+round), 1, time.Second)
				w.mustReload(c, without)
				for _, p := range parties {
					w.lookup(p.Host, p.resolver4, p.addr4(50+round), 60) // CoreDNS still answers
					if leave == "keep" {
						w.wantShut(p.Host, p.addr4(50+round))
					} else {
						w.wantOpen(p.Host, "tcp", p.addr4(50+round))
					}
				}
				if leave == "keep" {
					w.endsByItself(short)
					if after := w.rules(); after != before {
						t.Errorf("on_exit keep: the firewall was\n%s\nand is now\n%s", before, after)
					}
				} else if tables := w.tables(); len(tables) > 0 {
					t.Errorf("on_exit remove left tables: %v", tables)
				}
				w.mustReload(c, guarded)
				if n := strings.Count(c.Output(), "In force: "); n != round+2 {
					t.Fatalf("in force %d times, want %d", n, round+2)
				}
				if leave == "keep" {
					shut.end()
				}
				for _, p := range parties {
					w.wantShut(p.Host, p.addr4(100+round))
					w.lookup(p.Host, p.resolver4, p.addr4(100+round), 60)
					w.wantOpen(p.Host, "tcp", p.addr4(100+round))
					if leave == "keep" {
						w.wantOpen(p.Host, "tcp", p.addr4(1))
					} else {
						w.lookup(p.Host, p.resolver4, p.addr4(1), 3600)
					}
				}
			}
			tr.end()
		})
	}
}

// The reload plugin does as SIGUSR1 does.
func TestReloadPlugin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := func(allowed string) string {
		return corefile("reload 2s 0s\nipdestinationguard nft-local " + resolver4 + " " + allowed)
	}
	c := w.start(file("198.18.200.1"))
	live := w.connected(w.guard, "198.18.200.1")
	tr := w.traffic()
	tr.neverOpen(w.guard)
	tr.alive(live)
	tr.asks(w.guard, "127.0.0.1", false)
	for i, f := range []struct{ corefile, open, shut string }{
		{file("198.18.200.2"), "198.18.200.2", "198.18.200.1"},
		{file("198.18.200.3/33"), "198.18.200.2", "198.18.200.3"}, // broken
		{file("198.18.200.3"), "198.18.200.3", "198.18.200.2"},
	} {
		broken, before := strings.Contains(f.corefile, "/33"), len(c.Output())
		w.write(c, f.corefile)
		w.eventually(fmt.Sprintf("Corefile %d is seen", i), func() bool {
			said := c.Output()[before:]
			return broken && strings.Contains(said, "reload failed") || !broken && strings.Contains(said, "[INFO] Reloading complete\n")
		})
		w.wantOpen(w.guard, "tcp", f.open)
		w.wantShut(w.guard, f.shut)
	}
	tr.end()
}

// Server blocks share one guard, and each answers.
func TestServerBlocksShareOneGuard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	block := func(port int, directive string) string {
		return fmt.Sprintf(".:%d {\n errors\n %s\n forward . %s\n}\n", port, withExamples(directive), resolver4)
	}
	const settings = "ipdestinationguard {\n mode nft-both\n allowedIPs " + resolver4 + " 198.18.200.1\n scope any\n margin 10s\n}"
	const same = "ipdestinationguard {\n allowedIPs 198.18.200.1/32\n allowedIPs 192.0.2.2 192.0.2.2\n mode nft-both\n scope any\n margin 10s\n ttl 60s 24h\n}"
	good := block(5351, "ipdestinationguard") + block(53, settings) + block(5353, "ipdestinationguard") + block(5354, same) + block(5355, "")
	c := w.start(good)
	for i, port := range []string{"53", "5351", "5353", "5354"} {
		addr := fmt.Sprintf("198.18.7.%d", i+1)
		w.wantShut(w.guard, addr)
		w.askPort(port, addr)
		w.wantOpen(w.guard, "tcp", addr)
		w.wantOpen(w.client, "tcp", addr)
	}
	w.askPort("5355", "198.18.7.99") // no directive, no grant
	w.wantShut(w.guard, "198.18.7.99")
	if n := strings.Count(c.Output(), "In force: "); n != 1 {
		t.Errorf("in force %d times, want once", n)
	}

	// A contradiction is told with both places, at a start as at a reload.
	bad := good + block(5356, strings.Replace(settings, "10s", "11s", 1))
	before := w.firewall()
	told := func(text string) {
		t.Helper()
		for _, part := range []string{"margin 11s at ", "contradicts 10s at ", "Corefile:46", "Corefile:10"} {
			if !strings.Contains(text, part) {
				t.Errorf("nothing is said of %q: %s", part, text)
			}
		}
	}
	err := w.reload(c, bad)
	if err == nil {
		t.Fatal("the contradiction was taken")
	}
	told(err.Error())
	if after := w.firewall(); after != before {
		t.Errorf("the firewall was\n%s\nand is now\n%s", before, after)
	}
	w.must(c.Stop())
	for _, tables := range []string{"kept", "none"} {
		before := w.firewall()
		c := w.launch(bad)
		if w.exits(c) == nil {
			t.Error("the contradiction was taken")
		}
		told(c.Output())
		if after := w.firewall(); after != before {
			t.Errorf("tables %s: the firewall was\n%s\nand is now\n%s", tables, before, after)
		}
		w.nftables(flushRuleset)
	}
}

// A start that fails leaves the machine as it was: open if it was open.
func TestStartThatFailsTouchesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	taken, err := w.guard.Listen("tcp", ":5300")
	w.must(err)
	defer taken.Close()
	good := corefile("ipdestinationguard nft-both " + resolver4)
	for _, f := range []string{
		strings.Replace(good, "nft-both", "nft-bath", 1),
		good + "example.test {\n health 203.0.113.1:8080\n}\n",
		good + "example.test {\n cache {\n  frobnicate\n }\n}\n",
		good + ".:5300 {\n whoami\n}\n",
		good + ".:1053 {\n bind 203.0.113.1\n whoami\n}\n",
	} {
		before := w.firewall()
		if w.exits(w.launch(f)) == nil {
			t.Errorf("started:\n%s", f)
		}
		if after := w.firewall(); after != before {
			t.Errorf("the firewall was\n%s\nand is now\n%s", before, after)
		}
	}
	w.wantOpen(w.guard, "tcp", "198.18.1.1")
	w.wantOpen(w.client, "tcp", "198.18.1.1")
}

// exits waits for the end of a binary.
func (w *world) exits(c *coredns) (err error) {
	w.Helper()
	ended := make(chan struct{})
	go func() { err = c.Wait(); close(ended) }()
	select {
	case <-ended:
		return err
	case <-time.After(20 * time.Second):
		w.Fatalf("CoreDNS does not end:\n%s", c.Output())
		return nil
	}
}

// askPort asks CoreDNS on one of its ports, from the guard.
func (w *world) askPort(port, addr string) {
	w.Helper()
	answer, err := w.exchange(w.guard, net.JoinHostPort("127.0.0.1", port), nameOf(60, addr), 5*time.Second)
	w.must(err)
	if len(answer.Answer) == 0 {
		w.Fatalf("no address: %v", answer)
	}
}
