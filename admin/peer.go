package admin

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, as it was when it connected.
type peer struct {
	pid    int32
	uid    uint32
	groups []uint32
}

func (p peer) String() string { return fmt.Sprintf("process %d of user %d", p.pid, p.uid) }

// peerOf asks the kernel who has connected.
func peerOf(conn *net.UnixConn) (p peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return p, err
	}
	if err2 := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		p = peer{cred.Pid, cred.Uid, append(groupsOf(fd), cred.Gid)}
	}); err2 != nil {
		err = err2
	}
	return p, err
}

// peers are connections of which it is known who has made them. There are no more of them
// than places.
type peers struct {
	*net.UnixListener
	places chan struct{}
}

// peerConn is one of them.
type peerConn struct {
	net.Conn
	peer   peer
	err    error // why it is not known
	leaves func()
}

// Accept implements [net.Listener].
func (l *peers) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	l.places <- struct{}{} // the kernel keeps a few more waiting
	c := &peerConn{Conn: conn, leaves: sync.OnceFunc(func() { <-l.places })}
	c.peer, c.err = peerOf(conn)
	return c, nil
}

// Close implements [net.Conn].
func (c *peerConn) Close() error {
	defer c.leaves()
	return c.Conn.Close()
}

// groupsOf are the supplementary groups (SO_PEERGROUPS, Linux 4.13), or none if the
// kernel does not say.
func groupsOf(fd uintptr) []uint32 {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > len(groups)*4: // it says how much it has
			groups = make([]uint32, size/4)
		case errno != 0:
			return nil
		default:
			return groups[:size/4]
		}
	}
}

// members are those who may use the socket.
type members struct {
	own   uint32
	group uint32
	named bool // there is such a group
}

// theMembers are root, this process's own user, and the group if there is one.
func theMembers() members {
	m := members{own: uint32(os.Geteuid())}
	if g, err := user.LookupGroup(Group); err == nil {
		if gid, err := strconv.ParseUint(g.Gid, 10, 32); err == nil {
			m.group, m.named = uint32(gid), true
		}
	}
	return m
}

func (m members) may(p peer) bool {
	return p.uid == 0 || p.uid == m.own || m.named && slices.Contains(p.groups, m.group)
}
