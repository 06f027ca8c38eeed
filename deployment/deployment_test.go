// Package deployment holds no Go, only the tests of what is handed out here.
package deployment

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestPluginCfgIsCoreDNSsAndOurLines(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/coredns/coredns").Output()
	if err != nil {
		t.Fatal(err)
	}
	stock := read(t, filepath.Join(strings.TrimSpace(string(dir)), "plugin.cfg"))
	want := stock
	for before, ours := range map[string]string{
		"dns64:dns64\n":     "ipdestinationguard:github.com/destination-guard/coredns-ip-destination-guard\n",
		"forward:forward\n": "sentinel:github.com/destination-guard/coredns-ip-destination-guard/sentinel\n",
	} {
		if strings.Count(stock, "\n"+before) != 1 {
			t.Fatalf("CoreDNS has no %s any more", before)
		}
		want = strings.Replace(want, "\n"+before, "\n"+ours+before, 1)
	}
	if read(t, "plugin.cfg") != want {
		t.Error("plugin.cfg is not CoreDNS's with our lines before dns64 and forward")
	}
}

func TestBuildScriptBuildsTheCoreDNSOfGoMod(t *testing.T) {
	v, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "github.com/coredns/coredns").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read(t, "build-coredns.sh"), "\ncoredns_version="+string(v)) {
		t.Errorf("build-coredns.sh does not build CoreDNS %s", v)
	}
}

// What the script has Go build, with a Go that only takes it down.
func TestBuildScriptsTags(t *testing.T) {
	const fake = `#!/bin/sh
case $1 in
mod) [ "$2" != download ] || printf '\t"Dir": "%s",\n' "$TREE" ;;
build)
	echo "cgo=$CGO_ENABLED $*" >"$TREE/../asked"
	while [ "$1" != -o ]; do shift; done
	printf '#!/bin/sh\n' >"$2"
	chmod +x "$2"
	;;
esac
`
	for tags, want := range map[string][]string{
		"":              {"cgo=0 build ", " -tags grpcnotrace "},
		"unbound":       {"cgo=1 build ", " -tags grpcnotrace unbound "},
		"other unbound": {"cgo=1 build ", " -tags grpcnotrace other unbound "},
		"unboundless":   {"cgo=0 build ", " -tags grpcnotrace unboundless "},
	} {
		dir := t.TempDir()
		for path, text := range map[string]string{"bin/go": fake, "tree/coredns.go": "package main\n"} {
			path = filepath.Join(dir, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("sh", "build-coredns.sh", filepath.Join(dir, "coredns"))
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "TREE="+filepath.Join(dir, "tree"), "TAGS="+tags)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("TAGS=%q: %v\n%s", tags, err, out)
		}
		asked := read(t, filepath.Join(dir, "asked"))
		for _, part := range want {
			if !strings.Contains(asked, part) {
				t.Errorf("TAGS=%q: no %q in %s", tags, part, asked)
			}
		}
	}
}

// Both name the variable by its package: the linker passes over what is not there. (That it is
// there, internal/e2e sees.)
func TestBuildsAreToldTheirVersion(t *testing.T) {
	for file, want := range map[string]string{
		"../Makefile":      " -X github.com/destination-guard/coredns-ip-destination-guard.release=$(VERSION)",
		"build-coredns.sh": " -X $module.release=$version",
	} {
		if !strings.Contains(read(t, file), want) {
			t.Errorf("%s has no%s", file, want)
		}
	}
}

func TestBootRulesets(t *testing.T) {
	nft := "nft"
	if _, err := exec.LookPath(nft); err != nil {
		nft = "/usr/sbin/nft" // not in the PATH of an ordinary user
		if _, err := exec.LookPath(nft); err != nil {
			cannotTry(t, err)
		}
	}
	for file, chains := range map[string][]string{
		"boot-server.nft":  {"alive", "options-output", "output"},
		"boot-gateway.nft": {"alive", "options-output", "output", "options-forward", "forward"},
	} {
		t.Run(file, func(t *testing.T) {
			// Over rules that are there already it must change nothing: they may be CoreDNS's.
			out := inNewNetwork(t, nft+` -f "$1" && `+nft+` list ruleset && echo again &&
				! `+nft+` -f "$1" 2>/dev/null && `+nft+` list ruleset`, file)
			first, second, _ := strings.Cut(out, "again\n")
			if first != second {
				t.Errorf("loaded twice:\n%s", out)
			}
			var got []string
			for line := range strings.Lines(first) {
				line = strings.TrimSpace(line)
				if name, ok := strings.CutPrefix(line, "chain "); ok {
					got = append(got, strings.TrimSuffix(name, " {"))
				}
				if strings.HasPrefix(line, "type filter") && !strings.HasSuffix(line, "policy drop;") {
					t.Errorf("open by default: %s", line)
				}
			}
			if !slices.Equal(got, chains) {
				t.Errorf("chains %v, want %v", got, chains)
			}
		})
	}
}

// inNewNetwork runs a shell script in a network of its own, where it is root.
func inNewNetwork(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cannotTry(t, err) // no namespaces for us
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return out.String()
}

func cannotTry(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

func TestUnitHasTwoCapabilities(t *testing.T) {
	unit := read(t, "ipdestinationguard-coredns.service")
	for _, line := range []string{
		"DynamicUser=yes",
		"AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE",
		"CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE",
		"Restart=always",
		"ExecReload=/bin/kill -SIGUSR1 $MAINPID",
		"RuntimeDirectory=ipdestinationguard",
		"SupplementaryGroups=ipdestinationguard",
	} {
		if strings.Count(unit, "\n"+line+"\n") != 1 {
			t.Errorf("not once in the unit: %s", line)
		}
	}
}

// A new certificate is read by what the unit does at a reload.
func TestCertificateUnits(t *testing.T) {
	for file, lines := range map[string][]string{
		"ipdestinationguard-certificates.path":    {"PathChanged=/etc/coredns/tls"},
		"ipdestinationguard-certificates.service": {"ExecStart=/bin/systemctl try-reload-or-restart ipdestinationguard-coredns.service"},
		"Corefile.dot": {"        tls /etc/coredns/tls/client.pem /etc/coredns/tls/client-key.pem /etc/coredns/tls/ca.pem"},
	} {
		for _, line := range lines {
			if !strings.Contains(read(t, file), "\n"+line+"\n") {
				t.Errorf("%s: not there: %s", file, line)
			}
		}
	}
}

// systemd understands every line of every unit.
func TestUnitsAreWhole(t *testing.T) {
	units, err := filepath.Glob("*.service")
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("*.path")
	if err != nil {
		t.Fatal(err)
	}
	programs := regexp.MustCompile(`/usr/(local/bin|sbin)/[a-z-]+`) // which are not installed here
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, unit := range append(units, paths...) {
		args = append(args, filepath.Join(dir, unit))
		if err := os.WriteFile(args[len(args)-1], []byte(programs.ReplaceAllString(read(t, unit), "/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(args) != 7 {
		t.Errorf("there are other units: %v", args)
	}
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		cannotTry(t, err)
	}
	if err != nil || strings.Contains(string(out), dir) { // what is unknown is no error to it
		t.Errorf("%v\n%s", err, out)
	}
}

// Whoever kills it, it comes back; and only a stop gives up the sentinels.
func TestSentinelUnit(t *testing.T) {
	unit := read(t, "ipdestinationguard-sentinel.service")
	for _, line := range []string{
		"Type=notify",
		"ExecStart=/usr/local/bin/ipdestinationguard-sentinel run",
		"Restart=always",
		"StartLimitIntervalSec=0",
		"Before=ipdestinationguard-coredns.service",
		"StateDirectory=ipdestinationguard-sentinel",
		"ReadWritePaths=/etc /run/systemd",
	} {
		if strings.Count(unit, "\n"+line+"\n") != 1 {
			t.Errorf("not once in the unit: %s", line)
		}
	}
	if strings.Contains(unit, "ExecStop") {
		t.Error("a crash would give up the sentinels, although CoreDNS answers")
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
