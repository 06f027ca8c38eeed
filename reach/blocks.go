package reach

import "net/netip"

// blocks are the address blocks that have a meaning of their own, in any order: the
// more specific one counts. They are the IANA IPv4 and IPv6 Special-Purpose Address
// Registries as of October 2025 (RFC 6890, RFC 8190), where "globally reachable" is
// not true, with the blocks in them where it is; multicast; what IANA has not given
// out of IPv6; and metadata services of clouds.
//
// Blocks that hold IPv4 addresses and otherwise lead anywhere (NAT64, 6to4, Teredo,
// where the registry says true or N/A) are judged by these: see Parts.
var blocks = []Block{
	block("0.0.0.0/0", Anywhere, ""),
	block("0.0.0.0/8", Loopback, "this network (RFC 791)"), // Linux takes 0.0.0.0 for itself
	block("10.0.0.0/8", Special, "private-use (RFC 1918)"),
	block("100.64.0.0/10", Special, "shared address space (RFC 6598)"),
	block("127.0.0.0/8", Loopback, "loopback (RFC 1122)"),
	block("169.254.0.0/16", Special, "link-local (RFC 3927)"),
	block("172.16.0.0/12", Special, "private-use (RFC 1918)"),
	block("192.0.0.0/24", Special, "IETF protocol assignments (RFC 6890)"),
	block("192.0.0.0/29", Special, "IPv4 service continuity (RFC 7335)"),
	block("192.0.0.8/32", Special, "IPv4 dummy address (RFC 7600)"),
	block("192.0.0.9/32", Anywhere, "Port Control Protocol anycast (RFC 7723)"),
	block("192.0.0.10/32", Anywhere, "TURN anycast (RFC 8155)"),
	block("192.0.0.170/32", Special, "NAT64/DNS64 discovery (RFC 7050)"),
	block("192.0.0.171/32", Special, "NAT64/DNS64 discovery (RFC 7050)"),
	block("192.0.2.0/24", Special, "documentation (RFC 5737)"),
	block("192.88.99.0/24", Special, "deprecated 6to4 relay anycast (RFC 7526)"),
	block("192.88.99.2/32", Special, "6a44 relay anycast (RFC 6751)"),
	block("192.168.0.0/16", Special, "private-use (RFC 1918)"),
	block("198.18.0.0/15", Special, "benchmarking (RFC 2544)"),
	block("198.51.100.0/24", Special, "documentation (RFC 5737)"),
	block("203.0.113.0/24", Special, "documentation (RFC 5737)"),
	block("224.0.0.0/4", Special, "multicast (RFC 5771)"),
	block("240.0.0.0/4", Special, "reserved (RFC 1112)"),
	block("255.255.255.255/32", Special, "limited broadcast (RFC 919)"),

	block("::/0", Special, "not given out by IANA (RFC 4291)"),
	block("::/96", Special, "deprecated IPv4-compatible (RFC 4291)"),
	block("::/128", Loopback, "unspecified (RFC 4291)"),
	block("::1/128", Loopback, "loopback (RFC 4291)"),
	block("::ffff:0:0:0/96", Special, "IPv4-translated (RFC 2765)"),
	block("64:ff9b::/96", Anywhere, "NAT64 (RFC 6052)"),
	block("64:ff9b:1::/48", Special, "NAT64 for local use (RFC 8215)"),
	block("100::/64", Special, "discard-only (RFC 6666)"),
	block("100:0:0:1::/64", Special, "dummy prefix (RFC 9780)"),
	block("2000::/3", Anywhere, "global unicast (RFC 4291)"),
	block("2001::/23", Special, "IETF protocol assignments (RFC 2928)"),
	block("2001::/32", Anywhere, "Teredo (RFC 4380)"),
	block("2001:1::1/128", Anywhere, "Port Control Protocol anycast (RFC 7723)"),
	block("2001:1::2/128", Anywhere, "TURN anycast (RFC 8155)"),
	block("2001:1::3/128", Anywhere, "DNS-SD registration anycast (RFC 9665)"),
	block("2001:2::/48", Special, "benchmarking (RFC 5180)"),
	block("2001:3::/32", Anywhere, "AMT (RFC 7450)"),
	block("2001:4:112::/48", Anywhere, "AS112 (RFC 7535)"),
	block("2001:10::/28", Special, "deprecated ORCHID (RFC 4843)"),
	block("2001:20::/28", Anywhere, "ORCHIDv2 (RFC 7343)"),
	block("2001:30::/28", Anywhere, "drone remote identification (RFC 9374)"),
	block("2001:db8::/32", Special, "documentation (RFC 3849)"),
	block("2002::/16", Anywhere, "6to4 (RFC 3056)"),
	block("3fff::/20", Special, "documentation (RFC 9637)"),
	block("5f00::/16", Special, "segment routing (RFC 9602)"),
	block("fc00::/7", Special, "unique-local (RFC 4193)"),
	block("fe80::/10", Special, "link-local (RFC 4291)"),
	block("fec0::/10", Special, "deprecated site-local (RFC 3879)"),
	block("ff00::/8", Special, "multicast (RFC 4291)"),

	block("100.100.100.200/32", Metadata, "metadata of Alibaba Cloud"),
	block("168.63.129.16/32", Metadata, "Azure's WireServer"), // in a block that is routed
	block("169.254.0.23/32", Metadata, "metadata of Tencent Cloud"),
	block("169.254.42.42/32", Metadata, "metadata of Scaleway"),
	block("169.254.169.254/32", Metadata, "metadata of most clouds"),
	block("169.254.170.2/32", Metadata, "credentials of Amazon ECS tasks"),
	block("169.254.170.23/32", Metadata, "credentials of Amazon EKS pods"),
	block("192.0.0.192/32", Metadata, "metadata of Oracle Cloud, once"),
	block("fd00:42::42/128", Metadata, "metadata of Scaleway"),
	block("fd00:100::100:200/128", Metadata, "metadata of Alibaba Cloud"),
	block("fd00:a9fe:a9fe::1/128", Metadata, "metadata of Akamai"),
	block("fd00:c1::a9fe:a9fe/128", Metadata, "metadata of Oracle Cloud"),
	block("fd00:ec2::23/128", Metadata, "credentials of Amazon EKS pods"),
	block("fd00:ec2::254/128", Metadata, "metadata of Amazon EC2"),
	block("fd20:ce::254/128", Metadata, "metadata of Google Cloud"),
	block("fe80::a9fe:a9fe/128", Metadata, "metadata of OpenStack"),
}

func block(prefix string, kind Kind, why string) Block {
	return Block{netip.MustParsePrefix(prefix), kind, why}
}
