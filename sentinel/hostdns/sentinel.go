// Package hostdns knows which addresses are sentinels, and reads what a machine has about its nameservers.
package hostdns

import "net/netip"

// Slots is how many nameservers have a sentinel. glibc and musl ask the first three that they are told of, others more.
const Slots = 8

// The networks that sentinels have their addresses from. They belong to no other use: routed names never get
// addresses from them.
var (
	IPv4 = netip.MustParsePrefix("100.100.111.0/24")
	IPv6 = netip.MustParsePrefix("fd00:2021:1111:8000:100:100:111:0/120")
)

// Addresses are the sentinels of a network: the first is for the first nameserver.
func Addresses(network netip.Prefix) (all [Slots]netip.Addr) {
	addr := network.Addr()
	for i := range all {
		addr = addr.Next()
		all[i] = addr
	}
	return all
}

// IsSentinel reports whether an address is from one of the networks, whether it is used or not.
func IsSentinel(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return IPv4.Contains(addr) || IPv6.Contains(addr)
}

// Question is what a sentinel answers by itself, of class CHAOS and type TXT: which of them are in use. The answer has
// one record for each, of three strings: its address, [Alive] or [Dead], and its nameserver.
const Question = "sentinel."

// What a sentinel says of its nameserver. Of a dead one, questions are not answered.
const (
	Alive = "alive"
	Dead  = "dead"
)

// Kept is where the nameservers of the machine are listed while its resolv.conf names sentinels, as in resolv.conf.
const Kept = "/var/lib/ipdestinationguard-sentinel/nameservers"

// Uplinks is where systemd-resolved lists the nameservers that it asks.
const Uplinks = "/run/systemd/resolve/resolv.conf"

// Resolv is what the C library reads.
const Resolv = "/etc/resolv.conf"
