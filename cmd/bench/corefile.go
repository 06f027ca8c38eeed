package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

const directive = "ipdestinationguard"

// Ports on the servers' loopback.
const (
	metricsPort = 9153
	pprofPort   = 6053
)

// corefile is a plain resolver: cache and forward.
func corefile(s *server, lines ...string) string {
	return fmt.Sprintf(". {\n\tbind %s\n\t%s\n\tcache\n\tforward . %s\n}\n", s.lan(), strings.Join(lines, "\n\t"), s.upstream())
}

// guardMode is which traffic the guard in comparisons guards.
var guardMode = "nft-gateway"

func guardOn(program string, options ...string) *variant {
	return &variant{name: "guard-on", program: program, config: func(s *server) string {
		return corefile(s, fmt.Sprintf("%s {\n\t\tmode %s\n\t\tscope any\n\t\tmax_grants 2097152\n\t\tallowedIPs %s/32 192.168.0.0/16\n\t\t%s\n\t}", directive, guardMode, s.upstream(), strings.Join(options, "\n\t\t")))
	}}
}

func guardOff(program string) *variant {
	return &variant{name: "guard-off", program: program, config: func(s *server) string { return corefile(s) }}
}

func withRuleset(program string) *variant {
	v := guardOff(program)
	v.name, v.ruleset = "ruleset-only", true
	return v
}

func stock(program string) *variant {
	v := guardOff(program)
	v.name = "stock"
	return v
}

// with adds lines to the server block.
func (v *variant) with(lines ...string) *variant {
	changed := *v
	changed.config = func(s *server) string {
		return strings.Replace(v.config(s), "\tcache\n", "\t"+strings.Join(lines, "\n\t")+"\n\tcache\n", 1)
	}
	return &changed
}

var (
	pprofLine = fmt.Sprintf("pprof 127.0.0.1:%d", pprofPort)
	observed  = []string{pprofLine, fmt.Sprintf("prometheus 127.0.0.1:%d", metricsPort)}
)

func httpGet(h *netlab.Host, address, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return h.Dial(ctx, "tcp", address) },
	}, Timeout: 5 * time.Minute}
	resp, err := client.Get("http://" + address + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// metrics reads the server's variables, sums of histograms and all, by the name
// with its labels.
func (s *server) metrics() (map[string]float64, error) {
	text, err := s.get(metricsPort, "/metrics")
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if v, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err == nil {
				m[line[:i]] = v
			}
		}
	}
	return m, nil
}
