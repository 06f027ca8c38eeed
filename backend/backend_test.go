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
