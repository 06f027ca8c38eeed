package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// rejected is how many packets the guard of a gateway has refused.
func rejected(h *netlab.Host) (packets uint64, err error) {
	err = h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		o, err := c.GetObject(&nftables.NamedObj{
			Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, Name: "denied-forward", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{},
		})
		if err != nil {
			return err
		}
		packets = o.(*nftables.NamedObj).Obj.(*expr.Counter).Packets
		return nil
	})
	return packets, err
}

// removeTable removes the guard's table from a host.
func removeTable(h *netlab.Host) error {
	return h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
		return c.Flush()
	})
}

// elementsOf is how many elements the kernel holds of a set, those that have
// expired but not been collected included. A recent kernel (6.18 does)
// tells; of others all of them have to be read.
func elementsOf(h *netlab.Host, set string) (n int, err error) {
	const setCount = 20 // NFTA_SET_COUNT
	err = h.Do(func() error {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		e := netlink.NewAttributeEncoder()
		e.String(unix.NFTA_SET_TABLE, tableName)
		e.String(unix.NFTA_SET_NAME, set)
		attrs, err := e.Encode()
		if err != nil {
			return err
		}
		msgs, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSET, Flags: netlink.Request},
			Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
		})
		if err != nil {
			return fmt.Errorf("set %s: %w", set, err)
		}
		if len(msgs) != 1 || len(msgs[0].Data) < 4 {
			return errors.New("no answer about the set")
		}
		d, err := netlink.NewAttributeDecoder(msgs[0].Data[4:])
		if err != nil {
			return err
		}
		for d.Next() {
			if d.Type() == setCount {
				n = int(binary.BigEndian.Uint32(d.Bytes()))
				return nil
			}
		}
		lib, err := nftables.New()
		if err != nil {
			return err
		}
		all, err := lib.GetSetElements(&nftables.Set{Name: set, Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}})
		n = len(all)
		return err
	})
	return n, err
}
