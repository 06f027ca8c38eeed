package ipdestinationguard

import (
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
)

// What is told of a directive can stand in its place.
func TestDirectives(t *testing.T) {
	t.Setenv("LAN", "lan0")
	const text = `(ours) {
	private **.home.arpa 192.168.0.0/16
	on_exit keep
}
. {
	ipdestinationguard nft-both 192.0.2.1 # always
	forward . 192.0.2.1
}
example.org {
	ipdestinationguard {
		mode nft-gateway
		interfaces {$LAN} lan1 # and lan2, soon
		import ours
		route **.a.example "b.example" {
			out "wg 0"
			egress "a\"b" "" "#"
		}
	}
}
example.net {
	cache
}
`
	got := directives(corefileOf(text))
	want := []string{
		"Corefile:6\nipdestinationguard nft-both 192.0.2.1",
		`Corefile:10
ipdestinationguard {
    mode nft-gateway
    interfaces lan0 lan1
    private **.home.arpa 192.168.0.0/16
    on_exit keep
    route **.a.example b.example {
        out "wg 0"
        egress "a\"b" "" "#"
    }
}`}
	if len(got) != len(want) {
		t.Fatalf("%d directives", len(got))
	}
	for i, d := range got {
		body := strings.Join(d.Lines, "\n")
		if text := d.Place + "\n" + body; text != want[i] {
			t.Errorf("got\n%s\nwant\n%s", text, want[i])
		}
		again := directives(corefileOf(". {\n" + body + "\n}\n"))
		if len(again) != 1 || !slices.Equal(again[0].Lines, d.Lines) {
			t.Errorf("it is read otherwise: %q", again)
		}
	}
	if lines := spelled([]caddyfile.Token{{Line: 1, Text: "a\nb"}, {Line: 2, Text: "c"}, {Line: 3, Text: "d"}}); !slices.Equal(lines, []string{"\"a\nb\" c", "d"}) {
		t.Errorf("a token with a line break: %q", lines)
	}
}
