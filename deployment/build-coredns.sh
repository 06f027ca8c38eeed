#!/bin/sh
# Builds CoreDNS from its own tree, every stock plugin in it, with ipdestinationguard added.
# Needs Go, and the Go module proxy for everything else.
#
#   [TAGS=unbound] build-coredns.sh [OUTPUT [PLUGIN]]
#
# OUTPUT is the binary to write: ./coredns when left out.
# PLUGIN is a folder with the plugin's source or a version of it (v1.2.3, latest): when left out, the checkout
# that this script lies in.
# TAGS are build tags. With unbound it validates DNSSEC (dnssec validate): that takes a C compiler and Debian's
# libunbound-dev, and libunbound8 where it runs.
set -eu

coredns=github.com/coredns/coredns
coredns_version=v1.15.0
module=github.com/destination-guard/coredns-ip-destination-guard

case ${1-} in
-h | --help)
    sed -n '2,/^set/ { /^set/d; s/^# \{0,1\}//p }' "$0"
    exit 0
    ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
output=${1:-coredns}
plugin=${2:-$here/..}
[ ! -d "$plugin" ] || plugin=$(cd "$plugin" && pwd)
case $output in
/*) ;;
*) output=$PWD/$output ;;
esac

tags=grpcnotrace${TAGS:+ $TAGS}
case " $tags " in
*" unbound "*) cgo=1 ;;
*) cgo=0 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

echo "fetching $coredns $coredns_version"
cd "$work" # go mod download heeds the go.mod around it
source=$(go mod download -json "$coredns@$coredns_version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
[ -d "$source" ] || { echo "no source of $coredns $coredns_version" >&2; exit 1; }
cp -R "$source" tree
chmod -R u+w tree

cp "$here/plugin.cfg" tree/plugin.cfg
cd tree

if [ -d "$plugin" ]; then
    echo "adding the plugin from $plugin"
    version=$(git -C "$plugin" describe --tags --always --dirty 2>/dev/null || echo checkout)
    go mod edit -replace "$module=$plugin"
    go get "$module@v0.0.0" # any version will do: the folder has none
else
    echo "adding the plugin, version $plugin"
    go get "$module@$plugin"
    version=$(go list -m -f '{{.Version}}' "$module")
fi

echo "building $output"
go generate coredns.go
CGO_ENABLED=$cgo go build -trimpath -buildvcs=false -tags "$tags" \
    -ldflags "-s -w -X $coredns/coremain.GitCommit=ipdestinationguard-$version -X $module.release=$version" -o "$output" .
"$output" -version
