package e2e

import (
	"strings"
	"testing"
)

// What was denied before a restart is listed after it, and logged only when it goes on.
func TestDeniedBeforeARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	file := corefile(guardBlock("nft-both", option))
	c := w.start(file)
	old, news := w.self().addr4(1), w.self().addr4(2)
	line := func(c *coredns, addr string) int {
		return strings.Count(c.Output(), "protocol=udp address="+addr+" port=7 ")
	}
	_ = w.connect(w.guard, "udp", old)
	w.eventually("it is logged", func() bool { return line(c, old) == 1 })
	w.must(c.Stop())
	c = w.start(file)
	w.denied(path, old, echoPort, "output")
	_ = w.connect(w.guard, "udp", news)
	w.eventually("what is new is logged", func() bool { return line(c, news) == 1 })
	w.denied(path, news, echoPort, "output") // the lists have been read
	if n := line(c, old); n > 0 {
		t.Errorf("what was denied before the restart is logged again, %d times", n)
	}
	_ = w.connect(w.guard, "udp", old)
	w.eventually("it goes on, and is logged", func() bool { return line(c, old) == 1 })
}
