package main

import (
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// What a restart undoes is told.
func TestStatusSaysWhoHasSwitched(t *testing.T) {
	for by, want := range map[string]string{"corefile": "is refused\n", "guardctl": "is refused (by guardctl, until CoreDNS is restarted: the Corefile says otherwise)\n"} {
		var out strings.Builder
		writeStatus(&out, admin.Status{Enforcing: true, Hooks: []admin.Hook{{Name: "output", State: admin.Enforced, By: by}}})
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestStatusCounts(t *testing.T) {
	for n, want := range map[uint64][]string{
		0: {"refused 0 packets, 0 B\n", "remembered: 0 answers\n"},
		1: {"refused 1 packet, 60 B\n", "remembered: 1 answer\n"},
		2: {"refused 2 packets, 120 B\n", "remembered: 2 answers\n"},
	} {
		var out strings.Builder
		writeStatus(&out, admin.Status{Enforcing: true, Remembered: int(n), Hooks: []admin.Hook{{Name: "output", State: admin.Enforced, Refused: admin.Count{Packets: n, Bytes: 60 * n}}}})
		for _, text := range want {
			if !strings.Contains(out.String(), text) {
				t.Errorf("no %q in\n%s", text, &out)
			}
		}
	}
}
