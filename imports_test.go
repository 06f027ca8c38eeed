package ipdestinationguard

import (
	goparser "go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/destination-guard/coredns-ip-destination-guard"

// Folders of the plugin, and what of the plugin each may import. Nothing else of
// it may be imported there, and only the two plugins, the root and sentinel, know CoreDNS and Prometheus.
var mayImport = map[string][]string{
	".":                   {"admin", "backend", "expiry", "flowlog", "identity", "internal/spelling", "names", "reach", "route", "validate", "why"}, // and a concrete backend, in setup.go
	"admin":               nil,
	"expiry":              nil,
	"backend":             {"expiry"},
	"backend/fake":        {"backend", "expiry"},
	"backend/backendtest": {"backend", "expiry"},
	"names":               nil,
	"nft":                 {"backend", "expiry"},
	"reach":               nil,
	"validate":            nil,
	"ipset":               {"backend", "expiry"},
	"route":               {"backend", "expiry"},
	"flowlog":             {"backend"},
	"identity":            {"backend", "expiry"},
	"share":               {"backend", "expiry"},
	"why":                 {"backend"},
	"sentinel":            {"internal/spelling", "sentinel/hostdns"}, // another plugin of CoreDNS
	"sentinel/hostdns":    nil,
}

var (
	concreteBackends = []string{"nft", "ipset"}
	standardOnly     = []string{"expiry", "reach", "sentinel/hostdns", "backend", "backend/fake", "backend/backendtest", "why"}
	rootsOwn         = []string{"github.com/coredns/", "github.com/prometheus/"}
)

// product reports whether a folder is part of what a user runs with CoreDNS, and
// not a program or a means of testing.
func product(folder string) bool {
	top, _, _ := strings.Cut(folder, "/")
	return top != "cmd" && top != "internal"
}

func TestImports(t *testing.T) {
	eachFile(t, func(file string, imports []string) {
		folder := path.Dir(file)
		if !product(folder) {
			return
		}
		ours, known := mayImport[folder]
		if !known {
			t.Errorf("%s: who may import whom there? Say so in architecture.md and in this test", file)
			return
		}
		for _, imported := range imports {
			sibling, inside := strings.CutPrefix(imported, module+"/")
			_, outside, _ := strings.Cut(imported, ".") // the standard library has no dots
			switch {
			case imported == "os/exec":
				t.Errorf("%s: the plugin runs no programs", file)
			case imported == module:
				t.Errorf("%s imports the root", file)
			case inside && file == "setup.go" && slices.Contains(concreteBackends, sibling):
			case inside && !slices.Contains(ours, sibling):
				t.Errorf("%s imports %s", file, sibling)
			case !inside && outside != "" && slices.Contains(standardOnly, folder):
				t.Errorf("%s imports %s, and only the standard library may be imported there", file, imported)
			case folder != "." && folder != "sentinel" && slices.ContainsFunc(rootsOwn, func(p string) bool { return strings.HasPrefix(imported, p) }):
				t.Errorf("%s imports %s, which only the root may", file, imported)
			}
		}
	})
}

// eachFile hands over every Go file but tests, with its imports.
func eachFile(t *testing.T, each func(file string, imports []string)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(".", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && file != "." && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".")):
			return filepath.SkipDir
		case !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		parsed, err := goparser.ParseFile(token.NewFileSet(), file, nil, goparser.ImportsOnly)
		if err != nil {
			return err
		}
		var imports []string
		for _, i := range parsed.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, p)
		}
		files++
		each(filepath.ToSlash(file), imports)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("only %d files found", files)
	}
}
