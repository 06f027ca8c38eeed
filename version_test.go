package ipdestinationguard

import (
	"runtime/debug"
	"testing"
)

func TestVersion(t *testing.T) {
	for _, tt := range []struct {
		name string
		info *debug.BuildInfo
		want string
	}{
		{"of a checkout", &debug.BuildInfo{Main: debug.Module{Path: ourModule, Version: "(devel)"}}, "unversioned"},
		{"of a module", &debug.BuildInfo{Deps: []*debug.Module{{Path: "example.com/other", Version: "v9.9.9"}, {Path: ourModule, Version: "v1.2.3"}}}, "v1.2.3"},
		{"of a folder in place of one", &debug.BuildInfo{Deps: []*debug.Module{{Path: ourModule, Version: "v0.0.0", Replace: &debug.Module{Path: "../plugin"}}}}, "unversioned"},
		{"unknown", nil, "unversioned"},
	} {
		if got := versionIn(tt.info); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	defer func(before string) { release = before }(release)
	if release = "v1.2.4"; Version() != "v1.2.4" {
		t.Errorf("the linker's word does not count: %s", Version())
	}
}
