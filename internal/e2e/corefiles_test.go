package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Every Corefile that a user may copy starts, word for word but for the names of
// files.
func TestEveryCorefileStarts(t *testing.T) {
	t.Parallel()
	const top = "../../"
	files := []string{top + "Corefile.example"}
	for _, pattern := range []string{"*.md", "docs/*.md", "deployment/*.md", "sentinel/*.md"} {
		found, err := filepath.Glob(top + pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	in := make(map[string]int)
	w := newWorld(t)
	for _, file := range files {
		text, err := os.ReadFile(file)
		w.must(err)
		name := strings.TrimPrefix(file, top)
		corefiles := map[int]string{1: string(text)}
		if filepath.Ext(file) == ".md" {
			corefiles = snippets(string(text))
		}
		in[name] = len(corefiles)
		for _, line := range slices.Sorted(maps.Keys(corefiles)) {
			t.Run(fmt.Sprintf("%s:%d", name, line), func(t *testing.T) {
				w := &world{T: t, lab: w.lab, client: w.client, guard: w.guard, world: w.world}
				path := binary(t)
				if strings.Contains(corefiles[line], "dnssec validate") {
					path = w.validatingBinary()
				}
				c := w.armed(w.run(path, netlab.As{}, w.guard, w.provide(corefiles[line])))
				w.must(c.Signal(syscall.SIGKILL))
				_ = c.Wait() // says that it was killed
				w.nftables(flushRuleset)
			})
		}
	}
	for _, file := range []string{"Corefile.example", "README.md", "deployment/README.md", "deployment/egress-gateway.md", "sentinel/README.md"} {
		if in[file] == 0 {
			t.Errorf("no Corefile found in %s", file)
		}
	}
}

var fence = regexp.MustCompile("^( *)(```+|~~~+) *([a-z]*) *$")

// snippets are the Corefiles of a document, by the line that they begin at:
// fenced blocks of that language.
func snippets(markdown string) map[int]string {
	all := make(map[int]string)
	begin, closing, corefile, text := 0, "", false, ""
	for i, line := range strings.Split(markdown, "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case closing == "" && m != nil:
			begin, closing, corefile, text = i+1, m[2], m[3] == "corefile", ""
		case closing != "" && m != nil && m[2] == closing && m[3] == "":
			if corefile {
				all[begin] = text
			}
			closing = ""
		default:
			text += line + "\n"
		}
	}
	return all
}

var (
	certificateFile = regexp.MustCompile(`\S+\.(pem|crt|key)\b`)
	zoneFile        = regexp.MustCompile(`\S*\b(db\.\S+|\S+\.(db|zone))\b`)
	sentinelLine    = regexp.MustCompile(`(?m)^\s*sentinel\b`)
	bindAddress     = regexp.MustCompile(`(?m)^\s*bind (.*)$`)
)

// provide makes what a Corefile names: files, which then are elsewhere, and
// addresses of the machine.
func (w *world) provide(corefile string) string {
	w.Helper()
	dir := w.TempDir()
	cert, key, zone := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "db.zone")
	writeCertificate(w.T, cert, key)
	w.save(zone, "@ 3600 IN SOA ns hostmaster 1 3600 600 86400 60\n@ 3600 IN NS ns\nns 3600 IN A 192.0.2.1\n")
	corefile = certificateFile.ReplaceAllStringFunc(corefile, func(name string) string {
		if strings.Contains(filepath.Base(name), "key") {
			return key
		}
		return cert
	})
	corefile = zoneFile.ReplaceAllLiteralString(corefile, zone)
	for _, m := range bindAddress.FindAllStringSubmatch(corefile, -1) {
		for _, word := range strings.Fields(m[1]) {
			if addr, err := netip.ParseAddr(word); err == nil && !addr.IsLoopback() && !addr.IsUnspecified() {
				_ = w.guard.Addr("lo", fmt.Sprintf("%v/%d", addr, addr.BitLen())) // it may be there
			}
		}
	}
	if sentinelLine.MatchString(corefile) {
		for n := range 8 {
			_ = w.guard.Addr("lo", fmt.Sprintf("100.100.111.%d/32", n+1)) // it may be there
		}
	}
	return corefile
}
