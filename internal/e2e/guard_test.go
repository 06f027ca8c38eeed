package e2e

import "testing"

// The heart of it: refused, resolved, open.
func TestAnswersOpenTheFirewall(t *testing.T) {
	w := newWorld(t)
	w.start(corefile("ipdestinationguard nft-local " + resolver4))
	for _, addr := range []string{"198.18.1.1", "2001:db8:18::1:1"} {
		w.wantRefused(w.guard, "tcp", addr)
		w.lookup(w.guard, "127.0.0.1", addr, 60)
		w.wantOpen(w.guard, "tcp", addr)
		w.wantOpen(w.guard, "udp", addr)
	}
}
