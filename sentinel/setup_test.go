package sentinel

import (
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		err        string // part of it
		first      string // sentinel
		given      string
		files      string
	}{
		{name: "bare", text: "sentinel", first: "100.100.111.1", files: hostdns.Kept + " " + hostdns.Uplinks + " " + hostdns.Resolv},
		{name: "ipv4", text: "sentinel ipv4", first: "100.100.111.1"},
		{name: "ipv6", text: "sentinel ipv6", first: "fd00:2021:1111:8000:100:100:111:1"},
		{name: "files", text: "sentinel {\nhost /a\nhost /b /c\n}", files: "/a /b /c"},
		{name: "given", text: "sentinel {\nto 192.0.2.53 2001:db8::53 [2001:db8::54]:5353 dns://192.0.2.54\nto tls://192.0.2.55%dns.example.net https://192.0.2.56 quic://192.0.2.57\n}",
			given: "192.0.2.53:53 [2001:db8::53]:53 [2001:db8::54]:5353 192.0.2.54:53 tls://192.0.2.55%dns.example.net:853 https://192.0.2.56:443 quic://192.0.2.57:853"},
		{name: "who may ask", text: "sentinel {\nfrom 172.17.0.0/16 192.0.2.1\n}"},
		{name: "another network", text: "sentinel 192.0.2.0/24", err: "ipv4 (100.100.111.0/24, the default) or ipv6"},
		{name: "two networks", text: "sentinel ipv4 ipv6", err: "Wrong argument count"},
		{name: "twice", text: "sentinel\nsentinel", err: "this plugin can only be used once"},
		{name: "an unknown option", text: "sentinel {\nsecret\n}", err: `Testfile:2 - Error during parsing: unknown option "secret" in sentinel { }: there are from, host, tls, tls_servername, to`},
		{name: "a mistyped option", text: "sentinel {\ntls_server_name a.test\n}", err: `Testfile:2 - Error during parsing: unknown option "tls_server_name" in sentinel { }: did you mean tls_servername?`},
		{name: "no end", text: "sentinel {\nto 192.0.2.53\ncache 30\n}", err: `Testfile:3 - Error during parsing: unknown option "cache" in sentinel { }: that is a directive of CoreDNS: is the } missing that ends the block which begins at Testfile:1?`},
		{name: "an option without a value", text: "sentinel {\nhost\n}", err: "Wrong argument count"},
		{name: "a relative path", text: "sentinel {\nhost resolv.conf\n}", err: "has to begin with /"},
		{name: "a name", text: "sentinel {\nto dns.example.net\n}", err: "is not an address"},
		{name: "a file", text: "sentinel {\nto /etc/resolv.conf\n}", err: "is not an address"},
		{name: "a sentinel", text: "sentinel {\nto 100.100.111.2\n}", err: "no address of a nameserver"},
		{name: "a sentinel over TLS", text: "sentinel {\nto tls://[fd00:2021:1111:8000:100:100:111:1]:853\n}", err: "no address of a nameserver"},
		{name: "multicast", text: "sentinel {\nto 224.0.0.251:5353\n}", err: "no address of a nameserver"},
		{name: "another transport", text: "sentinel {\nto grpc://192.0.2.53\n}", err: "dns, tls, https or quic"},
		{name: "more than there are sentinels", text: "sentinel {\nto 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.7 10.0.0.8 10.0.0.9\n}", err: "8 sentinels, and 9"},
		{name: "given and the machine's", text: "sentinel {\nto 10.0.0.1\nhost /etc/resolv.conf\n}", err: "leave one of them out"},
		{name: "no network", text: "sentinel {\nfrom docker0\n}", err: "no address and no network"},
		{name: "no certificate", text: "sentinel {\ntls /nowhere.pem\n}", err: "tls: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := read(caddy.NewTestController("dns", c.text))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.first != "" && h.addresses[0].String() != c.first {
				t.Errorf("the first sentinel is %v", h.addresses[0])
			}
			if c.files != "" && strings.Join(h.servers.files, " ") != c.files {
				t.Errorf("files %q", h.servers.files)
			}
			if c.given != "" && strings.Join(h.servers.given, " ") != c.given {
				t.Errorf("given %q", h.servers.given)
			}
		})
	}
}

// What the rest of the server block makes impossible is told with the place of the directive.
func TestPlaceOfMistakes(t *testing.T) {
	const text = "\n\nsentinel {\nto 192.0.2.1\n}"
	c := caddy.NewTestController("dns", text)
	dnsserver.GetConfig(c).ListenHosts = []string{"127.0.0.1"}
	if err := setup(c); err == nil || err.Error() != "plugin/sentinel: Testfile:3: the server block listens on the sentinels: leave bind out" {
		t.Error(err)
	}
	h, err := read(caddy.NewTestController("dns", text))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.start(&dnsserver.Config{Transport: "tls"}); err == nil || !strings.HasPrefix(err.Error(), "plugin/sentinel: Testfile:3: the machine's resolver asks by plain DNS, and not by tls") {
		t.Error(err)
	}
}

// What the plugin makes of an address is what forward would.
func TestNameserverText(t *testing.T) {
	h, err := read(caddy.NewTestController("dns", "sentinel {\nto 192.0.2.1 fe80::1%eth0 tls://192.0.2.2%a.example:8853 tls://[2001:db8::1%b.example]:853 https://192.0.2.3\ntls_servername c.example\n}"))
	if err != nil {
		t.Fatal(err)
	}
	h.servers.look()
	defer h.servers.close()
	var got, names []string
	for _, s := range h.servers.now() {
		got = append(got, s.text)
	}
	want := []string{"dns://192.0.2.1:53", "dns://[fe80::1%eth0]:53", "tls://192.0.2.2:8853", "tls://[2001:db8::1]:853", "https://192.0.2.3:443"}
	if !slices.Equal(got, want) {
		t.Errorf("nameservers %q, want %q", got, want)
	}
	for _, server := range []string{"192.0.2.2%a.example:8853", "[2001:db8::1%b.example]:853", "192.0.2.3:443", "192.0.2.4%d.example"} {
		address, config := cutServerName(server, h.servers.config)
		names = append(names, address+" "+config.ServerName)
	}
	if want := []string{"192.0.2.2:8853 a.example", "[2001:db8::1]:853 b.example", "192.0.2.3:443 c.example", "192.0.2.4 d.example"}; !slices.Equal(names, want) {
		t.Errorf("names in certificates %q, want %q", names, want)
	}
}
