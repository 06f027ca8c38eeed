package ipdestinationguard

import (
	"slices"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
)

// Each server block's own lines are found, also those from a snippet that two blocks have.
func TestReadForwards(t *testing.T) {
	const text = `(ours) {
	ipdestinationguard
	forward a.test 192.0.2.1 tls://192.0.2.2 {
		policy sequential
	}
}
. {
	import ours
	grpc . 192.0.2.3:443
}
b.test {
	forward . 192.0.2.4
}
c.test {
	import ours
	sentinel ipv6 {
		to 192.0.2.5
	}
}
`
	blocks := []*serverBlock{{index: 0}, {index: 2}}
	readForwards(corefileOf(text), blocks)
	want := [][]forwarding{
		{{"forward", "forward a.test 192.0.2.1 tls://192.0.2.2", "Corefile:3", "a.test"}, {"grpc", "grpc . 192.0.2.3:443", "Corefile:9", "."}},
		{{"forward", "forward a.test 192.0.2.1 tls://192.0.2.2", "Corefile:3", "a.test"}, {"sentinel", "sentinel ipv6", "Corefile:16", ""}},
	}
	for i, b := range blocks {
		if !slices.Equal(b.forwards, want[i]) {
			t.Errorf("block %d: got\n%q\nwant\n%q", i, b.forwards, want[i])
		}
	}
}

func TestListens(t *testing.T) {
	b := &serverBlock{Config: &dnsserver.Config{ListenHosts: []string{"192.0.2.1", "2001:db8::1"}}, zones: []string{"dns://a.test.:53", "dns://b.test.:53", "tls://a.test.:853"}}
	want := []string{"dns://192.0.2.1:53", "dns://[2001:db8::1]:53", "tls://192.0.2.1:853", "tls://[2001:db8::1]:853"}
	if got := b.listens(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	b.ListenHosts = []string{""}
	if got := b.listens(); !slices.Equal(got, []string{"dns://:53", "tls://:853"}) {
		t.Errorf("got %q", got)
	}
}
