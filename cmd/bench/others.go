package main

import (
	"fmt"
	"strings"
)

// What other resolvers are asked to be: a cache in front of the same upstream,
// with as many names as CoreDNS keeps by default.
const cacheNames = 9984

func dnsmasq(program string) *variant {
	return &variant{name: "dnsmasq", program: program, config: func(s *server) string {
		return fmt.Sprintf("keep-in-foreground\nuser=root\nno-resolv\nno-hosts\npid-file\nbind-interfaces\nlisten-address=%s\ncache-size=%d\ndns-forward-max=1000\nserver=%s\n",
			s.lan(), cacheNames, s.upstream())
	}}
}

// dnsmasqNftset is dnsmasq that adds what it answers to a set of the guard's
// ruleset, with the timeout that the set gives by itself: it knows no other.
func dnsmasqNftset(program string) *variant {
	v := dnsmasq(program)
	plain := v.config
	v.name, v.nft = "dnsmasq+nftset", nftsetRules
	v.config = func(s *server) string {
		return plain(s) + fmt.Sprintf("nftset=/#/4#inet#%s#%s\n", nftsetTable, setName4)
	}
	return v
}

const nftsetTable = "dnsmasq"

// nftsetRules are a guard's rules as an administrator would write them for it.
const nftsetRules = `
table inet dnsmasq {
	set granted4 { type ipv4_addr; flags timeout; timeout 90s; size 1048576; }
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ip daddr @granted4 accept
		counter reject
	}
}
`

func unbound(program string) *variant {
	return &variant{name: "unbound", program: program, config: func(s *server) string {
		return strings.Join([]string{
			"server:", "  interface: " + s.lan(), "  access-control: 192.168.0.0/16 allow",
			"  username: \"\"", "  chroot: \"\"", "  directory: \"\"", "  pidfile: \"\"", "  use-syslog: no", "  logfile: \"\"", "  do-daemonize: no",
			"  num-threads: 2", "  so-reuseport: yes", "  module-config: \"iterator\"", "  outgoing-range: 4096", "  num-queries-per-thread: 2048",
			"  do-not-query-localhost: no", "  local-zone: \"bench.\" nodefault",
			"remote-control:", "  control-enable: no",
			"forward-zone:", "  name: \".\"", "  forward-addr: " + s.upstream(), "",
		}, "\n")
	}}
}
