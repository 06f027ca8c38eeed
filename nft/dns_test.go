package nft

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// The resolver above is open to the one program, on its ports, and to nobody else.
func TestUpstreamIsForOneProgram(t *testing.T) {
	for name, tt := range map[string]func(*network) (self backend.Program, is, isNot []speaker){
		"user": func(n *network) (backend.Program, []speaker, []speaker) {
			return backend.Program{User: 1000}, []speaker{n.as(1000)}, []speaker{n.as(1001), n.here}
		},
		"root": func(n *network) (backend.Program, []speaker, []speaker) {
			return backend.Program{User: 0}, []speaker{n.here}, []speaker{n.as(1001)}
		},
		"cgroup": func(n *network) (backend.Program, []speaker, []speaker) {
			u, worker := n.unit("coredns"), n.unit("coredns/worker")
			return backend.Program{Cgroup: u.Cgroup, User: 1000}, []speaker{n.as(0, u), n.as(1001, worker)}, []speaker{n.as(1000), n.here}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			r := worldRules(t)
			for _, port := range []int{53, 853} {
				r.Upstream = append(r.Upstream, upstreams(t, to(1, port)...)...)
			}
			self, is, isNot := tt(n)
			r.Self = self
			n.guard(r)
			n.open(time.Hour, 1, backend.Scope{Holder: backend.Machine}) // its own name is no way in
			for _, p := range is {
				n.reaches(p, true, "tcp", append(to(1, 53), to(1, 853)...)...)
				n.reaches(p, true, "udp", append(to(1, 53), to(1, 853)...)...)
				n.reaches(p, false, "tcp", to(2, 53)...)
			}
			for _, p := range append(isNot, n.client) {
				n.reaches(p, false, "tcp", append(to(1, 53), to(1, 853)...)...)
				n.reaches(p, false, "udp", to(1, 53)...)
			}
		})
	}
}

// Plain DNS of guarded clients arrives here, whomever they ask, and seems to be
// answered by whom they asked. What is for this machine arrives as ever, and what is
// not plain DNS of a guarded client is left alone.
func TestCapture(t *testing.T) {
	for _, tt := range []struct {
		port       uint16
		interfaces []string
	}{{53, nil}, {53, []string{"lan0", "lo"}}, {5353, nil}, {5353, []string{"lan0"}}} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			r := worldRules(t)
			r.Capture, r.Interfaces = tt.port, tt.interfaces
			n := newNetwork(t, 443, 853) // nobody listens at 53 there
			n.guard(r)
			n.reaches(n.client, false, "udp", to(1, 53)...)
			for _, a := range []string{"10.0.0.77/24", "fd00::77/64"} { // of the same wire, and not the first
				if err := n.here.Addr("lan0", a); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.here.Echo(int(tt.port)); err != nil {
				t.Fatal(err)
			}
			far := append(to(1, 53), to(2, 53)...)
			var own []string
			for _, addr := range []string{gateway4, gateway6, "10.0.0.77", "fd00::77", "192.0.2.1", "2001:db8::1"} {
				own = append(own, net.JoinHostPort(addr, "53"))
			}
			for _, network := range []string{"tcp", "udp"} {
				n.reaches(n.client, true, network, far...)
				n.reaches(n.client, true, network, append(own, n.linkLocal()+":53")...)
				n.reaches(n.other, tt.interfaces == nil, network, far...)
				n.reaches(n.here, false, network, far...)
				n.reaches(n.here, tt.port == 53, network, append(own, "127.0.0.1:53", "[::1]:53")...)
			}
			n.reaches(n.client, false, "tcp", append(to(1, 443), to(1, 853)...)...)

			// The end of it: those that ask here are heard, and nobody else.
			r.Capture = 0
			if err := n.Open(r); err != nil {
				t.Fatal(err)
			}
			n.reaches(n.client, false, "udp", far...)
			n.reaches(n.client, tt.port == 53, "udp", own...)
		})
	}
}

// linkLocal is the address of this machine that the client's router advertisements
// would name.
func (n *network) linkLocal() string {
	n.Helper()
	i, err := net.InterfaceByName("lan0")
	if err != nil {
		n.Fatal(err)
	}
	all, err := i.Addrs()
	if err != nil {
		n.Fatal(err)
	}
	var at int
	if err := n.client.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		at = i.Index
		return err
	}); err != nil {
		n.Fatal(err)
	}
	for _, a := range all {
		if ip := a.(*net.IPNet).IP; ip.IsLinkLocalUnicast() {
			return fmt.Sprintf("[%v%%%d]", ip, at)
		}
	}
	n.Fatal("no link-local address")
	return ""
}
