package main

import (
	"testing"
)

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string]int{
		"6.18.5-arch1": 6018, "5.10.0-28-amd64": 5010, "6.9": 6009, "6.9-rc1": 6009, "7": 7000, "": 0, "6.1.0-rpi7-rpi-v8": 6001,
	} {
		if got := kernelVersion(release); got != want {
			t.Errorf("%s: %d, want %d", release, got, want)
		}
	}
}

// No network of a test can have a bound of its own (nf_conntrack_max).
func TestConnectionTrackingIsNearlyFull(t *testing.T) {
	for _, tt := range []struct {
		count, most int
		want        level
	}{{0, 100, fine}, {80, 100, fine}, {81, 100, failure}, {100, 100, failure}} {
		d := &doctor{}
		d.connections(tt.count, tt.most)
		if len(d.findings) != 1 || d.findings[0].Level != tt.want || (d.findings[0].Advice == "") != (tt.want == fine) {
			t.Errorf("%d of %d: %+v", tt.count, tt.most, d.findings)
		}
	}
}
