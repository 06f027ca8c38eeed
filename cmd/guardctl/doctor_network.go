package main

import (
	"net"
	"strings"
)

// forwarding looks whether the machine is a gateway, and ought to be.
func (d *doctor) forwarding() {
	v4, v6 := sysctl("ipv4/ip_forward") == "1", sysctl("ipv6/conf/all/forwarding") == "1"
	on := strings.TrimSpace(map[bool]string{true: "IPv4"}[v4] + " " + map[bool]string{true: "IPv6"}[v6])
	switch {
	case d.status == nil && !v4 && !v6:
		d.say(fine, "", "this machine forwards nothing")
	case d.status == nil:
		d.say(fine, "", "this machine forwards %s", on)
	case d.guards("forward") && !v4:
		d.say(failure, "sysctl net.ipv4.ip_forward=1, and in /etc/sysctl.d", "the mode is for a gateway, and this machine forwards no IPv4")
	case d.guards("forward") && !v6:
		d.say(warning, "sysctl net.ipv6.conf.all.forwarding=1, and in /etc/sysctl.d, if clients are to have IPv6", "this machine forwards no IPv6: answers with such addresses lead clients nowhere")
	case d.guards("forward"):
		d.say(fine, "", "this machine forwards %s", on)
	case v4 || v6:
		d.say(warning, "with containers or clients behind it, take mode nft-both; else sysctl net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0", "this machine forwards %s, and in mode nft-local that is not guarded", on)
	default:
		d.say(fine, "", "this machine forwards nothing")
	}
}

// forged looks whether clients can use others' IPv4 addresses. Of the setting for all interfaces
// and that for the one the greater counts, and 2 is satisfied with any way back.
func (d *doctor) forged() {
	d.ofClients("rp_filter", "1", func(all, own string) bool { return max(all, own) != "1" },
		" (but 2 for one that a route names with out); for IPv6, drop with nftables what fib saddr . iif oif missing finds",
		"packets with forged sources are taken from %s: a client's questions can count for another one",
		"IPv4 packets with forged sources are dropped")
}

// sourceRoutes looks whether clients can say by which way this machine answers them.
func (d *doctor) sourceRoutes() {
	d.ofClients("accept_source_route", "0", func(all, own string) bool { return all == "1" && own == "1" }, "",
		"packets with a source route are taken from %s: what this machine answers goes by that route, past rules for clients",
		"IPv4 packets with a source route are dropped")
}

// ofClients looks at a setting of IPv4 on the interfaces of a gateway: it may be bad by that
// for all interfaces and that for the one, and is good where both have the same value.
func (d *doctor) ofClients(setting, value string, bad func(all, own string) bool, more, warn, good string) {
	if !d.guards("forward") {
		d.say(fine, "", "there are no clients")
		return
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		d.say(unknown, "look with sysctl -a --pattern "+setting, "%v", err)
		return
	}
	of := func(ifname string) string { return "ipv4/conf/" + ifname + "/" + setting }
	all := sysctl(of("all"))
	var open []string
	advice := "sysctl net/" + of("all") + "=" + value
	for _, i := range interfaces {
		if own := sysctl(of(i.Name)); i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 && bad(all, own) {
			open = append(open, i.Name)
			if own != value {
				advice += " net/" + of(i.Name) + "=" + value // a name may have dots
			}
		}
	}
	if len(open) > 0 {
		d.say(warning, advice+", and in /etc/sysctl.d"+more, warn, strings.Join(open, " "))
		return
	}
	d.say(fine, "", "%s", good)
}
