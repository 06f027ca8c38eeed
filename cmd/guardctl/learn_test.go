package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

func TestLearnedBlock(t *testing.T) {
	answers := admin.Answers{Answers: []admin.Answer{
		{Name: "www.example.com"},
		{Name: "www.example.com", Stripped: "loopback", Line: "private www.example.com 127.0.0.1"},
		{Name: "www.example.com", Address: netip.MustParseAddr("10.0.0.9"), Stripped: "private-use", Line: "private www.example.com 10.0.0.9"}, // has been used
		{Name: `a\010b`, Stripped: "private-use", Line: `private a\010b 10.0.0.9`},
		{Name: "www.example.com", For: "another", Stripped: "loopback", Line: "private www.example.com 127.0.0.1"},
		{Name: "www.example.com", Stripped: "an address of a route's pool"},
	}}
	denied := admin.DeniedList{Flows: []admin.Denied{
		{Reason: "never_resolved", Address: netip.MustParseAddr("192.0.2.7"), User: "root", Protocol: "tcp", Port: 443, Packets: 1},
		{Reason: "stripped", Name: "www.example.com", Address: netip.MustParseAddr("10.0.0.9"), User: "root", Protocol: "tcp", Port: 443, Packets: 1},
		{Reason: "never_resolved", Address: netip.MustParseAddr("192.0.2.8"), User: "root", Protocol: "tcp", Port: 443, Packets: 2},
	}}
	short := admin.Directive{Place: "Corefile:3", Lines: []string{"ipdestinationguard nft-local 192.0.2.1"}}
	long := admin.Directive{Place: "Corefile:9", Lines: []string{"ipdestinationguard {", "    mode nft-local", "    names **.example.com", "    allowedLocalIPs 192.0.2.8", "}"}}
	const names = `    # Names that were asked for. Answers for others open nothing; without these lines, any do.
    names www.example.com
`
	const allowed = `    # Used by this machine, and no answer had them.
    allowedLocalIPs 192.0.2.7 # tcp/443, by user root, 1 packet
`
	const another = "    allowedLocalIPs 192.0.2.8 # tcp/443, by user root, 2 packets\n"
	const stripped = `    # Taken out of answers, and used. Let only names have them that are yours.
    private www.example.com 10.0.0.9 # tcp/443, by user root, 1 packet
    # Taken out of answers, so nobody could use it. Take the # from lines for names that are yours.
    # private www.example.com 127.0.0.1
    # Left out: 1 name with unusual characters. guardctl learn --json has them.
}
`
	for _, tt := range []struct {
		name   string
		blocks []admin.Directive
		want   string
	}{
		{"none", nil, "ipdestinationguard {\n    mode nft-local\n" + names + allowed + another + stripped},
		{"of one line", []admin.Directive{short}, "ipdestinationguard nft-local 192.0.2.1 {\n" + names + allowed + another + stripped},
		{"with some of it", []admin.Directive{long}, "ipdestinationguard {\n    mode nft-local\n    names **.example.com\n    allowedLocalIPs 192.0.2.8\n" + allowed + stripped},
		{"with all of it", []admin.Directive{{Lines: slices.Insert(slices.Clone(long.Lines), 4, "    allowedLocalIPs 192.0.2.7")}},
			"ipdestinationguard {\n    mode nft-local\n    names **.example.com\n    allowedLocalIPs 192.0.2.8\n    allowedLocalIPs 192.0.2.7\n" + stripped},
		{"with what was taken out", []admin.Directive{{Lines: slices.Insert(slices.Clone(long.Lines), 4, "    private www.example.com 127.0.0.1")}},
			"ipdestinationguard {\n    mode nft-local\n    names **.example.com\n    allowedLocalIPs 192.0.2.8\n    private www.example.com 127.0.0.1\n" + allowed +
				strings.Replace(strings.Replace(stripped, "    # private www.example.com 127.0.0.1\n", "", 1), "    # Taken out of answers, so nobody could use it. Take the # from lines for names that are yours.\n", "", 1)},
		{"two", []admin.Directive{short, long}, "# The Corefile has 2 of these blocks. This is the one of Corefile:3; what is added to it was seen by any.\n" +
			"ipdestinationguard nft-local 192.0.2.1 {\n" + names + allowed + another + stripped},
	} {
		var out strings.Builder
		learn("nft-local", admin.Directives{Directives: tt.blocks}, answers, denied).write(&out, false)
		if out.String() != tt.want {
			t.Errorf("%s: got\n%swant\n%s", tt.name, &out, tt.want)
		}
	}
}
