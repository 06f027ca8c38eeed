package identity

import (
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Asker is the program behind a query, as it was when it made its socket: that is
// whom the kernel takes packets of the socket for, even if the program has moved to
// another cgroup or changed its user since, or has handed the socket on.
type Asker struct {
	// UID is the user's number as it reads in the user namespace of NewAskers;
	// 65534 stands for any user whom that does not know.
	UID uint32
	// Cgroup is the id of the cgroup (version 2). It is 1, the root's, on a machine
	// without cgroups of version 2, and 0 where the kernel was built without cgroups.
	Cgroup uint64
}

// Askers finds the programs behind queries that came from the machine's own
// addresses. All methods may be called at any time.
type Askers struct {
	pool  *pool
	mount func() (mount, error)
	units knownUnits
}

// NewAskers readies the search in the calling thread's network namespace. It needs
// no privileges, and fails with [ErrUnsupported] where the kernel has no sock_diag
// for UDP or TCP (CONFIG_INET_UDP_DIAG, CONFIG_INET_TCP_DIAG).
func NewAskers() (*Askers, error) {
	p, err := newPool(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("find askers: %w", err)
	}
	a := &Askers{pool: p, mount: sync.OnceValues(findMount)}
	a.units.init(time.Now)
	if err := a.probe(); err != nil {
		a.Close()
		return nil, fmt.Errorf("find askers: %w", err)
	}
	return a, nil
}

// Close ends the search; Find fails from then on. It may be called more than once.
func (a *Askers) Close() { a.pool.close() }

// Find returns who asked: whose socket sends from client to server, over network
// "udp" or "tcp", by one lookup in the kernel (sock_diag, some 3 us), which costs
// the same however many sockets there are. It is to be called while the query
// waits, since the asker is known by its socket: [ErrGone] if that is closed.
// Addresses of IPv4 may be mapped into IPv6; link-local ones want their zone.
//
// A server that listens on the wildcard address does not know where a UDP query was
// sent to. With an unspecified server address, the client's own stands for it: whoever
// asks a machine's own address asks from the same one, if that is not 127.0.0.2 and so on.
//
// Over TCP the 4-tuple names one socket. Over UDP it is the socket that would get
// the answer, and sockets may be told apart by their local address only, if they
// are not connected. The kernel lets two of these have the same one when both
// have set SO_REUSEADDR (and then the latest bound is found), or both SO_REUSEPORT
// and they are the same user's (then any of them is). Who asks through such a
// socket may be taken for another who has opened its address to all.
func (a *Askers) Find(network string, client, server netip.AddrPort) (Asker, error) {
	asker, err := a.find(network, client, server)
	if err != nil {
		return Asker{}, fmt.Errorf("asker at %s %v: %w", network, client, err)
	}
	return asker, nil
}

func (a *Askers) find(network string, client, server netip.AddrPort) (Asker, error) {
	r, err := a.pool.get()
	if err != nil {
		return Asker{}, err
	}
	defer a.pool.put(r)
	arrives, err := arrival(r, client.Addr().Zone())
	if err != nil {
		return Asker{}, err
	}
	client, server = plain(client), plain(server)
	if !server.Addr().IsValid() || server.Addr().IsUnspecified() {
		server = netip.AddrPortFrom(client.Addr(), server.Port())
	}
	if !client.IsValid() || server.Addr().Is4() != client.Addr().Is4() {
		return Asker{}, fmt.Errorf("with the server at %v: %w", server, unix.EINVAL)
	}
	s, err := lookup(r, network, client, server, arrives)
	if err != nil {
		return Asker{}, err
	}
	if !s.asks(network, client, server) {
		return Asker{}, ErrGone
	}
	return s.asker, nil
}

func plain(p netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}

// arrival returns the index of the interface on which packets between the machine's
// own addresses arrive: of loopback, which is always 1, or else of a zone.
func arrival(r *requester, zone string) (uint32, error) {
	if zone == "" {
		return 1, nil
	}
	name, err := unix.NewIfreq(zone)
	if err == nil {
		err = unix.IoctlIfreq(r.fd, unix.SIOCGIFINDEX, name)
	}
	if err == nil {
		return name.Uint32(), nil
	}
	if index, notNumber := strconv.ParseUint(zone, 10, 31); notNumber == nil {
		return uint32(index), nil
	}
	return 0, fmt.Errorf("zone %q: %w", zone, err)
}
