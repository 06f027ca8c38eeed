package spelling

import "testing"

func TestNearest(t *testing.T) {
	words := []string{"allowedGatewayIPs", "allowedIPs", "hold", "max_grants", "max_grants_client", "on_exit", "out", "ports", "slots", "ttl", "upstream"}
	for _, tt := range []struct{ written, want string }{
		{"upstream", "upstream"},
		{"upsteam", "upstream"},
		{"upstraem", "upstream"},
		{"hlod", "hold"},
		{"TTL", "ttl"},
		{"tl", "ttl"},
		{"allowed_ips", "allowedIPs"},
		{"allowIPs", "allowedIPs"},
		{"allowed", "allowedIPs"},
		{"max_grant_client", "max_grants_client"},
		{"onexit", "on_exit"},
		{"port", "ports"},
		{"s", ""},
		{"up", ""},
		{"pools", ""},
		{"secret", ""},
		{"", ""},
	} {
		if got := Nearest(tt.written, words); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.written, got, tt.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"abc", "abc", 0}, {"", "abc", 3}, {"abc", "", 3},
		{"abc", "abd", 1}, {"abc", "ab", 1}, {"abc", "xabc", 1}, {"abc", "acb", 1},
		{"kitten", "sitting", 3}, {"abcd", "badc", 2},
	} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
