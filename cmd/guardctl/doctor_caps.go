package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities looks what the process at the admin socket may do.
func (d *doctor) capabilities() {
	pid, err := listenerOf(d.socket)
	if err != nil {
		d.say(unknown, "see what is said of the guard", "who listens at %s is not known: %v", d.socket, err)
		return
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		d.say(unknown, "be root", "process %d cannot be looked at: %v", pid, err)
		return
	}
	d.judgeCapabilities(pid, string(text))
}

func (d *doctor) judgeCapabilities(pid int32, status string) {
	const need = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE
	_, rest, _ := strings.Cut(status, "\nCapEff:")
	word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(word), 16, 64)
	switch {
	case err != nil:
		d.say(unknown, fmt.Sprintf("look at CapEff in /proc/%d/status", pid), "what process %d may do is not known", pid)
	case have&(1<<unix.CAP_NET_ADMIN) == 0:
		d.say(failure, "run CoreDNS as deployment/ipdestinationguard-coredns.service does; in a container with --cap-add NET_ADMIN", "CoreDNS (process %d) has no CAP_NET_ADMIN: it cannot change the firewall", pid)
	case have&^need != 0:
		d.say(warning, "run CoreDNS as deployment/ipdestinationguard-coredns.service does", "CoreDNS (process %d) may do more than it needs, which is CAP_NET_ADMIN and CAP_NET_BIND_SERVICE", pid)
	default:
		d.say(fine, "", "CoreDNS (process %d) has what it needs, and no more", pid)
	}
}

// listenerOf is the process that listens at a socket.
func listenerOf(path string) (pid int32, err error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	if err2 := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	}); err2 != nil {
		err = err2
	}
	return pid, err
}
