package main

import "os"

// The garbage collector starts when the heap has doubled, and a small CoreDNS
// has a heap of a few megabytes, which a hundred thousand answers a second double
// many times a second: a twentieth of the time of a cached answer. Memory that is
// never touched costs nothing and lets it start only after as much garbage. See
// docs/performance.md. Whoever has set GOGC or GOMEMLIMIT has decided otherwise.
const headroom = 32 << 20

//lint:ignore U1000 it is there to be there
var ballast []byte

func init() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		ballast = make([]byte, headroom)
	}
}
