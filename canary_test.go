package ipdestinationguard

import (
	"testing"

	"github.com/miekg/dns"
)

func TestCanary(t *testing.T) {
	const on, off = "ipdestinationguard nft-local", "ipdestinationguard nft-local {\ncanary off\n}"
	tests := []struct {
		name, directive, question string
		want                      int // RCODE, or -1: the next plugin is asked
	}{
		{"Firefox", on, "use-application-dns.net. A", dns.RcodeNameError},
		{"in any case", on, "USE-Application-dns.NET. AAAA", dns.RcodeNameError},
		{"of any type", on, "use-application-dns.net. SOA", dns.RcodeNameError},
		{"below it", on, "www.use-application-dns.net. A", -1},
		{"alike", on, "xuse-application-dns.net. A", -1},
		{"designated resolvers", on, "_dns.resolver.arpa. SVCB", dns.RcodeSuccess},
		{"in any case", on, "_DNS.Resolver.ARPA. A", dns.RcodeSuccess},
		{"below it", on, "_8443._dns.resolver.arpa. SVCB", dns.RcodeSuccess},
		{"above it", on, "resolver.arpa. SVCB", -1},
		{"alike", on, "x_dns.resolver.arpa. SVCB", -1},
		{"a dot in the label before", on, `x\._dns.resolver.arpa. SVCB`, -1},
		{"another", on, "a.test. A", -1},
		{"off", off, "use-application-dns.net. A", -1},
		{"off", off, "_dns.resolver.arpa. SVCB", -1},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.question, func(t *testing.T) {
			c := newRig(t, tt.directive).client()
			req := request(t, tt.question)
			rcode, err := c.serve(req, answering(t, ""))
			if err != nil || c.messages != 1 {
				t.Fatalf("%d answers, %v", c.messages, err)
			}
			got := -1
			if c.Msg.RecursionAvailable { // as the next plugin does not say
				got = c.Msg.Rcode
			}
			if got != tt.want || got >= 0 && rcode != got || len(c.Msg.Answer)+len(c.Msg.Ns) > 0 || c.Msg.Id != req.Id || !c.Msg.Response {
				t.Errorf("%d, got\n%v", rcode, c.Msg)
			}
		})
	}
}

// An update of the zone is none of our business.
func TestCanaryIsForQuestions(t *testing.T) {
	c := newRig(t, "ipdestinationguard nft-local").client()
	_, _ = c.serve(new(dns.Msg).SetUpdate(canaryName), answering(t, ""))
	if c.messages != 1 || c.Rcode != dns.RcodeSuccess {
		t.Errorf("got\n%v", c.Msg)
	}
}
