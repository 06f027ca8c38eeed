package identity

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Packet is what the kernel chooses a way by.
type Packet struct {
	To   netip.Addr
	Mark uint32

	// Of one that is forwarded, if it is known: where it comes from, and by which interface.
	// Without an interface it is taken for one that comes by where its sender is reached.
	From netip.Addr
	In   string
}

// Leaves returns the interface that the kernel would send a packet by now, or nothing where it
// has no way for it.
func Leaves(p Packet) (out string, err error) {
	fd, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return leaves(&requester{fd: fd}, p)
}

func leaves(r *requester, p Packet) (out string, err error) {
	if p.From.IsValid() && p.In == "" {
		if p.In, err = leaves(r, Packet{To: p.From}); err != nil || p.In == "" {
			return "", err
		}
	}
	b := r.open(unix.RTM_GETROUTE)
	from := 0
	if p.From.IsValid() {
		from = p.From.BitLen()
	}
	b = append(b, family(p.To), byte(p.To.BitLen()), byte(from), 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendAddress(b, unix.RTA_DST, p.To)
	if p.From.IsValid() {
		in, err := net.InterfaceByName(p.In)
		if err != nil {
			return "", err
		}
		b = appendAddress(b, unix.RTA_SRC, p.From)
		b = appendAttribute(b, unix.RTA_IIF, binary.NativeEndian.AppendUint32(nil, uint32(in.Index)))
	}
	b = appendAttribute(b, unix.RTA_MARK, binary.NativeEndian.AppendUint32(nil, p.Mark))
	body, err := r.ask(b)
	if err != nil || len(body) < unix.SizeofRtMsg || body[7] != unix.RTN_UNICAST {
		return "", unlessAbsent(err)
	}
	for typ, value := range attributes(body[unix.SizeofRtMsg:]) {
		if typ == unix.RTA_OIF && len(value) == 4 {
			to, err := net.InterfaceByIndex(int(binary.NativeEndian.Uint32(value)))
			if err != nil {
				return "", err
			}
			return to.Name, nil
		}
	}
	return "", nil
}
