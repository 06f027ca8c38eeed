package ipdestinationguard

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

func corefileOf(text string) caddy.Input {
	return caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text)}
}

// What is forwarded anywhere in the Corefile is found, wherever it stands.
func TestDestinations(t *testing.T) {
	resolvers := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolvers, []byte("nameserver 192.0.2.8\nnameserver 2001:db8::8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("UPSTREAM", "192.0.2.7")
	got := destinations(corefileOf(`(snippet) {
	forward . 192.0.2.1
}
. {
	import snippet
	forward example.org 192.0.2.2:5353 tls://192.0.2.3 {
		tls_servername forward.example
		except 192.0.2.99
	}
	forward example.net tls://192.0.2.4%dns.example [2001:db8::1]:54 tls://[2001:db8::2]:8853
	cache
}
example.com https://example.com {
	forward . https://192.0.2.5 quic://192.0.2.6 {$UPSTREAM} ` + resolvers + ` resolver.example
	grpc . 192.0.2.9:9000 unix:///run/x
	log . "forward . 192.0.2.99"
}
`))
	var text []string
	for _, d := range got {
		text = append(text, d.String()+" "+d.place)
	}
	slices.Sort(text)
	want := []string{
		"192.0.2.1:53 Corefile:2", "192.0.2.2:5353 Corefile:6", "192.0.2.3:853 Corefile:6", "192.0.2.4:853 Corefile:10",
		"192.0.2.5:443 Corefile:14", "192.0.2.6:853 Corefile:14", "192.0.2.7:53 Corefile:14", "192.0.2.8:53 Corefile:14",
		"192.0.2.9:9000 Corefile:15", "[2001:db8::1]:54 Corefile:10", "[2001:db8::2]:8853 Corefile:10", "[2001:db8::8]:53 Corefile:14",
	}
	if !slices.Equal(text, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(text, "\n"), strings.Join(want, "\n"))
	}
}

func TestUpstream(t *testing.T) {
	const shared = "Corefile:2: upstream is open to every program of root"
	own := backend.Program{Cgroup: backend.Cgroup{Path: "/a.service", ID: 7, Level: 1}}
	missing := func(to, line string) string {
		return "Corefile:3: questions are forwarded to " + to + ", which the guard refuses. Unless it is an address of this machine, the directive at Corefile:2 needs the line: upstream " + line
	}
	for _, tt := range []struct {
		name, options, forward string
		self                   backend.Program
		open                   string
		warnings               []string
	}{
		{"nothing", "", "", own, "[]", nil},
		{"forwarded and not open", "", "forward . 192.0.2.53 tls://192.0.2.54 192.0.2.53", own, "[]",
			[]string{missing("192.0.2.53:53", "192.0.2.53"), missing("192.0.2.54:853", "192.0.2.54")}},
		{"allowed", "allowedIPs 192.0.2.53\nallowedLocalIPs 2001:db8::/32", "forward . 192.0.2.53 2001:db8::53", own, "[]", nil},
		{"allowed to others", "allowedGatewayIPs 192.0.2.53", "forward . 192.0.2.53", own, "[]", []string{missing("192.0.2.53:53", "192.0.2.53")}},
		{"on this machine", "", "forward . 127.0.0.1:5353 [::1]:5353", own, "[]", nil},
		{"the ports in use", "upstream 192.0.2.53 192.0.2.54", "forward . 192.0.2.53 tls://192.0.2.53 https://192.0.2.54", own,
			"[192.0.2.53:53 192.0.2.53:853 192.0.2.54:443]", nil},
		{"not forwarded to", "upstream 192.0.2.53", "", own, "[192.0.2.53:53 192.0.2.53:443 192.0.2.53:853]", nil},
		{"a port", "upstream 192.0.2.53:5353 [2001:db8::53]:853", "forward . 192.0.2.53:5353 tls://2001:db8::53", own,
			"[192.0.2.53:5353 [2001:db8::53]:853]", nil},
		{"another port", "upstream 192.0.2.53:853", "forward . 192.0.2.53", own, "[192.0.2.53:853]", []string{missing("192.0.2.53:53", "192.0.2.53:53")}},
		{"as root among others", "upstream 192.0.2.53", "forward . 192.0.2.53", backend.Program{}, "[192.0.2.53:53]", []string{shared}},
		{"as a user", "upstream 192.0.2.53", "forward . 192.0.2.53", backend.Program{User: 999}, "[192.0.2.53:53]", nil},
		{"as root without upstreams", "allowedIPs 192.0.2.53", "forward . 192.0.2.53", backend.Program{}, "[]", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nmode nft-local\n"+tt.options+"\n}"))
			if err != nil {
				t.Fatal(err)
			}
			to := destinations(corefileOf(". {\n\n" + tt.forward + "\n}"))
			s.place, s.found.self = "Corefile:2", tt.self
			s.found.upstream = s.upstream(to)
			if got := fmt.Sprint(s.found.upstream); got != tt.open {
				t.Errorf("open are %s, want %s", got, tt.open)
			}
			var warnings []string
			s.warnUpstream(to, func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) })
			if !slices.EqualFunc(warnings, tt.warnings, strings.HasPrefix) {
				t.Errorf("got\n%q\nwant\n%q", warnings, tt.warnings)
			}
		})
	}
}

func TestCapturePort(t *testing.T) {
	dns := func(port string, hosts ...string) *serverBlock {
		return &serverBlock{Config: &dnsserver.Config{Transport: "dns", Port: port, ListenHosts: hosts}}
	}
	for _, tt := range []struct {
		name   string
		blocks []*serverBlock
		want   uint16 // 0 is an error
	}{
		{"everywhere", []*serverBlock{dns("53", "")}, 53},
		{"the usual one of several", []*serverBlock{dns("5353", ""), dns("53", "192.0.2.1"), dns("1053", "")}, 53},
		{"another", []*serverBlock{dns("5353", "192.0.2.1", "127.0.0.1"), dns("53", "127.0.0.1", "::1")}, 5353},
		{"loopback only", []*serverBlock{dns("53", "127.0.0.1", "::1")}, 0},
		{"not plain", []*serverBlock{{Config: &dnsserver.Config{Transport: "tls", Port: "853", ListenHosts: []string{""}}}}, 0},
		{"none", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := capturePort(tt.blocks)
			if got != tt.want || (err == nil) == (tt.want == 0) {
				t.Errorf("got %d, %v, want %d", got, err, tt.want)
			}
		})
	}
}
