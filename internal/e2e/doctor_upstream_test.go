package e2e

import (
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/miekg/dns"
)

// Upstream is asked by CoreDNS itself, past what would hide how it is.
func TestDoctorOfUpstream(t *testing.T) {
	const (
		plain = "ipdestinationguard nft-both {\n allowedLocalIPs 192.0.2.2\n ADMIN\n}\n"
		dead  = "192.0.2.99" // the guard refuses it
	)
	for _, tt := range []struct {
		name     string
		corefile string
		breaks   func(*patient)
		want     []string
	}{
		{name: "dead, and all is in the cache", corefile: ". {\n" + plain + "cache\nforward . 192.0.2.2\n}",
			breaks: func(p *patient) {
				ask := func() {
					if m, err := p.ask(p.guard, "127.0.0.1", ".", dns.TypeNS); err != nil || m.Rcode != dns.RcodeSuccess {
						p.Fatalf("it is not in the cache: %v, %v", m, err)
					}
				}
				ask()
				p.foreign(p.world.world, nftables.TableFamilyINet, nftables.ChainHookInput, nftables.ChainPolicyDrop)
				ask()
			}, want: []string{"failure: upstream: forward . 192.0.2.2 ("}},
		{name: "that only CoreDNS may ask", corefile: ". {\nipdestinationguard nft-both {\n upstream 192.0.2.2\n ADMIN\n}\nforward . 192.0.2.2\n}"},
		{name: "for names that are asked for by nobody", corefile: ". {\nipdestinationguard nft-both {\n allowedLocalIPs 192.0.2.2\n names a.test\n others refuse\n ADMIN\n}\nforward . 192.0.2.2\n}"},
		{name: "of one zone", corefile: ". {\n" + plain + "forward . 192.0.2.2\n}\ncorp.test {\nipdestinationguard\nforward a.corp.test 192.0.2.2\nforward corp.test " + dead + "\n}",
			want: []string{"failure: upstream: forward corp.test " + dead + " ("}},
		{name: "behind another server block", corefile: ". {\n" + plain + "forward . 127.0.0.1:5301\n}\n.:5301 {\nbind 127.0.0.1\ncache\nforward . " + dead + "\n}",
			want: []string{"failure: upstream: forward . 127.0.0.1:5301 (...: it answers SERVFAIL"}},
		{name: "that refuses", corefile: ". {\n" + plain + "forward . 127.0.0.1:5301\n}\na.test:5301 {\nbind 127.0.0.1\nwhoami\n}",
			want: []string{"warning: upstream: forward . 127.0.0.1:5301 (...: it answers REFUSED"}},
		{name: "there is none", corefile: ". {\n" + plain + "whoami\n}"},

		{name: "a gateway that answers clients only", corefile: ". {\nbind lan0\nipdestinationguard nft-gateway {\n ADMIN\n}\nforward . 192.0.2.2\n}"},
		{name: "this machine's programs ask where nobody listens", corefile: ". {\nbind lan0\n" + plain + "forward . 192.0.2.2\n}",
			want: []string{"failure: answers: programs ask 127.0.0.1:53, and nobody answers there: "}},
		{name: "this machine's programs ask somebody else", corefile: ". {\nbind lan0\n" + plain + "forward . 192.0.2.2\n}\n.:53 {\nbind 127.0.0.1\nforward . 192.0.2.2\n}",
			want: []string{"warning: answers: programs ask 127.0.0.1:53, where no server block with ipdestinationguard listens"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			var option string
			p.socket, option = p.world.socket()
			p.coredns = p.startAs(p.asCoreDNS(), withExamples(strings.Replace(tt.corefile, "ADMIN", option, 1))+"\n")
			if tt.breaks != nil {
				tt.breaks(p)
			}
			p.wantFound(tt.want...)
		})
	}
}
