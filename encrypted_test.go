package ipdestinationguard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

func TestEncryptedUpstreams(t *testing.T) {
	resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolvConf, []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const tls = "forward . tls://192.0.2.53"
	for _, tt := range []struct {
		name, lines, block, others string
		want                       string // of the error
		warning                    string
	}{
		{"nothing demanded", "", "forward . 192.0.2.53", "", "", ""},
		{"TLS", "require encrypted", tls + " {\ntls_servername a.test\n}", "", "", ""},
		{"all of them", "require encrypted", "forward . tls://192.0.2.53 https://192.0.2.54 quic://192.0.2.55", "", "", ""},
		{"a name", "require encrypted", "forward . tls://dns.test", "", "", ""},
		{"plain", "require encrypted", "forward . 192.0.2.53", "", "forward asks 192.0.2.53:53 in plain text (Corefile:5)", ""},
		{"one of two", "require encrypted", "forward . tls://192.0.2.53 dns://192.0.2.54", "", "192.0.2.54:53", ""},
		{"a second line", "require encrypted", tls + "\nforward a.test 192.0.2.54", "", "192.0.2.54:53", ""},
		{"a plain name", "require encrypted", "forward . dns.test", "", "forward asks dns.test in plain text", ""},
		{"a file", "require encrypted", "forward . " + resolvConf, "", "192.0.2.53:53", ""},
		{"a file that says it is TLS", "require encrypted", "forward . tls://" + resolvConf, "", "192.0.2.53:53", ""},
		{"gRPC", "require encrypted", "grpc . 192.0.2.53", "", "grpc asks", ""},
		{"gRPC with TLS", "require encrypted", "grpc . 192.0.2.53 {\npolicy random\ntls\n}", "", "", ""},
		{"a socket", "require encrypted", "grpc . unix:///run/dns", "", "", "how unix:///run/dns asks on"},
		{"transfers", "require encrypted", "secondary {\ntransfer from 192.0.2.53\n}", "", "secondary transfers", ""},
		{"the machine's nameservers", "require encrypted", "sentinel", "", "sentinel without a line to asks the machine's nameservers in plain text (Corefile:5)", ""},
		{"those of IPv6", "require encrypted", "sentinel ipv6 {\nfrom 172.17.0.0/16\n}", "", "sentinel without a line to", ""},
		{"a given nameserver", "require encrypted", "sentinel {\nto tls://192.0.2.53\nto 192.0.2.54\n}", "", "sentinel asks 192.0.2.54:53 in plain text (Corefile:5)", ""},
		{"given ones with TLS", "require encrypted", "sentinel {\nto tls://192.0.2.53%dns.test https://192.0.2.54\nto quic://192.0.2.55\ntls_servername dns.test\n}", "", "", ""},
		{"no questions at all", "require encrypted", "hosts\ncache\ntemplate IN A", "", "", ""},
		{"a plugin that we do not know", "require encrypted", "fanout . 192.0.2.53", "", "", "how fanout finds its answers (Corefile:5)"},
		{"another block's", "require encrypted", tls, ". {\nforward . 192.0.2.53\n}\n", "", ""},
		{"by loopback to another block's", "require encrypted", "forward . 127.0.0.1:5300", ".:5300 {\nforward . 192.0.2.53\n}\n", "192.0.2.53:53", ""},
		{"by loopback to one with TLS", "require encrypted", "forward . [::1]:5300", ".:5300 {\n" + tls + "\n}\n", "", ""},
		{"by loopback in circles", "require encrypted", "forward . 127.0.0.1:5300", ".:5300 {\nforward . 127.0.0.1:5300\n}\n", "", ""},
		{"by loopback to somebody", "require encrypted", "forward . 127.0.0.1:5301", ".:5300 {\nforward . 192.0.2.53\n}\n", "", "how 127.0.0.1:5301 asks on"},
		{"AD of TLS", "dnssec ad test", tls, "", "", ""},
		{"AD of anybody", "dnssec ad test", "forward . 192.0.2.53", "", "anybody on the way could say AD: forward asks 192.0.2.53:53", ""},
		{"AD of anybody, wanted", "dnssec ad test insecure", "forward . 192.0.2.53", "", "", ""},
		{"and still encryption", "dnssec ad test insecure\nrequire encrypted", "forward . 192.0.2.53", "", "require encrypted: ", ""},
		{"AD of a given nameserver", "dnssec ad test", "sentinel {\nto tls://192.0.2.53\n}", "", "", ""},
		{"AD of the machine's nameservers", "dnssec ad test", "sentinel", "", "anybody on the way could say AD: sentinel without", ""},
		{"AD of nobody", "dnssec ad test", "hosts", "", "there is no upstream", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lines := "nft-local {\n" + tt.lines + "\n}"
			if tt.lines == "" {
				lines = "nft-local"
			}
			_, p, err := parse(caddy.NewTestController("dns", "ipdestinationguard "+lines))
			if err != nil {
				t.Fatal(err)
			}
			p.place = "Corefile:2"
			text := ". {\nipdestinationguard " + lines + "\n" + tt.block + "\n}\n" + tt.others
			warnings := ""
			err = p.checkUpstreams(caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text)}, func(format string, args ...any) {
				warnings += fmt.Sprintf(format, args...)
			})
			if err == nil && tt.want != "" || err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if (warnings != "") != (tt.warning != "") || !strings.Contains(warnings, tt.warning) {
				t.Errorf("it warns %q, want %q", warnings, tt.warning)
			}
		})
	}
}

// A block that cannot be found is not taken for a good one.
func TestEncryptedUpstreamsOfNobody(t *testing.T) {
	u := upstreamsOf(caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(". {\nforward . tls://192.0.2.53\n}\n")}, "Corefile:2")
	if len(u.unknown) != 1 {
		t.Errorf("%+v", u)
	}
}

// What a snippet demands, all blocks that import it have to have.
func TestEncryptedUpstreamsOfSnippet(t *testing.T) {
	text := "(guard) {\nipdestinationguard nft-local {\nrequire encrypted\n}\n}\na.test {\nimport guard\nforward . tls://192.0.2.53\n}\nb.test {\nimport guard\nforward . 192.0.2.54\n}\n"
	u := upstreamsOf(caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text)}, "Corefile:2")
	if u.encrypted != 1 || len(u.plain) != 1 {
		t.Errorf("%+v", u)
	}
}
