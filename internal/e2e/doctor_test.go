package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// A patient is a guard's machine with files of its own, and the doctor's way to it.
type patient struct {
	*world
	root, socket string
	coredns      *coredns
}

// files of a machine where nothing is wrong.
var healthyFiles = map[string]string{
	"etc/resolv.conf":   "nameserver 127.0.0.1\noptions edns0\n",
	"etc/nsswitch.conf": "passwd: files\nhosts: files dns # as it should be\n",
}

func newPatient(t *testing.T) *patient {
	p := &patient{world: newWorld(t), root: t.TempDir()}
	p.must(os.Chmod(filepath.Dir(p.root), 0o755))
	p.must(os.Chmod(p.root, 0o755))
	for path, text := range healthyFiles {
		p.write(path, text)
	}
	p.must(p.guard.Sysctl("net/ipv4/conf/all/rp_filter", "1"))
	p.must(p.guard.Sysctl("net/ipv4/conf/all/accept_source_route", "0"))
	return p
}

func (p *patient) write(path, text string) {
	p.Helper()
	path = filepath.Join(p.root, path)
	p.must(os.MkdirAll(filepath.Dir(path), 0o755))
	p.must(os.WriteFile(path, []byte(text), 0o644))
}

func (p *patient) serve(mode string, options ...string) {
	p.Helper()
	var option string
	p.socket, option = p.world.socket()
	p.coredns = p.startAs(p.asCoreDNS(), corefile(guardBlock(mode, append(options, option)...)))
}

// found are the doctor's findings but for what is right: check and level, and how it
// ended.
func (p *patient) found(as netlab.As) (found []string, code int) {
	p.Helper()
	out, code := p.guardctl(as, p.socket, "doctor", "--json", "--root", p.root)
	for _, f := range p.findings(out) {
		if f.Check != "kernel" {
			found = append(found, fmt.Sprintf("%s: %s: %s", f.Level, f.Check, f.Text))
		}
	}
	return found, code
}

type finding struct{ Check, Level, Text, Advice string }

// findings are those in what the doctor has written, but for what is right.
func (p *patient) findings(out string) (bad []finding) {
	p.Helper()
	var v struct {
		Findings []finding
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || len(v.Findings) < 10 {
		p.Fatalf("%d findings, %v: %s", len(v.Findings), err, out)
	}
	for _, f := range v.Findings {
		if f.Level == "ok" {
			continue
		}
		if f.Advice == "" {
			p.Errorf("nothing is to be done about %+v", f)
		}
		bad = append(bad, f)
	}
	return bad
}

// Nothing is found on a machine where nothing is wrong, and one thing on one where one
// thing is.
func TestDoctor(t *testing.T) {
	const answerElsewhere = "hosts: files resolve [!UNAVAIL=return] dns\n"
	for _, tt := range []struct {
		name    string
		mode    string
		options []string
		breaks  func(*patient)
		want    []string // how findings begin
	}{
		{name: "nothing", mode: "nft-both"},
		{name: "nothing, on a server", mode: "nft-local", breaks: func(p *patient) {
			p.must(p.guard.Sysctl("net/ipv4/ip_forward", "0"))
			p.must(p.guard.Sysctl("net/ipv6/conf/all/forwarding", "0"))
		}},
		{name: "CoreDNS is dead", mode: "nft-both", breaks: func(p *patient) {
			p.must(p.coredns.Signal(syscall.SIGKILL))
			_ = p.coredns.Wait()
		}, want: []string{"failure: guard: no guard answers", "skipped: capabilities: ", "skipped: answers: ", "skipped: upstream: "}},
		{name: "CoreDNS may do too much", mode: "nft-both", breaks: func(p *patient) {
			p.must(p.coredns.Stop())
			_, option := p.world.socket()
			p.socket = strings.TrimPrefix(option, "admin unix:")
			p.start(corefile(guardBlock("nft-both", option)))
		}, want: []string{"warning: capabilities: CoreDNS (process "}},
		{name: "audit", mode: "nft-both", options: []string{"audit gateway"}, want: []string{"warning: guard: what it forwards: AUDIT"}},
		{name: "a trial", mode: "nft-both", options: []string{"audit gateway"}, breaks: func(p *patient) { p.ctl(p.socket, exitOK, "trial", "5m") },
			want: []string{"warning: guard: what it forwards: TRIAL: refused for "}},
		{name: "an answer is withheld", mode: "nft-both", options: []string{"dnssec ad test insecure"}, breaks: func(p *patient) {
			m, err := p.ask(p.guard, "127.0.0.1", nameOf(60, "198.18.1.1"), dns.TypeA)
			p.must(err)
			p.wantWithheld(m)
		}, want: []string{"warning: guard: withheld: 1 answer"}},
		{name: "disarmed", mode: "nft-both", breaks: func(p *patient) { p.ctl(p.socket, exitOK, "disarm") },
			want: []string{"failure: guard: it has been disarmed", "warning: forwarding: this machine forwards IPv4 IPv6"}},
		{name: "another resolver", mode: "nft-local", breaks: func(p *patient) {
			p.write("etc/resolv.conf", "nameserver 9.9.9.9\n")
			p.must(p.guard.Sysctl("net/ipv4/ip_forward", "0"))
			p.must(p.guard.Sysctl("net/ipv6/conf/all/forwarding", "0"))
		}, want: []string{"failure: resolv.conf: programs ask 9.9.9.9"}},
		{name: "others, of a bare gateway", mode: "nft-gateway", breaks: func(p *patient) {
			p.write("etc/resolv.conf", "nameserver 9.9.9.9\n")
			p.write("etc/nsswitch.conf", answerElsewhere)
			p.resolved()
		}},
		{name: "systemd-resolved's stub", mode: "nft-both", breaks: func(p *patient) { p.write("etc/resolv.conf", "nameserver 127.0.0.53\n") },
			want: []string{"warning: resolv.conf: programs ask systemd-resolved"}},
		{name: "an empty resolv.conf", mode: "nft-both", breaks: func(p *patient) { p.write("etc/resolv.conf", "") }, want: []string{"warning: resolv.conf: it names no server"}},
		{name: "no resolv.conf", mode: "nft-both", breaks: func(p *patient) { p.must(os.Remove(filepath.Join(p.root, "etc/resolv.conf"))) },
			want: []string{"warning: resolv.conf: there is no"}},
		{name: "resolve before dns", mode: "nft-both", breaks: func(p *patient) { p.write("etc/nsswitch.conf", answerElsewhere) },
			want: []string{"warning: nsswitch.conf: hosts: goes to systemd-resolved"}},
		{name: "no dns", mode: "nft-both", breaks: func(p *patient) { p.write("etc/nsswitch.conf", "hosts: files ldap\n") }, want: []string{"failure: nsswitch.conf: hosts: has no dns"}},
		{name: "mdns", mode: "nft-both", breaks: func(p *patient) {
			p.write("etc/nsswitch.conf", "hosts: files mdns4_minimal [NOTFOUND=return] dns\n")
		}, want: []string{"warning: nsswitch.conf: names that end in .local"}},
		{name: "no line for hosts", mode: "nft-both", breaks: func(p *patient) { p.write("etc/nsswitch.conf", "passwd: files\n") }, want: []string{"warning: nsswitch.conf: there is no line hosts:"}},
		{name: "systemd-resolved", mode: "nft-both", breaks: (*patient).resolved, want: []string{"warning: resolvers between: systemd-resolved runs"}},
		{name: "nscd", mode: "nft-both", breaks: func(p *patient) { p.listen("run/nscd/socket") }, want: []string{"warning: resolvers between: nscd runs"}},
		{name: "systemd-resolved, and applications", mode: "nft-both", options: []string{"scope application"}, breaks: (*patient).resolved,
			want: []string{"failure: resolvers between: systemd-resolved runs"}},
		{name: "upstream is shut", mode: "nft-both", breaks: func(p *patient) {
			p.must(p.coredns.Stop())
			_, option := p.world.socket()
			p.socket = strings.TrimPrefix(option, "admin unix:")
			p.startAs(p.asCoreDNS(), strings.Replace(corefile(guardBlock("nft-both", option)), "forward . "+resolver4, "forward . 192.0.2.99", 1))
		}, want: []string{"failure: upstream: forward . 192.0.2.99 ("}},
		{name: "no forwarding", mode: "nft-both", breaks: func(p *patient) { p.must(p.guard.Sysctl("net/ipv4/ip_forward", "0")) },
			want: []string{"failure: forwarding: the mode is for a gateway"}},
		{name: "no forwarding of IPv6", mode: "nft-both", breaks: func(p *patient) { p.must(p.guard.Sysctl("net/ipv6/conf/all/forwarding", "0")) },
			want: []string{"warning: forwarding: this machine forwards no IPv6"}},
		{name: "forwarding on a server", mode: "nft-local", want: []string{"warning: forwarding: this machine forwards IPv4 IPv6"}},
		{name: "forged sources", mode: "nft-both", breaks: func(p *patient) {
			for _, i := range []string{"all", "lan0", "wan0"} {
				p.must(p.guard.Sysctl("net/ipv4/conf/"+i+"/rp_filter", "0"))
			}
		}, want: []string{"warning: forged sources: packets with forged sources are taken from lan0 wan0"}},
		{name: "forged sources, by one interface's own", mode: "nft-both", breaks: func(p *patient) { p.must(p.guard.Sysctl("net/ipv4/conf/lan0/rp_filter", "2")) },
			want: []string{"warning: forged sources: packets with forged sources are taken from lan0: "}},
		{name: "forged sources, by what is for all", mode: "nft-both", breaks: func(p *patient) {
			for i, value := range map[string]string{"all": "2", "lan0": "1", "wan0": "0"} {
				p.must(p.guard.Sysctl("net/ipv4/conf/"+i+"/rp_filter", value))
			}
		}, want: []string{"warning: forged sources: packets with forged sources are taken from lan0 wan0"}},
		{name: "no forged sources, by each interface's own", mode: "nft-both", breaks: func(p *patient) {
			for i, value := range map[string]string{"all": "0", "lan0": "1", "wan0": "1"} {
				p.must(p.guard.Sysctl("net/ipv4/conf/"+i+"/rp_filter", value))
			}
		}},
		{name: "source routes", mode: "nft-gateway", breaks: func(p *patient) {
			for i, value := range map[string]string{"all": "1", "lan0": "1", "wan0": "0"} {
				p.must(p.guard.Sysctl("net/ipv4/conf/"+i+"/accept_source_route", value))
			}
		}, want: []string{"warning: source routes: packets with a source route are taken from lan0: "}},
		{name: "source routes, of a server", mode: "nft-local", breaks: func(p *patient) {
			p.must(p.guard.Sysctl("net/ipv4/ip_forward", "0"))
			p.must(p.guard.Sysctl("net/ipv6/conf/all/forwarding", "0"))
			p.must(p.guard.Sysctl("net/ipv4/conf/all/accept_source_route", "1"))
		}},
		{name: "another firewall", mode: "nft-both", breaks: func(p *patient) { p.foreignChain(nftables.ChainHookForward) },
			want: []string{"warning: other firewalls: table ip other, chain theirs refuses on hook forward"}},
		{name: "another firewall, for what is not guarded", mode: "nft-local", breaks: func(p *patient) {
			p.must(p.guard.Sysctl("net/ipv4/ip_forward", "0"))
			p.must(p.guard.Sysctl("net/ipv6/conf/all/forwarding", "0"))
			p.foreignChain(nftables.ChainHookForward)
		}},
		{name: "another firewall that drops everything", mode: "nft-local", breaks: func(p *patient) {
			p.must(p.guard.Sysctl("net/ipv4/ip_forward", "0"))
			p.must(p.guard.Sysctl("net/ipv6/conf/all/forwarding", "0"))
			p.foreignChain(nftables.ChainHookOutput)
		}, want: []string{"failure: answers: CoreDNS listens at 127.0.0.1:53, and does not answer there: ", "failure: upstream: forward . 192.0.2.2 (", "warning: other firewalls: table ip other, chain theirs refuses on hook output"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.serve(tt.mode, tt.options...)
			if tt.breaks != nil {
				tt.breaks(p)
			}
			p.wantFound(tt.want...)
		})
	}
}

// wantFound compares with how findings begin, and end after dots.
func (p *patient) wantFound(want ...string) {
	p.Helper()
	found, code := p.found(netlab.As{})
	failed := false
	for i, f := range found {
		failed = failed || strings.HasPrefix(f, "failure")
		begin, end := "", ""
		if i < len(want) {
			begin, end, _ = strings.Cut(want[i], "...")
		}
		if i >= len(want) || !strings.HasPrefix(f, begin) || !strings.HasSuffix(f, end) {
			p.Errorf("found: %s", f)
		}
	}
	if len(found) != len(want) {
		p.Errorf("%d findings, want %q", len(found), want)
	}
	if failed != (code == exitNo) || !failed && code != exitOK {
		p.Errorf("it ended with %d", code)
	}
}

// Who may do less is told what could not be looked at.
func TestDoctorOfAStranger(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	as := netlab.As{User: p.user(1000)}
	p.serve("nft-both")
	found, code := p.found(as)
	if len(found) == 0 || !strings.HasPrefix(found[0], "skipped: guard: ") || code != exitOK {
		t.Errorf("%q, and it ended with %d", found, code)
	}
	for _, f := range found {
		if !strings.HasPrefix(f, "skipped: ") {
			t.Errorf("found: %s", f)
		}
	}
}

// resolved is what the doctor finds of a systemd-resolved that runs.
func (p *patient) resolved() {
	p.Helper()
	p.listen("run/systemd/resolve/io.systemd.Resolve")
}

func (p *patient) listen(path string) {
	p.Helper()
	path = filepath.Join(p.root, path)
	p.must(os.MkdirAll(filepath.Dir(path), 0o755))
	l, err := net.Listen("unix", path)
	p.must(err)
	p.Cleanup(func() { l.Close() })
}
