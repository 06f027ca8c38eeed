package ipdestinationguard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// Only the names of a block open their addresses; others pass, or are refused.
func TestNames(t *testing.T) {
	list := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(list, []byte("# ours\n**.corp.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	block := func(lines ...string) string {
		return "ipdestinationguard {\nmode nft-local\n" + strings.Join(lines, "\n") + "\n}"
	}
	const opened, passed, refused = "opened", "passed", "refused"
	for _, tt := range []struct{ name, directive, question, want string }{
		{"no list", block(), "a.test. A", opened},
		{"in the list", block("names *.test"), "a.test. A", opened},
		{"in any case", block("names *.test"), "A.TEST. A", opened},
		{"on another line", block("names b.test", "names *.test"), "a.test. A", opened},
		{"not in the list", block("names *.test"), "a.b.test. A", passed},
		{"a dot within a label", block("names *.b.test"), `a\.b.test. A`, passed},
		{"an exception", block("names **.test", "except a.test"), "a.test. A", passed},
		{"exceptions only", block("except a.test"), "b.test. A", opened},
		{"in a file", block("names_file " + list), "www.corp.test. A", opened},
		{"not in a file", block("names_file " + list), "www.test. A", passed},
		{"but excepted by one", block("names **", "except_file "+list), "www.corp.test. A", passed},
		{"refused", block("names *.test", "others refuse"), "a.b.test. A", refused},
		{"an exception refused", block("except a.test", "others refuse"), "a.test. A", refused},
		{"not refused", block("names *.test", "others refuse"), "a.test. A", opened},
		{"spelled out", block("names *.test", "others pass"), "a.b.test. A", passed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			if err := r.policy.open(); err != nil {
				t.Fatal(err)
			}
			defer r.policy.close()
			c := r.client()
			req := request(t, tt.question)
			req.SetEdns0(1232, false)
			rcode, err := c.serve(req, answering(t, strings.Fields(tt.question)[0]+" 300 IN A 9.9.9.9"))
			if err != nil || c.messages != 1 || !plugin.ClientWrite(rcode) { // or the server answers too
				t.Fatalf("%d answers, %d, %v", c.messages, rcode, err)
			}
			got := passed
			switch {
			case c.Msg.Rcode == dns.RcodeRefused:
				got = refused
				ede := c.Msg.IsEdns0().Option[0].(*dns.EDNS0_EDE)
				if len(c.Msg.Answer) > 0 || ede.InfoCode != dns.ExtendedErrorCodeProhibited || !strings.HasPrefix(ede.ExtraText, "ipdestinationguard: ") {
					t.Errorf("got\n%v", c.Msg)
				}
			case len(c.granted) > 0:
				got = opened
			}
			if got != tt.want || got != refused && len(c.Msg.Answer) != 1 {
				t.Errorf("%s, want %s:\n%v", got, tt.want, c.Msg)
			}
		})
	}
}

func TestNamesMistakes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("a.test\n*x.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ line, want string }{
		{"names *x.test", "names: "},
		{"except a..b", "except: "},
		{"names a.test, b.test", `names: "a.test,": ',' is in no host name: patterns stand apart by blanks (in a file, by lines), without commas`},
		{"names 192.0.2.7", `names "192.0.2.7" is an address or a network, or part of one, and no name ends like that: write the name that is looked up`},
		{"names_file " + bad, "line 2"},
		{"names_file /nowhere/names", "no such file"},
		{"names_file " + filepath.Dir(bad), "not a regular file"},
		{"others maybe", `others "maybe": it is pass`},
		{"others refuse", "which names are not others?"},
	} {
		_, _, err := parse(caddy.NewTestController("dns", "ipdestinationguard {\nmode nft-local\n"+tt.line+"\n}"))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "Testfile:") {
			t.Errorf("%s: %v, want %q", tt.line, err, tt.want)
		}
	}
}
