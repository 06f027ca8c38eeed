//go:build unbound

package validate

import (
	"strings"

	"github.com/miekg/dns"
)

// reasons are libunbound's words, and what they mean as Extended DNS Errors (RFC 8914). The
// first that is in a text counts: behind what failed last stands what had failed before.
var reasons = []struct {
	words string
	code  uint16
}{
	{"signature expired", dns.ExtendedErrorCodeSignatureExpired},
	{"signature before inception", dns.ExtendedErrorCodeSignatureNotYetValid},
	{"signature inception after", dns.ExtendedErrorCodeSignatureNotYetValid},
	{"no DNSKEY", dns.ExtendedErrorCodeDNSKEYMissing},
	{"No DNSKEY", dns.ExtendedErrorCodeDNSKEYMissing},
	{"DS hash mismatches key", dns.ExtendedErrorCodeDNSKEYMissing},
	{"no keys have a DS", dns.ExtendedErrorCodeDNSKEYMissing},
	{"signatures from unknown keys", dns.ExtendedErrorCodeDNSKEYMissing},
	{"no signatures", dns.ExtendedErrorCodeRRSIGsMissing},
	{"signature missing", dns.ExtendedErrorCodeRRSIGsMissing},
}

func codeOf(why string) uint16 {
	for _, r := range reasons {
		if strings.Contains(why, r.words) {
			return r.code
		}
	}
	return dns.ExtendedErrorCodeDNSBogus
}

// maxWhy is how much is told of a reason: the names in it may be long.
const maxWhy = 300

// readable are libunbound's words without the address of the one that it always asks.
func readable(why string) string {
	why = strings.NewReplacer(" from 127.0.0.1 and 127.0.0.1", "", " from 127.0.0.1", "").Replace(why)
	if len(why) > maxWhy {
		why = strings.ToValidUTF8(why[:maxWhy], "") + "..."
	}
	return why
}

func unknown(why string) *Answer {
	return &Answer{Verdict: Unknown, Why: why, Code: dns.ExtendedErrorCodeDNSSECIndeterminate}
}

// namesIn are those that an answer is about: what was asked for, and where aliases lead.
func namesIn(m *dns.Msg) (names []string) {
	for _, q := range m.Question {
		names = append(names, q.Name)
	}
	for _, rr := range m.Answer {
		names = append(names, rr.Header().Name)
		if alias, ok := rr.(*dns.CNAME); ok {
			names = append(names, alias.Target)
		}
	}
	return names
}
