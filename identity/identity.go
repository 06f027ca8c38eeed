// Package identity tells who asked: which addresses are this machine's own, and
// which link-layer address a machine on the network has.
//
// Everything is about the network namespace in which Watch was called.
package identity

import "errors"

var (
	// ErrFull means that there are more addresses than are kept. Those above are
	// not known to Own and Link; Find asks the kernel for them each time.
	ErrFull = errors.New("too many addresses")
	// ErrOverrun means that the kernel had more to tell than was read in time.
	// Everything has been or is being read anew, so nothing stays lost.
	ErrOverrun = errors.New("the kernel's messages overran")
)
