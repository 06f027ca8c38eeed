package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstIndex is beyond the interface indexes that the kernel gives out by itself. Each lab begins
// there, since package net remembers for a minute which index a zone has.
const firstIndex = 1000

// linksHere are how many there have been on this process's own network, where no index comes
// twice: for some time after an interface has gone, the kernel ends the connections that one with
// its index and its address masquerades. (net/netfilter/nf_nat_masquerade.c)
var linksHere atomic.Int32

// Link connects two hosts by a veth pair and sets both ends up.
func (l *Lab) Link(a *Host, aIf string, b *Host, bIf string) error {
	// Held against Close, so that the descriptor of b stays what it is.
	l.mu.Lock()
	defer l.mu.Unlock()
	// The two ends must not have the same index, each in its namespace: the kernel takes such a
	// device for one without a peer (linkwatch_urgent_event), and waits up to a second before it
	// lets IPv6 use the link.
	l.links++
	index := firstIndex + l.links
	if a.name == here {
		index = 2*firstIndex + int(linksHere.Add(1))
	}
	end := netlink.LinkAttrs{Name: aIf, Index: index}
	doing := fmt.Sprintf("link %s to %s of %s", aIf, bIf, b.name)
	err := a.rtnl(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Veth{
			LinkAttrs:     end,
			PeerName:      bIf,
			PeerNamespace: netlink.NsFd(b.ns),
		})
	})
	if err == nil {
		err = errors.Join(a.keepLink(aIf), b.keepLink(bIf))
	}
	if err == nil {
		err = a.up(aIf)
	}
	if err == nil {
		err = b.up(bIf)
	}
	if err == nil {
		err = errors.Join(a.linkReady(aIf), b.linkReady(bIf))
	}
	return a.fail(doing, err)
}

// keepLink has the link deleted with the host where that is no namespace of its own, which would
// take it along.
func (h *Host) keepLink(ifname string) error {
	if h.name != here {
		return nil
	}
	return h.keep(hereLink{h.routes, ifname})
}

type hereLink struct {
	routes *netlink.Handle
	name   string
}

func (l hereLink) Close() error {
	link, err := l.routes.LinkByName(l.name)
	if err == nil {
		err = l.routes.LinkDel(link)
	}
	if _, gone := err.(netlink.LinkNotFoundError); gone || errors.Is(err, unix.ENODEV) {
		return nil // with its other end
	}
	return err
}

// Ether gives an interface an Ethernet address, "02:00:00:00:00:01".
func (h *Host) Ether(ifname, address string) error {
	hw, err := net.ParseMAC(address)
	if err == nil {
		err = h.onLink(ifname, func(nl *netlink.Handle, link netlink.Link) error { return nl.LinkSetHardwareAddr(link, hw) })
	}
	return h.fail("Ethernet address "+address+" on "+ifname, err)
}

// Bridge makes the host a switch: what is at the other ends of the ports, interfaces of its own, is on
// one wire. The bridge has no address, and its name is that of an interface.
func (h *Host) Bridge(name string, ports ...string) error {
	err := h.rtnl(func(nl *netlink.Handle) error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := nl.LinkAdd(bridge); err != nil {
			return err
		}
		for _, port := range ports {
			link, err := nl.LinkByName(port)
			if err == nil {
				err = nl.LinkSetMaster(link, bridge)
			}
			if err != nil {
				return fmt.Errorf("port %s: %w", port, err)
			}
		}
		return nl.LinkSetUp(bridge)
	})
	if err == nil {
		err = h.linkReady(name)
	}
	return h.fail("bridge "+name, err)
}

// Addr gives an interface an address with the length of its subnet, "192.0.2.1/24". It is
// usable when Addr returns, for IPv6 too: there is no duplicate address detection.
func (h *Host) Addr(ifname, cidr string) error {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return h.fail("address", err)
	}
	err = h.onLink(ifname, func(nl *netlink.Handle, link netlink.Link) error {
		return nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(prefix)})
	})
	if err == nil && prefix.Addr().Is6() {
		err = h.addrsReady(ifname)
	}
	return h.fail("address "+cidr+" on "+ifname, err)
}

// Route sends a prefix by way of a gateway. The default routes are "0.0.0.0/0" and "::/0".
func (h *Host) Route(cidr, via string) error {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return h.fail("route", err)
	}
	gateway, err := netip.ParseAddr(via)
	if err != nil {
		return h.fail("route "+cidr, err)
	}
	return h.fail("route "+cidr+" via "+via, h.rtnl(func(nl *netlink.Handle) error {
		return nl.RouteAdd(&netlink.Route{Dst: ipNet(prefix.Masked()), Gw: gateway.AsSlice()})
	}))
}

// Local makes every address of a prefix the host's own (AnyIP), so that one server on the wildcard
// address plays a whole internet.
func (h *Host) Local(cidr string) error {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return h.fail("local", err)
	}
	if prefix.Addr().Is6() {
		// Unlike IPv4, IPv6 lets nobody choose a source address which is on no interface, and a
		// UDP server has to answer from the address that was asked.
		if err := h.Sysctl("net/ipv6/ip_nonlocal_bind", "1"); err != nil {
			return err
		}
	}
	return h.fail("local "+cidr, h.onLink("lo", func(nl *netlink.Handle, lo netlink.Link) error {
		return nl.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       ipNet(prefix.Masked()),
			Type:      unix.RTN_LOCAL,
			Table:     unix.RT_TABLE_LOCAL,
			Scope:     netlink.SCOPE_HOST,
		})
	}))
}

// up sets an interface up.
func (h *Host) up(ifname string) error {
	return h.onLink(ifname, (*netlink.Handle).LinkSetUp)
}

func (h *Host) onLink(ifname string, f func(*netlink.Handle, netlink.Link) error) error {
	return h.rtnl(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(ifname)
		if err != nil {
			return err
		}
		return f(nl, link)
	})
}

// rtnl lends the host's routing socket. A closed netlink.Handle would not fail but work on the
// namespace of the calling thread.
func (h *Host) rtnl(f func(*netlink.Handle) error) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return net.ErrClosed
	}
	return f(h.routes)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Dropped is how many packets a link has lost that the host sent by it: the other end had no room
// for them, as on a machine that is busy.
func (h *Host) Dropped(ifname string) (lost uint64, err error) {
	err = h.rtnl(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(ifname)
		if err == nil {
			lost = link.Attrs().Statistics.TxDropped
		}
		return err
	})
	return lost, h.fail("what "+ifname+" has lost", err)
}
