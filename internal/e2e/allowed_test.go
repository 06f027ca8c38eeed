package e2e

import "testing"

// What the Corefile allows is open without any DNS, to whom it is allowed.
func TestAllowed(t *testing.T) {
	const everybody, self, behind = "self behind", "self", "behind"
	tests := []struct {
		name    string
		options []string
		open    map[string]string // who may reach the address
	}{
		{"lists for each chain", []string{
			"allowedIPs 198.18.10.0/24 2001:db8:18:10::/64",
			"allowedLocalIPs 198.18.20.0/24",
			"allowedLocalIPs 2001:db8:18:20::/64",
			"allowedGatewayIPs 198.18.30.0/24 2001:db8:18:30::/64",
		}, map[string]string{
			"198.18.10.1": everybody, "2001:db8:18:10::1": everybody,
			"198.18.20.1": self, "2001:db8:18:20::1": self,
			"198.18.30.1": behind, "2001:db8:18:30::1": behind,
			"198.18.40.1": "", "2001:db8:18:40::1": "",
		}},
		{"overlapping and adjacent", []string{
			"allowedIPs 198.18.10.0/24 198.18.10.128/25 198.18.10.7 198.18.10.0/24 198.18.11.0/25 198.18.11.128",
			"allowedIPs 2001:db8:18:10::/64 2001:db8:18:10::8000/113 2001:db8:18:10::7 2001:db8:18:11::",
			"allowedLocalIPs 198.18.10.7 2001:db8:18:10::7",
		}, map[string]string{
			"198.18.9.255": "", "198.18.10.0": everybody, "198.18.10.7": everybody, "198.18.10.255": everybody,
			"198.18.11.0": everybody, "198.18.11.128": everybody, "198.18.11.129": "",
			"2001:db8:18:f:ffff:ffff:ffff:ffff": "", "2001:db8:18:10::7": everybody,
			"2001:db8:18:10:ffff:ffff:ffff:ffff": everybody, "2001:db8:18:11::": everybody, "2001:db8:18:11::1": "",
		}},
		{"all of IPv4", []string{"allowedIPs 0.0.0.0/0"}, map[string]string{
			"198.18.40.1": everybody, "2001:db8:18:40::1": "",
		}},
		{"all of IPv6", []string{"allowedGatewayIPs ::/0"}, map[string]string{
			"198.18.40.1": "", "2001:db8:18:40::1": behind,
		}},
		{"everything", []string{"allowedIPs 0.0.0.0/0 ::/0 198.18.40.0/24"}, map[string]string{
			"198.18.40.1": everybody, "2001:db8:18:40::1": everybody,
		}},
		{"IPv4-mapped", []string{"allowedIPs ::ffff:198.18.10.0/120 ::ffff:198.18.11.1"}, map[string]string{
			"198.18.10.0": everybody, "198.18.10.255": everybody, "198.18.11.1": everybody, "198.18.11.2": "",
			"2001:db8:18:40::1": "",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(corefile(guardBlock("nft-both", tt.options...)))
			var all []attempt
			for addr, who := range tt.open {
				all = append(all,
					attempt{w.self(), addr, who == everybody || who == self},
					attempt{w.behind(), addr, who == everybody || who == behind})
			}
			w.want(all)
		})
	}
}

// An attempt is somebody's connection to an address that should be open, or not.
type attempt struct {
	party
	addr string
	open bool
}

// want checks attempts over TCP and UDP.
func (w *world) want(attempts []attempt) {
	w.Helper()
	together(attempts, func(a attempt) {
		w.Helper()
		for _, network := range networks {
			if a.open {
				w.wantOpen(a.Host, network, a.addr)
			} else {
				w.wantRefused(a.Host, network, a.addr)
			}
		}
	})
}

// Each chain has its hook, whatever stands in the other's list.
func TestAllowedWhereTheModeHasNoChain(t *testing.T) {
	for _, m := range modes {
		if m.self && m.behind {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(corefile(guardBlock(m.name, "allowedLocalIPs 198.18.20.1", "allowedGatewayIPs 198.18.30.1")))
			var all []attempt
			for _, addr := range []string{"198.18.20.1", "198.18.30.1", "198.18.40.1"} {
				all = append(all,
					attempt{w.self(), addr, !m.self || addr == "198.18.20.1"},
					attempt{w.behind(), addr, !m.behind || addr == "198.18.30.1"})
			}
			w.want(all)
		})
	}
}

// With interfaces, what comes in elsewhere is none of the guard's business; without,
// all that is forwarded is.
func TestInterfaces(t *testing.T) {
	const client4, client6 = "192.168.50.2", "fd50::2"
	tests := []struct {
		name            string
		options         []string
		inward, outward bool
	}{
		{"none", nil, false, false},
		{"the network's", []string{"interfaces lan0"}, true, false},
		{"the network's and one that is not there", []string{"interfaces lan0 tun7"}, true, false},
		{"the world's", []string{"interfaces wan0"}, false, true},
		{"both", []string{"interfaces lan0 wan0"}, false, false},
		{"none, the client allowed", []string{"allowedGatewayIPs 192.168.50.0/24 fd50::/64"}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.must(w.client.Echo(echoPort))
			w.start(corefile(guardBlock("nft-gateway", tt.options...)))
			outside := party{Host: w.world}
			w.want([]attempt{
				{outside, client4, tt.inward}, {outside, client6, tt.inward},
				{w.behind(), w.behind().addr4(1), tt.outward}, {w.behind(), w.behind().addr6(1), tt.outward},
				{w.self(), client4, true}, {w.self(), client6, true},
			})
		})
	}
}
