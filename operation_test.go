package ipdestinationguard

import (
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

func TestParseOperation(t *testing.T) {
	if want := (operation{admin: "/run/ipdestinationguard/admin.sock", group: 5300}); byDefault != want {
		t.Errorf("without a word %+v, want %+v", byDefault, want)
	}
	for _, tt := range []struct {
		name, options string
		want          operation
		fails         string // how the error goes on after the place
	}{
		{name: "defaults", want: operation{group: 5300}},
		{name: "audit", options: "audit", want: operation{audit: audit{true, true}, group: defaultGroup}},
		{name: "audit local", options: "audit local", want: operation{audit: audit{true, false}, group: defaultGroup}},
		{name: "audit gateway", options: "audit gateway", want: operation{audit: audit{false, true}, group: defaultGroup}},
		{name: "a socket", options: "admin unix:/run/x", want: operation{admin: "/run/x", given: true, group: defaultGroup}},
		{name: "no socket", options: "admin off", want: operation{given: true, group: defaultGroup}},
		{name: "no lines", options: "denied_log off", want: operation{quiet: true, group: defaultGroup}},
		{name: "lines", options: "denied_log on", want: operation{group: defaultGroup}},
		{name: "a group", options: "nflog_group 7", want: operation{group: 7}},
		{name: "no group", options: "nflog_group off", want: operation{}},
		{name: "audit of something else", options: "audit forward", fails: `audit "forward": it is local`},
		{name: "audit twice", options: "audit local\naudit gateway", fails: "audit is given twice"},
		{name: "audit of two", options: "audit local gateway", fails: "audit takes one value"},
		{name: "a socket without its kind", options: "admin /run/x", fails: `admin "/run/x": it is off, or unix:`},
		{name: "a socket on TCP", options: "admin tcp:127.0.0.1:80", fails: `admin "tcp:127.0.0.1:80": it is off, or unix:`},
		{name: "a relative socket", options: "admin unix:x", fails: `admin "unix:x": it is off, or unix:`},
		{name: "a socket without a path", options: "admin unix:", fails: `admin "unix:": it is off, or unix:`},
		{name: "lines, somehow", options: "denied_log some", fails: `denied_log "some": it is on`},
		{name: "group 0", options: "nflog_group 0", fails: `nflog_group "0": it is a number between 1 and 65535`},
		{name: "a group that is too large", options: "nflog_group 65536", fails: `nflog_group "65536"`},
		{name: "a group with a name", options: "nflog_group on", fails: `nflog_group "on"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, err := parse(caddy.NewTestController("dns", "ipdestinationguard nft-both {\n"+tt.options+"\n}"))
			switch {
			case tt.fails != "":
				if err == nil || !strings.Contains(err.Error(), "Error during parsing: "+tt.fails) {
					t.Errorf("%v, want %s", err, tt.fails)
				}
			case err != nil:
				t.Error(err)
			case s.operation != tt.want:
				t.Errorf("%+v, want %+v", s.operation, tt.want)
			}
		})
	}
}

// Each setting of how people look at the guard is the whole guard's.
func TestOperationContradicts(t *testing.T) {
	for _, options := range []string{"audit", "admin off", "admin unix:/run/x", "denied_log off", "nflog_group 7"} {
		c := newCoreDNS(t)
		err := c.load(corefile("ipdestinationguard nft-both {\n"+options+"\n}", "ipdestinationguard nft-both {\nadmin unix:/run/y\naudit local\n}"))
		if err == nil || !strings.Contains(err.Error(), "contradicts") {
			t.Errorf("%s: %v", options, err)
		}
	}
}
