#!/usr/bin/env bash
# Builds the image with buildah and runs it with podman the way the chart does: read-only root, no capabilities, uid
# 65532. Then asks: does it live without a broker, can it write, is there an installer or a compiler, does SIGTERM end it?
# For a Debian machine with buildah, podman, runc and mmdebstrap, as root; needs no registry. Some minutes and 2 GB in
# a temporary folder, which is removed. Not run in CI.
#
#   deploy/image/try.sh              the base image is made by mmdebstrap
#   BASE=python:3.11-slim deploy/image/try.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
[ "${BOUNDED:-}" ] || exec env BOUNDED=1 timeout --kill-after=30 900 "$0" "$@"

work=$(mktemp -d)
name="dispatcher-try-$$"
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot CONTAINERS_CONF="$work/containers.conf"
store=(--root "$work/store" --runroot "$work/run")
clean() {
    podman "${store[@]}" --runtime runc rm --force --time 1 "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT

# A machine whose root may not raise limits refuses the defaults; and no log daemon is needed.
cat > "$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
printf '{"default":[{"type":"insecureAcceptAnything"}]}' > "$work/policy.json"

say() { printf '%5ss  %s\n' "$SECONDS" "$*"; }

base=${BASE:-}
if [ -z "$base" ]; then
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base.tar"
    container=$(buildah "${store[@]}" from scratch)
    buildah "${store[@]}" add --quiet "$container" "$work/base.tar" / >/dev/null
    base=localhost/base:try
    buildah "${store[@]}" commit --quiet --rm "$container" "$base" >/dev/null
    rm "$work/base.tar"
    say "base image made"
fi

# pip in the build needs what pip here needs: an index and a certificate bundle, whatever they are.
passed=()
while IFS='=' read -r variable _; do passed+=(--env "$variable"); done < <(env | grep -E '^(PIP_|SSL_CERT_FILE|HTTPS?_PROXY|https?_proxy)' || true)
for path in /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    [ ! -e "$path" ] || passed+=(--volume "$path:/etc/pip.conf:ro")
done
bundle=/etc/ssl/certs/ca-certificates.crt
passed+=(--volume "$bundle:$bundle:ro")
buildah "${store[@]}" bud --quiet --network host --signature-policy "$work/policy.json" "${passed[@]}" \
    --build-arg "BASE=$base" --tag localhost/feedback-dispatcher:try --file "$root/Dockerfile" "$root" >/dev/null
say "image built"
buildah "${store[@]}" inspect --type image --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}' localhost/feedback-dispatcher:try

buildah "${store[@]}" push --quiet --signature-policy "$work/policy.json" localhost/feedback-dispatcher:try "oci-archive:$work/image.tar:localhost/feedback-dispatcher:try"
podman "${store[@]}" load --quiet --signature-policy "$work/policy.json" --input "$work/image.tar" >/dev/null
say "image loaded, $(du -m "$work/image.tar" | cut -f1) MB packed"

mkdir -p "$work/etc/webhooks.d"
cat > "$work/etc/dispatcher.yaml" <<'CONF'
apiVersion: dispatcher/v1
kafka: {bootstrap_servers: "127.0.0.1:1"}
webhooks: {store: yaml, path: webhooks.d}
ops: {host: 127.0.0.1, port: 19091}
CONF
chmod -R a+rX "$work/etc"
podman "${store[@]}" --runtime runc run --detach --name "$name" --network host --read-only --cap-drop ALL \
    --security-opt no-new-privileges --user 65532:65532 --tmpfs /tmp:rw,size=64m,mode=1777 \
    --volume "$work/etc:/etc/dispatcher:ro" localhost/feedback-dispatcher:try >/dev/null
inside() { podman "${store[@]}" --runtime runc exec "$name" "$@"; }

for _ in $(seq 100); do
    curl --silent --fail --output /dev/null http://127.0.0.1:19091/livez && break
    sleep 0.2
done
curl --silent --fail http://127.0.0.1:19091/livez; echo
say "lives, with no broker available"
[ "$(curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:19091/readyz)" = 503 ]
say "is not ready, and says so"
inside dispatcher check
inside python3 -c '
import json, os, shutil, sys
status = dict(line.split(":\t", 1) for line in open("/proc/1/status").read().splitlines() if ":\t" in line)
assert status["Uid"].split() == ["65532"] * 4, status["Uid"]
assert int(status["CapEff"], 16) == 0, status["CapEff"]
assert status["NoNewPrivs"] == "1"
try:
    open("/opt/dispatcher/written", "w")
except OSError as error:
    print("writing to the root:", error.strerror)
else:
    sys.exit("the root can be written to")
open("/tmp/written", "w")
bill = [one["purl"] for one in json.load(open("/opt/dispatcher/sbom.cdx.json"))["components"]]
ours, debians = (sum(one.startswith(kind) for one in bill) for kind in ("pkg:pypi/", "pkg:deb/"))
print(f"bill of materials: {ours} Python packages, {debians} of the system")
assert ours > 20 and debians > 20
found = [name for name in ("pip", "pip3", "gcc", "cc", "g++", "make", "curl", "wget", "git") if shutil.which(name)]
assert not found, found
try:
    import pip
except ImportError:
    print("no installer, no compiler")
else:
    sys.exit(f"pip at {pip.__file__}")
'
say "uid 65532, no capabilities, nothing to write to or to install with"
started=$(date +%s%N)
podman "${store[@]}" --runtime runc kill --signal TERM "$name" >/dev/null
status=$(podman "${store[@]}" --runtime runc wait "$name")
say "SIGTERM: exit status $status after $(( ($(date +%s%N) - started) / 1000000 )) ms"
[ "$status" = 0 ]
podman "${store[@]}" logs "$name" 2>&1 | tail -3
say "all of it holds"
