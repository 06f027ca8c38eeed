package backend

import (
	"errors"
	"net/netip"
	"os"
	"testing"
)

func TestKey(t *testing.T) {
	tests := []struct {
		addr, want string
		is4        bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"0.0.0.0", "0.0.0.0", true},
		{"255.255.255.255", "255.255.255.255", true},
		{"::ffff:192.0.2.1", "192.0.2.1", true},
		{"::192.0.2.1", "::192.0.2.1", false},
		{"::", "::", false},
		{"2001:db8::1", "2001:db8::1", false},
		{"64:ff9b::192.0.2.1", "64:ff9b::192.0.2.1", false},
		{"::fffe:0:0", "::fffe:0:0", false},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			k := KeyOf(netip.MustParseAddr(tt.addr))
			if k.Addr() != netip.MustParseAddr(tt.want) || k.Is4() != tt.is4 {
				t.Errorf("%v, IPv4: %v", k.Addr(), k.Is4())
			}
		})
	}
}

func TestPermissionError(t *testing.T) {
	err := &PermissionError{Need: "CAP_NET_ADMIN", Err: os.ErrPermission}
	if err.Error() != "permission denied: the process needs CAP_NET_ADMIN" || !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}

func TestAccount(t *testing.T) {
	r := Rules{OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd00::/64")}}
	client := func(addr string) Scope { return ClientScope(netip.MustParseAddr(addr)) }
	for _, tt := range []struct {
		a, b Scope
		same bool
	}{
		{client("10.0.0.1"), client("10.0.0.2"), false},
		{client("192.168.0.1"), client("192.168.0.2"), true},
		{client("192.168.0.1"), client("192.168.1.1"), false},
		{client("fd00::1"), client("fd00::2"), true},
		{client("2001:db8::1"), client("2001:db8::2"), true},
		{client("2001:db8::1"), client("2001:db8:0:1::1"), false},
		{LinkScope(1, [6]byte{1}), LinkScope(1, [6]byte{2}), false},
		{UnitScope(1), UnitScope(2), false},
		{Scope{}, Scope{Holder: Machine}, false},
		{client("192.168.0.1"), Scope{Holder: Client, Class: 1, ID: client("192.168.0.1").ID}, false},
	} {
		if got := r.Account(tt.a) == r.Account(tt.b); got != tt.same {
			t.Errorf("%v and %v count together: %v", tt.a, tt.b, got)
		}
	}
}
