package nft

import (
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// Names get through by their mapped addresses, each with the egress of its route, though
// they have the same real one.
func TestRouted(t *testing.T) {
	n := routedNetwork(t)
	n.guard(routedRules(t))
	defer n.dump()
	n.mapTo("one", 1, 1)
	n.mapTo("two", 2, 1)
	n.mapTo("masked", 3, 1)
	n.mapTo("open", 4, 1)
	n.mapTo("one", 5, 2)
	for name, s := range n.senders() {
		t.Run(name, func(t *testing.T) {
			for number := 1; number <= 5; number++ {
				n.refused(s, toMapped(number, whoPort)...)
				n.openMapped(number, s.holder)
			}
			n.seen(s, 1, 1, egressOne4, egressOne6)
			n.seen(s, 2, 1, egressTwo4, egressTwo6)
			n.seen(s, 3, 1, from4, from6)
			n.seen(s, 4, 1, s.as[:]...)
			n.seen(s, 5, 2, egressOne4, egressOne6)
			for _, network := range []string{"tcp", "udp"} {
				n.reaches(s, true, network, toMapped(1, 443)...)
				n.reaches(s, true, network, toMapped(2, 443)...)
			}

			n.unreached(s, to(1, whoPort)...)       // the real address has no grant
			n.refused(s, toMapped(100, whoPort)...) // no name has this one
			n.openMapped(100, s.holder)             // nor with a grant
			n.refused(s, toMapped(100, whoPort)...)
			n.unreached(s, toMapped(1, 53)...) // another resolver
		})
	}
	n.refused(n.other, toMapped(1, whoPort)...) // another client
	n.openMapped(1, backend.ClientScope(addresses(other4)[0]))
	n.refused(n.other, toMapped(2, whoPort)...)
}
