// Command coredns is CoreDNS with ipdestinationguard in its place.
package main

import (
	"runtime/debug"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

// version is set by the Makefile with -ldflags -X. A plain go install leaves it to the build information.
var version string

func init() {
	// caddy asks for the list when it starts, not before, so it is early enough here.
	dnsserver.Directives = directives
	// The one word of -version and of coredns_build_info that CoreDNS leaves to whoever builds it.
	coremain.GitCommit = "ipdestinationguard-" + guardVersion()
}

func main() { coremain.Run() }

func guardVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
