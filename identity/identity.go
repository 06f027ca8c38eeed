// Package identity tells who asked: the link-layer address of a machine on the
// network, or the user and the cgroup of a program on this machine.
//
// A [Watcher] knows the machine's own addresses and its neighbours. [Askers] find
// the program behind a query that came from one of the machine's own addresses,
// and the systemd unit or container that the program is part of; [Self] is this
// process. [Units] are units that people name, of which the kernel makes new ones.
//
// What is about addresses and sockets is about the network namespace in which Watch
// or NewAskers was called.
package identity

import "errors"

var (
	// ErrGone means that what was asked for exists no more: the socket that sent
	// a query, or a cgroup. Nothing may be granted.
	ErrGone = errors.New("gone")
	// ErrUnsupported means that the kernel, or how it is set up, cannot tell.
	ErrUnsupported = errors.New("not supported here")
	// ErrLate means that a cgroup was not found in time, because many are searched.
	// Nothing may be granted; another try may find it.
	ErrLate = errors.New("the search took too long")
	// ErrFull means that there are more addresses than are kept. Those above are
	// not known to Own; Find asks the kernel for them each second.
	ErrFull = errors.New("too many addresses")
	// ErrOverrun means that the kernel had more to tell than was read in time.
	// Everything has been or is being read anew, so nothing stays lost.
	ErrOverrun = errors.New("the kernel's messages overran")
)
