package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// peersEnv hands the peers' paths to the isolated process, which has no network
// to fetch anything from.
const peersEnv = "BENCH_PEERS"

// peers are the programs that are compared; "" is not installed.
type peers struct {
	Ours    string // cmd/coredns, as make build makes it
	Stock   string // CoreDNS as released
	Dnsmasq string
	Unbound string
}

const (
	stockModule  = "github.com/coredns/coredns"
	stockVersion = "v1.15.0"
)

// findPeers builds and finds the peers, or takes what the first process found.
func findPeers() (*peers, error) {
	p := &peers{}
	if text, ok := os.LookupEnv(peersEnv); ok {
		return p, json.Unmarshal([]byte(text), p)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "ipdestinationguard-bench")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	if p.Ours, err = buildOurs(cache); err != nil {
		return nil, err
	}
	if p.Stock, err = buildStock(cache); err != nil {
		return nil, err
	}
	p.Dnsmasq, p.Unbound = findProgram("dnsmasq"), findProgram("unbound")
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return p, os.Setenv(peersEnv, string(text))
}

// buildOurs has make build the binary, so that it is the one that users get.
func buildOurs(cache string) (string, error) {
	path := filepath.Join(cache, "coredns")
	cmd := exec.Command("make", "-s", "build", "BINARY="+path)
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	return path, runLoud(cmd)
}

// buildStock builds CoreDNS as its Makefile.release does: every plugin of its
// plugin.cfg, without cgo, with the tag grpcnotrace, stripped.
func buildStock(cache string) (string, error) {
	path := filepath.Join(cache, "coredns-"+stockVersion+"-"+goVersion())
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "building CoreDNS %s once, which takes a minute or two\n", stockVersion)
	work, err := os.MkdirTemp("", "bench-stock")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	download := exec.Command("go", "mod", "download", "-json", stockModule+"@"+stockVersion)
	download.Dir = work // go heeds the go.mod around it
	out, err := download.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w", download, err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", err
	}
	tree := filepath.Join(work, "tree")
	if err := os.CopyFS(tree, os.DirFS(module.Dir)); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", path+".new", ".")
	build.Dir = tree
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if err := runLoud(build); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

func runLoud(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%v: %w", cmd, err)
	}
	return nil
}

func goVersion() string {
	out, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		return "go"
	}
	return strings.TrimSpace(string(out))
}

// findProgram also looks where administrators' programs are.
func findProgram(name string) string {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}
