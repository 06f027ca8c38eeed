package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// onLoopback gives sentinels' addresses to lo. No manager of networks cares for lo, nothing is routed by it, and with
// the scope of the host no address of it is ever taken as the source for elsewhere.
type onLoopback struct{}

func (onLoopback) have() ([]netip.Addr, error) {
	_, all, err := sentinelsOnLo()
	return all, err
}

func sentinelsOnLo() (lo netlink.Link, all []netip.Addr, err error) {
	if lo, err = netlink.LinkByName("lo"); err != nil {
		return nil, nil, fmt.Errorf("lo: %w", err)
	}
	list, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("addresses of lo: %w", err)
	}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && hostdns.IsSentinel(addr) {
			all = append(all, addr.Unmap())
		}
	}
	return lo, all, nil
}

func (onLoopback) add() error {
	lo, have, err := sentinelsOnLo()
	if err != nil {
		return err
	}
	for _, network := range []netip.Prefix{hostdns.IPv4, hostdns.IPv6} {
		for _, addr := range hostdns.Addresses(network) {
			if slices.Contains(have, addr) {
				continue
			}
			err := netlink.AddrAdd(lo, onHost(addr))
			if addr.Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP)) {
				break // IPv6 is switched off, on lo or altogether
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("address %v on lo: %w", addr, err)
			}
			have = append(have, addr)
		}
	}
	return nil
}

func (onLoopback) remove() error {
	lo, have, err := sentinelsOnLo()
	if err != nil {
		return err
	}
	for _, addr := range have {
		if err := netlink.AddrDel(lo, onHost(addr)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("address %v on lo: %w", addr, err)
		}
	}
	return nil
}

func onHost(addr netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}, Scope: unix.RT_SCOPE_HOST}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}
