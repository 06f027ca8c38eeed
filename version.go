package ipdestinationguard

import (
	"runtime/debug"

	"github.com/coredns/caddy"
)

// ourModule is this plugin's.
const ourModule = "github.com/destination-guard/coredns-ip-destination-guard"

// release is what the linker says: see Makefile and deployment/build-coredns.sh.
var release string

// Version is the plugin's: what its build was told, or else that of its module; without either it
// is "unversioned".
func Version() string {
	if release != "" {
		return release
	}
	info, _ := debug.ReadBuildInfo()
	return versionIn(info)
}

func versionIn(info *debug.BuildInfo) string {
	if info != nil {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == ourModule && m.Replace == nil && m.Version != "" && m.Version != "(devel)" {
				return m.Version
			}
		}
	}
	return "unversioned"
}

// versions are those of CoreDNS and of the plugin in it.
func versions() string { return "CoreDNS " + caddy.AppVersion + ", " + name + " " + Version() }
