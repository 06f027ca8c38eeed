package main

// The runtime starts goroutines with the stack that the average goroutine used
// when the garbage collector last looked, and a server that mostly waits has an
// average of next to nothing. So every UDP query, a goroutine of its own, would
// begin with 2 KiB and copy its stack twice on the way down the plugin chain:
// a fifth of the time of a cached answer. A few goroutines that wait with as
// much stack in use as a query needs lift the average. See docs/performance.md.
const (
	standIns   = 64
	queryStack = 16 << 10
)

func init() {
	for range standIns {
		go standIn(queryStack / 1024)
	}
}

// standIn waits for ever with depth KiB of stack in use.
//
//go:noinline
func standIn(depth int) byte {
	var frame [1000]byte
	if depth > 0 {
		return standIn(depth-1) + frame[depth]
	}
	select {}
}
