#!/usr/bin/env bash
# Builds a Kubernetes control plane from its Go modules, once, into .tools/kubernetes-VERSION/: the API server and the
# controller manager. Needs go (as new as the module asks for, which the version's go.mod says) and some minutes.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
version=${KUBERNETES:-1.37.1}
out="$root/.tools/kubernetes-$version"
[ -x "$out/kube-apiserver" ] && [ -x "$out/kube-controller-manager" ] && exit

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p "$out"
go mod init scratch >/dev/null 2>&1
# Its own parts are replaced by folders in its go.mod; here by the modules that are published of them.
file=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\s*"GoMod": "\(.*\)",\?$/\1/p')
sed -n 's#^\s*\(k8s\.io/[a-z-]*\) => \./staging/.*#\1#p' "$file" | while read -r part; do
    go mod edit -replace "$part=$part@v0.${version#*.}"
done
go mod edit -require "k8s.io/kubernetes@v$version"
stamp="k8s.io/component-base/version"
for program in kube-apiserver kube-controller-manager; do
    printf 'package main\n\nimport _ "k8s.io/kubernetes/cmd/%s/app"\n\nfunc main() {}\n' "$program" > main.go
    GOFLAGS=-mod=mod nice -n 15 go build -ldflags "-X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$(cut -d. -f2 <<< "$version")" \
        -o "$out/$program" "k8s.io/kubernetes/cmd/$program"
done
