package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

const coredns = "github.com/coredns/coredns"

func TestDirectivesAndPluginsAgree(t *testing.T) {
	var registered []string
	for _, name := range caddy.ListPlugins()["others"] {
		if dns, ok := strings.CutPrefix(name, "dns."); ok {
			registered = append(registered, dns)
		}
	}
	for _, d := range directives {
		if !slices.Contains(registered, d) {
			t.Errorf("directive %s: no plugin registers it", d)
		}
	}
	// caddy never runs a plugin whose directive is not in the list, and says nothing.
	for _, name := range registered {
		if !slices.Contains(directives, name) {
			t.Errorf("plugin %s is linked but not in the list of directives", name)
		}
	}
}

func TestOrderIsCoreDNSs(t *testing.T) {
	cfg, err := os.ReadFile(filepath.Join(golist(t, "-m", "-f", "{{.Dir}}", coredns)[0], "plugin.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(cfg)) {
		name, _, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		switch name {
		case "dns64":
			want = append(want, "ipdestinationguard")
		case "forward":
			want = append(want, "sentinel")
		}
		if slices.Contains(directives, name) {
			want = append(want, name)
		}
	}
	if !slices.Equal(directives, want) {
		t.Errorf("order of directives:\n got %v\nwant %v", directives, want)
	}
}

// The plugins that issue 2 promises, by directive.
func TestPromisedPlugins(t *testing.T) {
	promised := strings.Fields(`acl any bind bufsize cache cancel debug dns64 dnstap errors erratic file forward
		health hosts header https https3 quic grpc_server grpc local log loadbalance loop metadata prometheus
		minimal multisocket nsid ready reload rewrite root secondary template timeouts tls tsig view whoami
		pprof auto chaos dnssec sign transfer proxyproto ipdestinationguard
		sentinel`)
	for _, p := range promised {
		if !slices.Contains(directives, p) {
			t.Errorf("%s is missing", p)
		}
	}
}

var cloud = regexp.MustCompile(`^(k8s\.io|sigs\.k8s\.io|cloud\.google\.com|google\.golang\.org/api|go\.etcd\.io/etcd)/|` +
	`(?i:aws|azure|googleapis/(gax|enterprise)|DataDog|hashicorp/nomad)`)

func TestNoCloud(t *testing.T) {
	const dnssec = coredns + "/plugin/dnssec"
	var imports []string
	for _, p := range golist(t, "-f", `{{join .Imports "\n"}}`, ".") {
		if p != dnssec {
			imports = append(imports, p)
		}
	}
	for _, p := range golist(t, append([]string{"-deps"}, imports...)...) {
		if cloud.MatchString(p) {
			t.Errorf("%s is linked", p)
		}
	}
	// dnssec can fetch its keys from AWS Secrets Manager since CoreDNS 1.15, and cannot be had without it.
	for _, p := range golist(t, "-deps", dnssec) {
		if cloud.MatchString(p) && !strings.HasPrefix(p, "github.com/aws/") {
			t.Errorf("dnssec brings %s", p)
		}
	}
}

// What make build makes: small, static, and able to say what it is.
func TestBinary(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	bin := filepath.Join(t.TempDir(), "coredns")
	build := exec.Command("make", "build", "BINARY="+bin, "VERSION=v1.2.3-test")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	info, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if mb := info.Size() >> 20; mb >= 40 {
		t.Errorf("the binary has %d MB", mb)
	}

	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary is not static")
		}
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
		t.Error("the binary is not stripped")
	}
	src, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(image, []byte(src+"/")) {
		t.Error("the binary names the folder it was built in")
	}

	out, err := exec.Command(bin, "-version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "CoreDNS-1.15.0\n") ||
		!strings.Contains(string(out), "ipdestinationguard-v1.2.3-test") {
		t.Errorf("-version: %v\n%s", err, out)
	}
	out, err = exec.Command(bin, "-plugins").CombinedOutput()
	if err != nil || !slices.Contains(strings.Fields(string(out)), "ipdestinationguard") {
		t.Errorf("-plugins: %v\n%s", err, out)
	}
}

// make build-unbound makes the commands that make install wants, and coredns as the tests of validation have it.
func TestBuildUnbound(t *testing.T) {
	dry := exec.Command("make", "-n", "build-unbound", "BINARY=a/coredns", "GUARDCTL=a/guardctl")
	dry.Dir = "../.."
	dry.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := dry.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != 3 {
		t.Fatalf("%v\n%s", err, out)
	}
	for i, words := range [][]string{
		{"CGO_ENABLED=0 ", " -o 'a/guardctl' ./cmd/guardctl"},
		{"CGO_ENABLED=0 ", " -o 'a/ipdestinationguard-sentinel' ./cmd/sentinel"},
		{"CGO_ENABLED=1 ", " -tags 'grpcnotrace unbound' ", " -o 'a/coredns' ./cmd/coredns"},
	} {
		for _, word := range words {
			if !strings.Contains(lines[i], word) {
				t.Errorf("%q is not in: %s", word, lines[i])
			}
		}
	}
}

func golist(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, &stderr)
	}
	lines := strings.Fields(string(out))
	if len(lines) == 0 {
		t.Fatalf("go list %v printed nothing", args)
	}
	return lines
}
