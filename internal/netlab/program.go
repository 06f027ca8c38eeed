package netlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// programEnv makes a test binary a program of a host: see Main.
const programEnv = "NETLAB_PROGRAM"

// Program is a process on a host that opens sockets when it is told to, as a user and in a cgroup of
// its own perhaps. It hands them over: the kernel goes on to know them as that program's.
type Program struct {
	host    *Host
	cmd     *Cmd
	control *net.UnixConn
}

// order is what a program is told. A socket for the reply goes with it.
type order struct {
	Listen           bool
	Network, Address string
	Source           string        // of a dial; empty is any
	Within           time.Duration // 0 is without end
}

// reply is how it went. The socket goes with it, unless it failed.
type reply struct {
	Errno   syscall.Errno
	Timeout bool
	Error   string
}

// Program starts a program on the host, which ends with the host. It works in tests with a TestMain
// that calls [Main].
func (h *Host) Program(as As) (*Program, error) {
	ends, err := socketPair()
	if err != nil {
		return nil, h.fail("program", err)
	}
	defer ends[1].Close()
	control, err := unixConn(ends[0])
	if err != nil {
		return nil, h.fail("program", err)
	}
	p := &Program{host: h, cmd: h.Command("/proc/self/exe"), control: control}
	// The race detector's runtime would sleep a second before it exits.
	p.cmd.As, p.cmd.Env = as, append(os.Environ(), programEnv+"=yes", "GORACE=atexit_sleep_ms=0")
	p.cmd.exec.ExtraFiles = []*os.File{ends[1]} // descriptor 3
	err = p.cmd.Start()
	if err == nil {
		if err = h.keep(p); err == nil {
			return p, nil
		}
	}
	return nil, errors.Join(h.fail("program", err), p.Close())
}

// Name says which program it is.
func (p *Program) Name() string { return p.host.Name() + p.cmd.As.String() }

// As returns as what it runs.
func (p *Program) As() As { return p.cmd.As }

// Close ends the program. Its sockets stay what they are: whoever has got them closes them.
func (p *Program) Close() error {
	p.host.drop(p)
	err := p.control.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if p.cmd.done != nil {
		err = errors.Join(err, p.cmd.Wait())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return nil // the cgroup was closed, or the host
	}
	if err != nil {
		err = fmt.Errorf("%w; it wrote %q", err, p.cmd.Output())
	}
	return p.host.fail("program", err)
}

// Dial is [Host.Dial] by the program.
func (p *Program) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return p.DialFrom(ctx, network, "", address)
}

// DialFrom is Dial from a source, "192.0.2.1:1024" or ":1024".
func (p *Program) DialFrom(ctx context.Context, network, source, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, p.host.fail("dial", err)
	}
	o := order{Network: network, Source: source, Address: address}
	if deadline, ok := ctx.Deadline(); ok {
		o.Within = max(time.Until(deadline), 1)
	}
	socket, err := p.tell(ctx, o)
	if err != nil {
		return nil, p.host.fail("dial", err)
	}
	defer socket.Close()
	conn, err := net.FileConn(socket)
	return conn, p.host.fail("dial", err)
}

// ListenPacket is [Host.ListenPacket] by the program.
func (p *Program) ListenPacket(network, address string) (net.PacketConn, error) {
	socket, err := p.tell(context.Background(), order{Listen: true, Network: network, Address: address})
	if err != nil {
		return nil, p.host.fail("listen", err)
	}
	defer socket.Close()
	conn, err := net.FilePacketConn(socket)
	return conn, p.host.fail("listen", err)
}

// tell has the program make a socket. Each order has a socket of its own for the reply, so that many
// may wait at once.
func (p *Program) tell(ctx context.Context, o order) (socket *os.File, err error) {
	ends, err := socketPair()
	if err != nil {
		return nil, err
	}
	mine, err := unixConn(ends[0])
	if err != nil {
		ends[1].Close()
		return nil, err
	}
	defer mine.Close()
	stop := context.AfterFunc(ctx, func() { _ = mine.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	text, err := json.Marshal(o)
	if err == nil {
		_, _, err = p.control.WriteMsgUnix(text, unix.UnixRights(int(ends[1].Fd())), nil)
	}
	ends[1].Close()
	if err != nil {
		return nil, err
	}
	var r reply
	if socket, err = receive(mine, &r); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("no reply: %w; it wrote %q", err, p.cmd.Output())
	}
	return socket, r.err()
}

// err is the error that the program had, as far as callers look at it.
func (r *reply) err() error {
	switch {
	case r.Errno != 0:
		return fmt.Errorf("%s: %w", r.Error, r.Errno)
	case r.Timeout:
		return fmt.Errorf("%s: %w", r.Error, os.ErrDeadlineExceeded)
	case r.Error != "":
		return errors.New(r.Error)
	}
	return nil
}

// beProgram is the program's main.
func beProgram() int {
	control, err := unixConn(os.NewFile(3, "control"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var o order
		answerTo, err := receive(control, &o)
		if err != nil || answerTo == nil {
			return 0 // we are no longer wanted
		}
		go func() {
			if conn, err := unixConn(answerTo); err == nil {
				o.obey(conn)
				conn.Close()
			}
		}()
	}
}

// obey carries out an order and replies.
func (o order) obey(answerTo *net.UnixConn) {
	var socket interface {
		syscall.Conn
		Close() error
	}
	var err error
	if o.Listen {
		var conn net.PacketConn
		if conn, err = net.ListenPacket(o.Network, o.Address); err == nil {
			socket = conn.(*net.UDPConn)
		}
	} else {
		var conn net.Conn
		dialer := net.Dialer{KeepAlive: -1, Timeout: o.Within}
		switch strings.TrimRight(o.Network, "46") {
		case "tcp":
			dialer.LocalAddr, err = net.ResolveTCPAddr(o.Network, o.Source)
		case "udp":
			dialer.LocalAddr, err = net.ResolveUDPAddr(o.Network, o.Source)
		}
		if err == nil {
			conn, err = dialer.Dial(o.Network, o.Address)
		}
		if err == nil {
			socket, _ = conn.(interface {
				syscall.Conn
				Close() error
			})
		}
	}
	var r reply
	if err != nil {
		var timeout net.Error
		r.Timeout = errors.As(err, &timeout) && timeout.Timeout()
		_ = errors.As(err, &r.Errno)
		r.Error = err.Error()
	}
	text, _ := json.Marshal(r) // fails on none of these
	if socket == nil {
		_, _, _ = answerTo.WriteMsgUnix(text, nil, nil) // nobody waits any more
		return
	}
	defer socket.Close()
	if raw, err := socket.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _, _ = answerTo.WriteMsgUnix(text, unix.UnixRights(int(fd)), nil) })
	}
}

// receive reads one message, and the descriptor that goes with it, if any.
func receive(from *net.UnixConn, message any) (*os.File, error) {
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := from.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, err
	}
	var file *os.File
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			file = os.NewFile(uintptr(fds[0]), "passed")
		}
	}
	if err := json.Unmarshal(text[:n], message); err != nil { // an empty message is the end
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	return file, nil
}

// socketPair makes two ends over which messages and descriptors go.
func socketPair() (ends [2]*os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ends, err
	}
	return [2]*os.File{os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")}, nil
}

// unixConn takes the file over.
func unixConn(file *os.File) (*net.UnixConn, error) {
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
