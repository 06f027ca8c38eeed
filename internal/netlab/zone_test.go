package netlab

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestZone(t *testing.T) {
	client, _, server := newRouted(t, newLab(t))
	must(t, server.ServeDNS(53, Zone()))
	tests := []struct {
		name, qtype, rcode string
		want               []string // the answer, or else the SOA beside none
	}{
		{"a-198-18-1-2.ttl-3.test.", "A", "NOERROR", []string{"a-198-18-1-2.ttl-3.test. 3 IN A 198.18.1.2"}},
		{"A-198-18-1-2.Test.", "A", "NOERROR", []string{"A-198-18-1-2.Test. 60 IN A 198.18.1.2"}},
		{"aaaa-2001-db8--1.ttl-3.test.", "AAAA", "NOERROR", []string{"aaaa-2001-db8--1.ttl-3.test. 3 IN AAAA 2001:db8::1"}},
		{"aaaa-2001-db8--.test.", "AAAA", "NOERROR", []string{"aaaa-2001-db8--.test. 60 IN AAAA 2001:db8::"}},
		{"a-192-0-2-1.a-192-0-2-2.aaaa---1.ttl-5.test.", "A", "NOERROR", []string{
			"a-192-0-2-1.a-192-0-2-2.aaaa---1.ttl-5.test. 5 IN A 192.0.2.1",
			"a-192-0-2-1.a-192-0-2-2.aaaa---1.ttl-5.test. 5 IN A 192.0.2.2",
		}},
		{"a-192-0-2-1.aaaa---1.test.", "AAAA", "NOERROR", []string{"a-192-0-2-1.aaaa---1.test. 60 IN AAAA ::1"}},
		{"a-192-0-2-1.ttl-7.test.", "AAAA", "NOERROR", []string{"test. 7 IN SOA test. test. 1 3600 600 86400 7"}},
		{"a-192-0-2-1.test.", "HTTPS", "NOERROR", []string{"test. 60 IN SOA test. test. 1 3600 600 86400 60"}},
		{"a-team.aaaa-1.ttl-x.test.", "A", "NOERROR", []string{"test. 60 IN SOA test. test. 1 3600 600 86400 60"}},
		{".", "NS", "NOERROR", []string{". 60 IN SOA . . 1 3600 600 86400 60"}},
		{"nx.ttl-2.test.", "A", "NXDOMAIN", []string{"test. 2 IN SOA test. test. 1 3600 600 86400 2"}},
		{"www.ttl-9.cname-1.a-192-0-2-1.test.", "A", "NOERROR", []string{
			"www.ttl-9.cname-1.a-192-0-2-1.test. 9 IN CNAME a-192-0-2-1.test.",
			"a-192-0-2-1.test. 60 IN A 192.0.2.1",
		}},
		{"cname-1.cname-2.a-192-0-2-1.ttl-4.test.", "A", "NOERROR", []string{
			"cname-1.cname-2.a-192-0-2-1.ttl-4.test. 4 IN CNAME cname-2.a-192-0-2-1.ttl-4.test.",
			"cname-2.a-192-0-2-1.ttl-4.test. 4 IN CNAME a-192-0-2-1.ttl-4.test.",
			"a-192-0-2-1.ttl-4.test. 4 IN A 192.0.2.1",
		}},
		{"cname-1.a-192-0-2-1.test.", "CNAME", "NOERROR", []string{"cname-1.a-192-0-2-1.test. 60 IN CNAME a-192-0-2-1.test."}},
		{"cname-1.a-192-0-2-1.test.", "AAAA", "NOERROR", []string{
			"cname-1.a-192-0-2-1.test. 60 IN CNAME a-192-0-2-1.test.",
			"test. 60 IN SOA test. test. 1 3600 600 86400 60",
		}},
		{"cname-1.nx.test.", "A", "NXDOMAIN", []string{
			"cname-1.nx.test. 60 IN CNAME nx.test.",
			"test. 60 IN SOA test. test. 1 3600 600 86400 60",
		}},
	}
	for i, tt := range tests {
		network := []string{"udp", "tcp"}[i%2]
		address := []string{"198.18.53.53:53", "[2001:db8:f::53]:53"}[i/2%2]
		t.Run(tt.name+" "+tt.qtype, func(t *testing.T) {
			reply := ask(t, client, network, address, tt.name, tt.qtype)
			var got []string
			for _, rr := range append(reply.Answer, reply.Ns...) {
				got = append(got, strings.ReplaceAll(rr.String(), "\t", " "))
			}
			if !reply.Authoritative || dns.RcodeToString[reply.Rcode] != tt.rcode || strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got %v\nwant %s and\n%s", reply, tt.rcode, strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestZoneTruncates(t *testing.T) {
	client, _, server := newRouted(t, newLab(t))
	must(t, server.ServeDNS(53, Zone()))
	const records = 24
	name := strings.Repeat("a-1-1-1-1.", records) + "test."
	for network, truncated := range map[string]bool{"udp": true, "tcp": false} {
		reply := ask(t, client, network, "198.18.0.53:53", name, "A")
		if reply.Truncated != truncated || (len(reply.Answer) == records) == truncated {
			t.Errorf("over %s: truncated is %v, with %d records", network, reply.Truncated, len(reply.Answer))
		}
	}
}

func ask(t *testing.T, from *Host, network, address, name, qtype string) *dns.Msg {
	t.Helper()
	conn, err := from.Dial(t.Context(), network, address)
	must(t, err)
	defer conn.Close()
	query := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	client := dns.Client{Net: network}
	reply, _, err := client.ExchangeWithConnContext(t.Context(), query, &dns.Conn{Conn: conn})
	must(t, err)
	return reply
}
