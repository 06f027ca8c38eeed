package flowlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// NFLOG is spoken here in some hundred lines: github.com/florianl/go-nflog/v2 v2.3.0 ends
// its goroutine some time after Close, takes what arrives between two of its requests for
// the answer to the second one, and makes some twenty objects of every packet.
// (include/uapi/linux/netfilter/nfnetlink_log.h)

const (
	messagePacket = unix.NFNL_SUBSYS_ULOG << 8
	messageConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1

	configCommand, configMode, configTimeout, configThreshold, configFlags = 1, 2, 4, 5, 6

	commandBind = 1
	copyPacket  = 2
	flagCount   = 1 // number what is shown

	attrInterface, attrEther, attrPayload, attrPrefix, attrUser, attrNumber = 4, 8, 9, 10, 11, 12
)

const (
	// snapLength is enough for the headers of IP and transport.
	snapLength = 128

	// A packet is shown with others that come until then, in hundredths of a second, or
	// when there are so many of them.
	showWithin, showTogether = 5, 32

	// receiveBuffer is room for what comes while nobody reads for some seconds.
	receiveBuffer = 1 << 20
)

// group is an NFLOG group that is listened to.
type group struct {
	conn   *netlink.Conn
	next   uint32 // the number that the next packet should have
	closed atomic.Bool
}

// close ends a read that waits, too.
func (g *group) close() {
	g.closed.Store(true)
	_ = g.conn.Close()
}

// openGroup has the kernel show a group's packets to us, and to nobody else.
func openGroup(number uint16) (*group, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(receiveBuffer)
	g := &group{conn: conn}
	mode := append(binary.BigEndian.AppendUint32(nil, snapLength), copyPacket, 0)
	if err = g.configure(number, netlink.Attribute{Type: configCommand, Data: []byte{commandBind}}); err == nil {
		err = g.configure(number,
			netlink.Attribute{Type: configMode, Data: mode},
			netlink.Attribute{Type: configTimeout, Data: binary.BigEndian.AppendUint32(nil, showWithin)},
			netlink.Attribute{Type: configThreshold, Data: binary.BigEndian.AppendUint32(nil, showTogether)},
			netlink.Attribute{Type: configFlags, Data: binary.BigEndian.AppendUint16(nil, flagCount)})
	}
	if err == nil {
		return g, nil
	}
	_ = conn.Close()
	switch {
	case errors.Is(err, unix.EPERM) && taken(number):
		err = fmt.Errorf("another program listens to it: %w", err)
	case errors.Is(err, unix.EPERM):
		err = &backend.PermissionError{Need: "CAP_NET_ADMIN", Err: err}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("this kernel cannot show packets: %w (nfnetlink_log is needed, CONFIG_NETFILTER_NETLINK_LOG)", err)
	}
	return nil, fmt.Errorf("NFLOG group %d: %w", number, err)
}

// taken reports whether anybody listens to a group. The kernel says the same to who may
// not because of that and to who may not do anything.
func taken(number uint16) bool {
	listeners, _ := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_log")
	for line := range strings.Lines(string(listeners)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == fmt.Sprint(number) {
			return true
		}
	}
	return false
}

// configure sends a request and waits until the kernel has done it. Packets may come
// before its answer.
func (g *group) configure(number uint16, attrs ...netlink.Attribute) error {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	request, err := g.conn.Send(netlink.Message{
		Header: netlink.Header{Type: messageConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, number), data...),
	})
	if err != nil {
		return err
	}
	for {
		answers, err := g.conn.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Header.Type == netlink.Error && a.Header.Sequence == request.Header.Sequence {
				return nil
			}
		}
	}
}

// A shown packet is one of a group.
type shown struct {
	backend.Flow
	Packet
}

// read waits for packets, and hands over those that are ours. It says how many were lost
// before them.
func (g *group) read(each func(shown)) (lost uint64, err error) {
	messages, err := g.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return 0, nil // the numbers will tell how many
	}
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Type != messagePacket || len(m.Data) < 4 {
			continue
		}
		s, number, ok := parseShown(m.Data[4:])
		if number >= 0 {
			lost += uint64(uint32(number) - g.next)
			g.next = uint32(number) + 1
		}
		if ok {
			each(s)
		}
	}
	return lost, nil
}

// parseShown reads what the kernel says of a packet, and its number in the group, or -1.
func parseShown(data []byte) (s shown, number int64, ok bool) {
	number = -1
	attrs, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return s, number, false
	}
	attrs.ByteOrder = binary.BigEndian
	var packet []byte
	prefix, index, user := "", uint32(0), backend.NoUser
	for attrs.Next() {
		switch attrs.Type() {
		case attrInterface:
			index = attrs.Uint32()
		case attrEther:
			s.Ether = readEther(attrs.Bytes())
		case attrPayload:
			packet = attrs.Bytes()
		case attrPrefix:
			prefix = strings.TrimRight(attrs.String(), "\x00")
		case attrUser:
			user = attrs.Uint32()
		case attrNumber:
			number = int64(attrs.Uint32())
		}
	}
	if attrs.Err() != nil {
		return s, number, false
	}
	for _, k := range backend.Kinds {
		if k.String() == prefix {
			s.Kind, ok = k, true
		}
	}
	if s.Hook == backend.Forward {
		s.Interface = index
	} else {
		s.User = user
	}
	return s, number, ok && readPacket(packet, &s.Flow, &s.Packet)
}

// readEther reads an address of the link: its length, two bytes of nothing, and the
// address in eight.
func readEther(b []byte) net.HardwareAddr {
	const ether = 6
	if len(b) < 4+ether || binary.BigEndian.Uint16(b) != ether {
		return nil
	}
	return net.HardwareAddr(b[4 : 4+ether])
}
