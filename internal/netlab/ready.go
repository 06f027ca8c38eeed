package netlab

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel finishes a link and an IPv6 address from work queues, a millisecond or so after it has
// confirmed them. A packet sent in between is lost, and its sender tries again after a second: all
// would work, now and then slowly. So Link and Addr wait.

const readyWithin = 5 * time.Second

// linkReady waits until an interface which is up has its queue.
func (h *Host) linkReady(ifname string) error {
	return h.waitFor(ifname, func(_ *netlink.Handle, link netlink.Link) (bool, error) {
		return link.Attrs().OperState == netlink.OperUp, nil
	})
}

// addrsReady waits until an interface answers neighbours for its IPv6 addresses, and has the
// link-local one from which a router asks for them. An address is tentative up to that moment even
// where no duplicates are looked for, unless it is of IFA_F_NODAD, which therefore is not used.
func (h *Host) addrsReady(ifname string) error {
	return h.waitFor(ifname, func(nl *netlink.Handle, link netlink.Link) (bool, error) {
		addrs, err := nl.AddrList(link, unix.AF_INET6)
		hasLinkLocal := ifname == "lo" // which has none, and no neighbours
		for _, addr := range addrs {
			if addr.Flags&unix.IFA_F_TENTATIVE != 0 {
				return false, err
			}
			hasLinkLocal = hasLinkLocal || addr.IP.IsLinkLocalUnicast()
		}
		return hasLinkLocal, err
	})
}

func (h *Host) waitFor(ifname string, isReady func(*netlink.Handle, netlink.Link) (bool, error)) error {
	for deadline := time.Now().Add(readyWithin); ; time.Sleep(200 * time.Microsecond) {
		var ready bool
		err := h.onLink(ifname, func(nl *netlink.Handle, link netlink.Link) (err error) {
			ready, err = isReady(nl, link)
			return err
		})
		if err != nil || ready {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready within %v", ifname, readyWithin)
		}
	}
}
