// Command coredns is CoreDNS with ipdestinationguard in its place.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	ipdestinationguard "github.com/destination-guard/coredns-ip-destination-guard"
)

func init() {
	// caddy asks for the list when it starts, not before, so it is early enough here.
	dnsserver.Directives = directives
	// The one word of -version and of coredns_build_info that CoreDNS leaves to whoever builds it.
	coremain.GitCommit = "ipdestinationguard-" + ipdestinationguard.Version()
}

func main() { coremain.Run() }
