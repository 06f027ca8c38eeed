package main

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// What is not on this machine is not asked.
func TestAskOnlyThisMachine(t *testing.T) {
	if _, err := askAt(netip.MustParseAddr("100.100.111.250")); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("error %v", err)
	}
}

// Whatever answers, only sentinels come of it.
func TestReadAnswer(t *testing.T) {
	m := new(dns.Msg)
	for _, text := range []string{
		`sentinel. 0 CH TXT "100.100.111.1" "alive" "dns://10.0.0.1:53"`,
		`sentinel. 0 CH TXT "192.0.2.1" "alive" "dns://10.0.0.1:53"`,
		`sentinel. 0 CH TXT "100.100.111.2" "dead" "dns://10.0.0.2:53"`,
		`sentinel. 0 CH TXT "100.100.111.3"`,
		`sentinel. 0 CH TXT "nowhere" "alive" "x"`,
		`sentinel. 0 CH A 100.100.111.3`,
	} {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	want := []sentinel{
		{netip.MustParseAddr("100.100.111.1"), true, "dns://10.0.0.1:53"},
		{netip.MustParseAddr("100.100.111.2"), false, "dns://10.0.0.2:53"},
	}
	if got := readAnswer(m); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	for range 20 {
		m.Answer = append(m.Answer, m.Answer[0])
	}
	if got := readAnswer(m); len(got) != 8 {
		t.Errorf("%d sentinels", len(got))
	}
}
